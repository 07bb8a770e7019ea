package e2e_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/internal/workload"
)

// overlaps are pairs of locks that overlap without being spelled alike.
var overlaps = []struct{ name, first, second string }{
	{"point, then its subtree", "r%d.a.b", "r%d.a.>"},
	{"subtree, then a point in it", "r%d.a.>", "r%d.a.b"},
	{"deep point, then a far subtree", "r%d.a.b.c.d", "r%d.>"},
	{"far subtree, then a deep point", "r%d.>", "r%d.a.b.c.d"},
	{"subtree, then a wider one", "r%d.a.b.>", "r%d.a.>"},
	{"subtree, then a narrower one", "r%d.a.>", "r%d.a.b.>"},
}

// overlapRounds is how often each pair is sent.
func overlapRounds() int {
	return testkit.Sized(30, 30, 300)
}

// TestClusterOverlapInFlight sends two overlapping transactions back to back
// to three replicas, through a node that may lead or not: the first wins, and
// the second is refused for it.
func TestClusterOverlapInFlight(t *testing.T) {
	c := startCluster(t, 3, "--partitions", "1", "--election-timeout", "3s") // no node is to stand for election on a slow machine
	round := 0
	for i, pair := range overlaps {
		t.Run(pair.name, func(t *testing.T) {
			client := c.dial(c.nodes[i%3].name)
			for range overlapRounds() {
				round++
				first, second := fmt.Sprintf(pair.first, round), fmt.Sprintf(pair.second, round)
				mark := mustInfo(t, client, 0).HighWaterMark
				answers := pipeline(t, client, workload.NewAppend(0, "first", "Cantus-Write-Lock", first, "Cantus-High-Water-Mark", fmt.Sprint(mark)),
					workload.NewAppend(0, "second", "Cantus-Write-Lock", second, "Cantus-High-Water-Mark", fmt.Sprint(mark)))
				checkOneWins(t, round, mark, answers, second)
			}
		})
	}
	c.checkSame(t, map[int][]*nats.Msg{0: drain(t, c.dial(c.nodes[0].name), 0)})
}

// TestClusterOverlapWhileLeadersChange does so while leadership is transferred
// from node to node and leaders are killed. Either transaction may win then,
// since a request may have to be sent again; but exactly one does.
func TestClusterOverlapWhileLeadersChange(t *testing.T) {
	c := startCluster(t, 3, "--partitions", "1", "--msg-id-window", "30m")
	changes, stop := changeLeaders(t, c)
	won := map[string]int{}
	round := 0
	for i, pair := range overlaps {
		t.Run(pair.name, func(t *testing.T) {
			client := c.dial(c.nodes[i%3].name)
			for range overlapRounds() {
				round++
				won[c.contest(t, client, round, fmt.Sprintf(pair.first, round), fmt.Sprintf(pair.second, round))]++
			}
		})
	}
	for client := c.dial(c.nodes[0].name); changes() == 0; { // the rounds were quicker than the first change
		round++
		won[c.contest(t, client, round, fmt.Sprintf(overlaps[0].first, round), fmt.Sprintf(overlaps[0].second, round))]++
	}
	stop()
	t.Logf("%d changes of the leader; the first won %d rounds, the second %d", changes(), won["first"], won["second"])
	c.awaitPlaced()
	log := drain(t, c.dial(c.nodes[0].name), 0)
	if len(log) != round {
		t.Errorf("%d rounds left %d transactions", round, len(log))
	}
	c.checkSame(t, map[int][]*nats.Msg{0: log})
}

