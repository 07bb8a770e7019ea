package e2e_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/testkit"
)

// TestClusterFailoverPauses measures for how long a partition accepts no
// appends after its leader was killed, and after its leader was stopped. It
// logs the figures; it does not check them.
func TestClusterFailoverPauses(t *testing.T) {
	testkit.OnlyLong(t, "minutes of a cluster: make cluster")
	c := startCluster(t, 3)
	const times = 30
	for _, end := range []struct {
		signal string
		end    func(*node) error
	}{
		{"SIGKILL", func(n *node) error { n.kill(); return nil }},
		{"SIGTERM", (*node).stop},
	} {
		var pauses []time.Duration
		for range times {
			pauses = append(pauses, c.measurePause(t, end.end))
		}
		slices.Sort(pauses)
		t.Logf("%s of a leader, %d times: median pause %v, worst %v; all: %v", end.signal, times,
			pauses[times/2].Round(time.Millisecond), pauses[times-1].Round(time.Millisecond), rounded(pauses))
	}
}

func rounded(all []time.Duration) (out []time.Duration) {
	for _, d := range all {
		out = append(out, d.Round(time.Millisecond))
	}
	return out
}

// measurePause ends the leader of partition 0 and starts it again, while
// appends come in through another node every few milliseconds. It returns the
// longest time between two acknowledgements.
func (c *cluster) measurePause(t *testing.T, end func(*node) error) time.Duration {
	t.Helper()
	c.awaitPlaced()
	watcher := c.dial(c.nodes[0].name)
	defer watcher.nc.Close()
	leader, err := c.leader(t.Context(), watcher, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := startProbe(t, c.dialOnly(c.others(leader)[0]))
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
	if err := leader.start(); err != nil {
		t.Fatal(err)
	}
	return pause
}

// probe sends appends at a steady pace, and does not wait for the answers.
type probe struct {
	client  *client
	sub     *nats.Subscription
	ending  chan struct{}
	running sync.WaitGroup

	mu    sync.Mutex
	acks  []time.Time
	acked *counter
}

const probeEvery = 5 * time.Millisecond

func startProbe(t *testing.T, client *client) *probe {
	t.Helper()
	p := &probe{client: client, ending: make(chan struct{}), acked: newCounter()}
	inbox := nats.NewInbox()
	var err error
	if p.sub, err = client.nc.Subscribe(inbox, p.answered); err != nil {
		t.Fatal(err)
	}
	p.running.Go(func() {
		tick := time.NewTicker(probeEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				m := appendMsg(0, "probe")
				m.Reply = inbox
				_ = client.nc.PublishMsg(m) // it goes unanswered then
			case <-p.ending:
				return
			}
		}
	})
	return p
}

func (p *probe) answered(m *nats.Msg) {
	if r, err := decodeReply(m); err != nil || r.Error != nil {
		return
	}
	p.mu.Lock()
	p.acks = append(p.acks, time.Now())
	p.mu.Unlock()
	p.acked.add()
}

// await waits for more acknowledgements.
func (p *probe) await(t *testing.T, more int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := p.acked.reach(ctx, p.acked.now()+more); err != nil {
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
	defer p.client.nc.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := 1; i < len(p.acks); i++ {
		if p.acks[i].After(after) {
			longest = max(longest, p.acks[i].Sub(p.acks[i-1]))
		}
	}
	return longest
}
