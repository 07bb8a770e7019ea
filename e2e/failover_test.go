package e2e_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/internal/workload"
)

// TestClusterFailoverPauses measures for how long a partition accepts no
// appends after its leader was killed, and after its leader was stopped. It
// logs the figures, and does not check them. It checks that each time another
// node takes over, that the log has whatever was acknowledged, and that it is
// the same on every node.
func TestClusterFailoverPauses(t *testing.T) {
	testkit.OnlyLong(t, "minutes of a cluster: make cluster")
	c := startCluster(t, 3)
	acked := map[uint64]string{}
	const times = 30
	for _, end := range []struct {
		signal string
		end    func(*node) error
	}{
		{"SIGKILL", func(n *node) error { n.kill(); return nil }},
		{"SIGTERM", (*node).stop},
	} {
		var pauses []time.Duration
		for i := range times {
			pause, round := c.measurePause(t, fmt.Sprintf("%s %d", end.signal, i), end.end)
			pauses = append(pauses, pause)
			for txid, payload := range round {
				if other, taken := acked[txid]; taken {
					t.Errorf("both %q and %q were acknowledged as txid %d", other, payload, txid)
				}
				acked[txid] = payload
			}
		}
		slices.Sort(pauses)
		t.Logf("%s of a leader, %d times: median pause %v, worst %v; all: %v", end.signal, times,
			pauses[times/2].Round(time.Millisecond), pauses[times-1].Round(time.Millisecond), rounded(pauses))
	}
	c.awaitPlaced()
	log := drain(t, c.dial(c.nodes[0].name), 0)
	for txid, payload := range acked {
		if txid > uint64(len(log)) {
			t.Errorf("the log ends at txid %d, %q was acknowledged as %d", len(log), payload, txid)
		} else if got := string(log[txid-1].Data); got != payload {
			t.Errorf("txid %d is %q, acknowledged was %q", txid, got, payload)
		}
	}
	c.checkSame(t, map[int][]*nats.Msg{0: log})
}

func rounded(all []time.Duration) (out []time.Duration) {
	for _, d := range all {
		out = append(out, d.Round(time.Millisecond))
	}
	return out
}

// measurePause ends the leader of partition 0 and starts it again, while
// appends come in through another node every few milliseconds. It returns the
// longest time between two acknowledgements, and the payloads that were
// acknowledged, which begin with name, by txid.
func (c *cluster) measurePause(t *testing.T, name string, end func(*node) error) (time.Duration, map[uint64]string) {
	t.Helper()
	c.awaitPlaced()
	watcher := c.dial(c.nodes[0].name)
	defer watcher.Conn.Close()
	leader, err := c.leader(t.Context(), watcher, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := startProbe(t, c.dialOnly(c.others(leader)[0]), name)
	p.await(t, 100)
	p.reset()
	ended := time.Now()
	if err := end(leader); err != nil {
		t.Fatal(err)
	}
	if err := c.awaitOther(t.Context(), watcher, leader); err != nil {
		t.Fatal(err)
	}
	p.await(t, 100)
	pause := p.stop(ended)
	if len(p.twice) > 0 {
		t.Errorf("%s: txids were given twice: %v", name, p.twice)
	}
	if err := leader.start(); err != nil {
		t.Fatal(err)
	}
	return pause, p.acked
}

// probe sends appends at a steady pace, and does not wait for the answers.
type probe struct {
	client  *workload.Client
	sub     *nats.Subscription
	ending  chan struct{}
	running sync.WaitGroup

	mu    sync.Mutex
	acks  []time.Time
	acked map[uint64]string // payloads by txid
	count *counter          // of acknowledgements
	twice []uint64          // txids that were given twice
}

const probeEvery = 5 * time.Millisecond

func startProbe(t *testing.T, client *workload.Client, name string) *probe {
	t.Helper()
	p := &probe{client: client, ending: make(chan struct{}), acked: map[uint64]string{}, count: newCounter()}
	inbox := nats.NewInbox() + "."
	payload := func(number string) string { return name + " " + number }
	var err error
	if p.sub, err = client.Conn.Subscribe(inbox+"*", func(m *nats.Msg) {
		p.answered(m, payload(strings.TrimPrefix(m.Subject, inbox)))
	}); err != nil {
		t.Fatal(err)
	}
	p.running.Go(func() {
		tick := time.NewTicker(probeEvery)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-tick.C:
				number := strconv.Itoa(i)
				m := workload.NewAppend(0, payload(number))
				m.Reply = inbox + number
				_ = client.Conn.PublishMsg(m) // it goes unanswered then
			case <-p.ending:
				return
			}
		}
	})
	return p
}

func (p *probe) answered(m *nats.Msg, payload string) {
	r, err := workload.DecodeReply(m)
	if err != nil || r.Error != nil {
		return
	}
	p.mu.Lock()
	p.acks = append(p.acks, time.Now())
	if p.acked[r.Txid] != "" {
		p.twice = append(p.twice, r.Txid)
	}
	p.acked[r.Txid] = payload
	p.mu.Unlock()
	p.count.add()
}

// await waits for more acknowledgements.
func (p *probe) await(t *testing.T, more int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := p.count.reach(ctx, p.count.now()+more); err != nil {
		t.Fatalf("no acknowledgements: %v", err)
	}
}

// reset forgets all acknowledgements but the last.
func (p *probe) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.acks = p.acks[len(p.acks)-1:]
}

// stop ends the probe, and returns the longest time between two
// acknowledgements of which the second came after the given moment.
func (p *probe) stop(after time.Time) (longest time.Duration) {
	close(p.ending)
	p.running.Wait()
	defer p.client.Conn.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := 1; i < len(p.acks); i++ {
		if p.acks[i].After(after) {
			longest = max(longest, p.acks[i].Sub(p.acks[i-1]))
		}
	}
	return longest
}