// contest runs one round, and returns which message won.
func (c *cluster) contest(t *testing.T, client *workload.Client, round int, first, second string) string {
	t.Helper()
	var mark uint64
	if err := c.until(t.Context(), "answered", func(ctx context.Context) string {
		info, err := client.Info(ctx, 0)
		if mark = info.HighWaterMark; err != nil {
			return err.Error()
		}
		return ""
	}); err != nil {
		t.Fatal(err)
	}
	names, locks := []string{"first", "second"}, []string{first, second}
	msgs := make([]*nats.Msg, 2)
	for i, name := range names {
		msgs[i] = workload.NewAppend(0, name, "Cantus-Write-Lock", locks[i], "Cantus-High-Water-Mark", fmt.Sprint(mark),
			"Nats-Msg-Id", fmt.Sprintf("%s-%d", name, round))
	}
	answers, err := c.sendAll(t.Context(), client, msgs...)
	if err != nil {
		t.Fatalf("round %d: %v", round, err)
	}
	for i, name := range names {
		won, lost := answers[i], answers[1-i]
		if won.Error != nil {
			continue
		}
		if e := lost.Error; won.Txid != mark+1 || e == nil || e.Reason != "conflict" || e.Txid != won.Txid || e.Lock != locks[1-i] {
			t.Fatalf("round %d at mark %d: %s was answered %v, the other %v", round, mark, name, won, lost)
		}
		return name
	}
	t.Fatalf("round %d at mark %d: nobody won: %v", round, mark, answers)
	return ""
}

// sendAll sends messages back to back, and repeats each until its outcome is
// known.
func (c *cluster) sendAll(ctx context.Context, client *workload.Client, msgs ...*nats.Msg) ([]workload.Reply, error) {
	answers := make([]workload.Reply, len(msgs))
	var sending errgroup.Group
	for i, m := range msgs {
		inbox := nats.NewInbox()
		sub, err := client.Conn.SubscribeSync(inbox)
		if err != nil {
			return nil, err
		}
		defer sub.Unsubscribe() // it fails only on a closed connection
		if err := client.Conn.PublishMsg(&nats.Msg{Subject: m.Subject, Reply: inbox, Header: m.Header, Data: m.Data}); err != nil {
			return nil, err
		}
		sending.Go(func() (err error) {
			sent := false
			answers[i], _, err = workload.Retry(ctx, workload.Backoff{}, client, func() (workload.Reply, error) {
				if sent {
					return client.AppendMsg(ctx, m)
				}
				sent = true
				return client.AnswerTo(ctx, sub)
			})
			return err
		})
	}
	return answers, sending.Wait()
}

// changeLeaders changes the leader of partition 0 until stop is called: it
// transfers leadership, or kills the leader. changes returns how often.
func changeLeaders(t *testing.T, c *cluster) (changes func() int, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	watcher := c.dial(c.nodes[0].name)
	done := make(chan error, 1)
	var count atomic.Int64
	go func() { done <- c.changeLeader(ctx, watcher, &count) }()
	return func() int { return int(count.Load()) }, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func (c *cluster) changeLeader(ctx context.Context, watcher *workload.Client, count *atomic.Int64) error {
	for {
		from, err := c.leader(ctx, watcher, 0)
		if err != nil {
			return ignoreEnd(ctx, err)
		}
		to := c.others(from)[rand.IntN(2)]
		if kill := rand.IntN(3) == 0; kill {
			from.kill()
			if err := from.start(); err != nil {
				return err
			}
		} else if err := c.transfer(ctx, watcher, to); err != nil {
			return ignoreEnd(ctx, err)
		}
		count.Add(1)
	}
}

// transfer transfers partition 0 to a node, and returns when the node leads.
func (c *cluster) transfer(ctx context.Context, client *workload.Client, to *node) error {
	return c.until(ctx, "led by "+to.name, func(ctx context.Context) string {
		if info, err := client.Info(ctx, 0); err == nil && info.Leader == to.name {
			return ""
		}
		m := nats.NewMsg("cantus.admin.cluster.transfer")
		m.Data = fmt.Appendf(nil, `{"partition":0,"to":%q}`, to.name)
		answer, err := client.Request(ctx, m)
		return fmt.Sprintf("%v %v", answer, err)
	})
}

// ignoreEnd drops the error of a command that was stopped.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil //nolint:nilerr // that is what it is for
	}
	return err
}
