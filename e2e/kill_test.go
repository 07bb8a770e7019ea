package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// counter counts what many add to, and lets one wait for a count.
type counter struct {
	mu    sync.Mutex
	count int
	added chan struct{} // capacity 1: the count has risen
}

func newCounter() *counter { return &counter{added: make(chan struct{}, 1)} }

func (c *counter) add() {
	c.mu.Lock()
	c.count++
	c.mu.Unlock()
	select {
	case c.added <- struct{}{}:
	default:
	}
}

// reach returns nil when the count is at least want.
func (c *counter) reach(ctx context.Context, want int) error {
	for {
		c.mu.Lock()
		count := c.count
		c.mu.Unlock()
		if count >= want {
			return nil
		}
		select {
		case <-c.added:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// replayKilled runs replays side by side and kills their node under them;
// after every fifth kill it also stops the node cleanly, which leaves another
// sort of directory to the kills that follow.
func replayKilled(t *testing.T, n *node, kills int, replays ...*replay) {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	reached, steps := newCounter(), 0
	for _, r := range replays {
		r.reached = reached
		steps += len(r.steps)
	}
	at := make([]int, kills+kills/5)
	for i := range at {
		at[i] = 1 + random.IntN(steps-1)
	}
	slices.Sort(at)

	group, ctx := errgroup.WithContext(t.Context())
	for _, r := range replays {
		group.Go(func() error { return r.run(ctx) })
	}
	group.Go(func() error {
		for i, count := range at {
			if err := reached.reach(ctx, count); err != nil {
				return err
			}
			end := killAndStart
			if i%6 == 5 {
				end = stopAndStart
			}
			if err := end(n, random); err != nil {
				return fmt.Errorf("end %d: %w", i, err)
			}
		}
		return nil
	})
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	resent := 0
	for _, r := range replays {
		t.Logf("partition %d: %d transactions, %d conflicts, %d requests sent again, %d of them had been committed",
			r.partition, len(r.steps), len(r.refusals), r.resent, r.duplicates)
		resent += r.resent
	}
	if resent == 0 {
		t.Errorf("nothing had to be sent again: %d kills did not meet the load", kills)
	}
	for _, r := range replays {
		r.repeat(t, random)
		r.check(t)
	}
	checkDigest(t, n, replays[0].clients[0])
}

// repeat sends some of the acknowledged requests once more: whatever has been
// done to the node since, the answer is the first one, and nothing is added.
func (r *replay) repeat(t *testing.T, random *rand.Rand) {
	t.Helper()
	for range 200 {
		i := random.IntN(len(r.steps))
		again, err := r.clients[0].appendMsg(t.Context(), r.message(i, r.views[0]))
		if first := r.acked[i]; err != nil || again.Txid != first.Txid || again.Time != first.Time || !again.Duplicate {
			t.Fatalf("commit %s was acknowledged as %v at %s, and once more as %v at %s, %v",
				r.steps[i].id(), first, first.Time, again, again.Time, err)
		}
	}
}

// killAndStart kills the node and starts it again; one time in four that
// start is killed too, at any moment of it.
func killAndStart(n *node, random *rand.Rand) error {
	n.kill()
	if random.IntN(4) == 0 {
		p, err := run(n.serveArgs()...)
		if err != nil {
			return err
		}
		// Not a wait for anything: this is where the kill falls.
		moment := time.Duration(random.Int64N(int64(200 * time.Millisecond)))
		select {
		case <-time.After(moment):
		case <-p.done:
			return fmt.Errorf("the start after a kill ended by itself: %w\n%s", p.err, p.stderr)
		}
		p.kill()
	}
	return n.start()
}

func stopAndStart(n *node, _ *rand.Rand) error { return errors.Join(n.stop(), n.start()) }

// startKillable starts a node that keeps its port, and knows message ids for
// longer than any machine needs for the test.
func startKillable(t *testing.T) *node {
	t.Helper()
	return startNode(t, t.TempDir(), "--listen", fixedPort(t), "--msg-id-window", "30m")
}

// TestHistoryReplayKilled replays the history while the node is killed 20
// times under load, and now and then once more while it starts. What was
// acknowledged must be there, once, under the txid that was given; a request
// that was not answered is sent again and gets the txid of the first.
func TestHistoryReplayKilled(t *testing.T) {
	t.Parallel()
	n := startKillable(t)
	replayKilled(t, n, 20, newReplay(t, loadHistory(t), n, 0))
}

// TestHistoryReplayShared spreads the paths over four partitions, which share
// one write-ahead log, and kills the node under all of them.
func TestHistoryReplayShared(t *testing.T) {
	t.Parallel()
	n := startKillable(t)
	var replays []*replay
	for p, share := range loadHistory(t).shares(t, 4) {
		replays = append(replays, newReplay(t, share, n, p))
	}
	replayKilled(t, n, 5, replays...)
}
