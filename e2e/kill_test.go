package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cantuslog/cantus/internal/ports"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/internal/workload"
)

// counter is a count that many goroutines add to, and that others can wait for.
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

func (c *counter) now() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count
}

// reach blocks until the count is at least want.
func (c *counter) reach(ctx context.Context, want int) error {
	for c.now() < want {
		select {
		case <-c.added:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// errOver ends the killing when the replays are over.
var errOver = errors.New("the replays are over")

// killer kills the node under replays until want kills have met the load: after
// each of them, requests went unanswered and were sent again.
type killer struct {
	node    *node
	random  *rand.Rand
	want    int
	between int // most requests from one kill to the next

	sent  *counter // requests, repeats aside
	again *counter // requests that were sent again because no answer came

	kills, met, stops int
}

// run kills until enough kills have met the load. After every fourth it also
// stops the node cleanly, which leaves another kind of directory to the next
// kills.
//
// A kill falls at any moment up to two milliseconds after a request was sent:
// an answer alone would be a bad moment to wait for, because nothing may be on
// its way just then.
func (k *killer) run(ctx context.Context) error {
	for {
		again := k.again.now()
		if err := k.sent.reach(ctx, k.sent.now()+1+k.random.IntN(k.between)); err != nil {
			return err
		}
		if k.kills > 0 && k.kills%4 == 0 && k.stops < k.kills/4 {
			k.stops++
			if err := errors.Join(k.node.stop(), k.node.start()); err != nil {
				return fmt.Errorf("stop %d: %w", k.stops, err)
			}
			continue
		}
		time.Sleep(time.Duration(k.random.Int64N(int64(2 * time.Millisecond)))) // where the kill falls
		k.kills++
		if err := killAndStart(k.node, k.random); err != nil {
			return fmt.Errorf("kill %d: %w", k.kills, err)
		}
		if err := k.sent.reach(ctx, k.sent.now()+writers); err != nil {
			return err
		}
		if k.again.now() > again {
			k.met++
		}
		if k.met == k.want {
			return nil
		}
	}
}

// replayKilled runs replays concurrently, and kills their node meanwhile.
func replayKilled(t *testing.T, n *node, kills int, replays ...*replay) {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	k := &killer{node: n, random: random, want: kills, sent: newCounter(), again: newCounter()}
	steps := 0
	for _, r := range replays {
		r.sent, r.again = k.sent, k.again
		steps += len(r.steps)
	}
	k.between = 2 * steps / (3 * kills) // on average a third of a kill's share, so that one may miss

	group, ctx := errgroup.WithContext(t.Context())
	killing, over := context.WithCancelCause(ctx)
	group.Go(func() error {
		defer over(errOver)
		running, ctx := errgroup.WithContext(ctx)
		for _, r := range replays {
			running.Go(func() error { return r.run(ctx) })
		}
		return running.Wait()
	})
	group.Go(func() error {
		if err := k.run(killing); !errors.Is(err, errOver) {
			return err
		}
		return nil
	})
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, r := range replays {
		t.Logf("partition %d: %d transactions, %d conflicts, %d requests sent again, %d of them had been committed",
			r.partition, len(r.steps), len(r.refusals), r.resent, r.duplicates)
	}
	t.Logf("%d kills, %d of them with requests unanswered, and %d clean stops", k.kills, k.met, k.stops)
	if k.met < kills {
		t.Errorf("%d kills met requests without an answer, want %d", k.met, kills)
	}
	for _, r := range replays {
		r.repeat(t, random)
		r.check(t)
	}
	checkDigest(t, n, replays[0].clients[0])
}

// repeat sends some of the acknowledged requests again: the answer must be the
// first one, whatever happened to the node since, and nothing may be appended.
func (r *replay) repeat(t *testing.T, random *rand.Rand) {
	t.Helper()
	for range 200 {
		i := random.IntN(len(r.steps))
		again, _, err := workload.Retry(t.Context(), r.service, r.clients[0], func() (workload.Reply, error) {
			return r.clients[0].AppendMsg(t.Context(), r.message(i, r.views[0]))
		})
		if first := r.acked[i]; err != nil || again.Txid != first.Txid || again.Time != first.Time || !again.Duplicate {
			t.Fatalf("commit %s was acknowledged as %v at %s, and once more as %v at %s, %v",
				r.steps[i].id(), first, first.Time, again, again.Time, err)
		}
	}
}

// killAndStart kills the node and starts it again. One time in four it also
// kills that start, at a random moment.
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

// startKillable starts a node that keeps its port, and remembers message ids
// for longer than the test takes on any machine.
func startKillable(t *testing.T) *node {
	t.Helper()
	return startNode(t, t.TempDir(), "--listen", ports.Free(t), "--msg-id-window", "30m")
}

// sampled returns how much of the history is replayed, and how often a node is
// killed meanwhile: 20 times at full length.
func sampled(t *testing.T, h *history) (_ *history, kills int) {
	t.Helper()
	if testkit.Long() {
		return h, 20
	}
	return h.head(t, 3000), 5
}

// TestHistoryReplayKilled replays the history while the node is killed again
// and again under load, and now and then once more while it starts. What was
// acknowledged must be there, once, under the txid that was given; a request
// that was not answered is sent again and gets the txid of the first.
func TestHistoryReplayKilled(t *testing.T) {
	t.Parallel()
	testkit.NotShort(t, "a process is killed again and again")
	n := startKillable(t)
	h, kills := sampled(t, loadHistory(t))
	replayKilled(t, n, kills, newReplay(t, h, n, 0))
}

// TestHistoryReplayShared spreads the paths over four partitions, which share
// one write-ahead log, and kills the node during all four replays.
func TestHistoryReplayShared(t *testing.T) {
	t.Parallel()
	testkit.NotShort(t, "a process is killed again and again")
	n := startKillable(t)
	h, kills := sampled(t, loadHistory(t))
	var replays []*replay
	for p, share := range h.shares(t, 4) {
		replays = append(replays, newReplay(t, share, n, p))
	}
	replayKilled(t, n, kills, replays...)
}
