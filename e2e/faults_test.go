package e2e_test

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/internal/workload"
)

// gate blocks callers whose number is not released yet.
type gate struct {
	mu       sync.Mutex
	released int
	more     chan struct{} // closed at the next release, then replaced
}

func newGate() *gate { return &gate{more: make(chan struct{})} }

// release lets all numbers below pass.
func (g *gate) release(below int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.released = max(g.released, below)
	close(g.more)
	g.more = make(chan struct{})
}

// pass blocks until the number is released; a nil gate is open.
func (g *gate) pass(ctx context.Context, number int) error {
	for g != nil {
		g.mu.Lock()
		open, more := number < g.released, g.more
		g.mu.Unlock()
		if open {
			break
		}
		select {
		case <-more:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// fault is something that happens to a node: it begins, lasts for a while and
// is healed.
type fault struct {
	name        string
	begin, heal func(*node) error
	lasts       time.Duration
}

// killed is a node that dies and is started again at once.
var killed = fault{name: "killed", begin: func(n *node) error { n.kill(); return nil }, heal: (*node).start}

// paused is a node whose process is stopped for a while without noticing it.
var paused = fault{name: "paused", begin: (*node).pause, heal: (*node).resume}

// cutOff is a node without a connection to the others.
func (c *cluster) cutOff() fault {
	return fault{
		name:  "cut off",
		begin: func(n *node) error { c.wires.set(n.name, true); return nil },
		heal:  func(n *node) error { c.wires.set(n.name, false); return nil },
	}
}

// lasting returns the same fault with another duration.
func (f fault) lasting(d time.Duration) fault {
	f.lasts = d
	return f
}

// strike applies the fault to a node. It calls halfway when the fault has
// begun, and before when it is about to be healed.
func (f fault) strike(ctx context.Context, n *node, halfway, before func()) error {
	if err := f.begin(n); err != nil {
		return fmt.Errorf("node %s is to be %s: %w", n.name, f.name, err)
	}
	halfway()
	select {
	case <-time.After(f.lasts):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	before()
	if err := f.heal(n); err != nil {
		return fmt.Errorf("node %s was %s: %w", n.name, f.name, err)
	}
	return nil
}

// replayFaults runs a replay while one leader after the other gets the fault.
// The history is split into as many parts as there are faults: each fault
// begins in the first third of its part, the second third is written meanwhile,
// and the last after the node is back.
func replayFaults(t *testing.T, c *cluster, r *replay, count int, faults ...fault) {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	r.gate = newGate()
	watcher := c.dial(c.nodes[0].name)
	group, ctx := errgroup.WithContext(t.Context())
	group.Go(func() error { return r.run(ctx) })
	group.Go(func() error {
		for i := range count {
			from, to := i*len(r.commits)/count, (i+1)*len(r.commits)/count
			part := (to - from) / 3
			r.gate.release(from + part)
			if err := r.sent.reach(ctx, from+random.IntN(part)); err != nil {
				return err
			}
			n, err := c.leader(ctx, watcher, r.partition)
			if err != nil {
				return fmt.Errorf("fault %d: %w", i, err)
			}
			f, began := faults[i%len(faults)], time.Now()
			if err := f.strike(ctx, n, func() { r.gate.release(to - part) }, func() { r.gate.release(to) }); err != nil {
				return fmt.Errorf("fault %d: %w", i, err)
			}
			t.Logf("fault %d: leader %s %s for %v", i, n.name, f.name, time.Since(began).Round(time.Millisecond))
		}
		return nil
	})
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d transactions, %d conflicts, %d requests sent again, %d of them had been committed",
		len(r.steps), len(r.refusals), r.resent, r.duplicates)
	if r.resent == 0 {
		t.Errorf("nothing had to be sent again: %d faults did not meet the load", count)
	}
	c.awaitPlaced()
	r.repeat(t, random)
	r.check(t)
	log := r.drained(t)
	c.checkSame(t, map[int][]*nats.Msg{r.partition: log})
}

// TestClusterHistoryReplay replays the history against three nodes while
// their leaders are killed, paused and cut off in turn.
func TestClusterHistoryReplay(t *testing.T) {
	c := newWiredCluster(t, 3, "--msg-id-window", "30m", "--partitions", "2")
	c.startAll()
	c.awaitPlaced()
	c.record(2, 3, 30*time.Minute, 0)
	h, count, lasts := loadHistory(t), 30, 10*time.Second
	if !testkit.Long() {
		h, count, lasts = h.head(t, 1500), 3, 3*time.Second
	}
	r := newReplayOf(t, h, workload.Backoff{}, c.writers(), 0)
	replayFaults(t, c, r, count, killed, paused.lasting(lasts), c.cutOff().lasting(lasts))
}

// TestClusterHistoryReplayFive does so with five nodes, each of which holds
// some of the partitions.
func TestClusterHistoryReplayFive(t *testing.T) {
	testkit.OnlyLong(t, "minutes of a cluster: make cluster")
	h, count, lasts := loadHistory(t), 10, 10*time.Second
	c := startCluster(t, 5, "--msg-id-window", "30m", "--partitions", "5", "--replicas", "5")
	c.record(5, 5, 30*time.Minute, 0)
	r := newReplayOf(t, h, workload.Backoff{}, c.writers(), 0)
	replayFaults(t, c, r, count, killed, paused.lasting(lasts))
}

// writers returns a client for each writer, on different nodes.
func (c *cluster) writers() (clients []*workload.Client) {
	for i := range writers {
		client := c.dial(c.nodes[i%len(c.nodes)].name)
		client.Limit = cmp.Or(c.writerLimit, client.Limit)
		clients = append(clients, client)
	}
	return clients
}
