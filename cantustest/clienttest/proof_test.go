package client_test

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/cantustest"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/internal/proof"
	"github.com/cantuslog/cantus/internal/testkit"
)

// oneNode is a log of one node. It fails by a restart.
type oneNode struct{ *cantustest.Log }

func (o oneNode) Fail(ctx context.Context) error { return o.Restart(ctx) }

func newOneNode(t *testing.T) (context.Context, oneNode) {
	limit := patience
	if testkit.Long() {
		limit = 30 * time.Minute
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx, oneNode{cantustest.New(t, cantustest.Options{})}
}

func TestNothingIsComputedOnAStaleState(t *testing.T) {
	p := proof.Probe{Writers: 4, Each: 40, Failures: 2}
	if testkit.Long() {
		p = proof.Probe{Writers: 10, Each: 1000, Failures: 20}
	}
	ctx, log := newOneNode(t)
	if err := p.Run(ctx, log); err != nil {
		t.Fatal(err)
	}
}

func TestReadLocksKeepWritersFromSkew(t *testing.T) {
	rounds := 20
	if testkit.Long() {
		rounds = 10_000
	}
	for _, locked := range []bool{true, false} {
		t.Run(fmt.Sprintf("read locks %v", locked), func(t *testing.T) {
			ctx, log := newOneNode(t)
			broken, err := proof.Skew{Rounds: rounds, ReadLocks: locked}.Run(ctx, log)
			if err != nil {
				t.Fatal(err)
			}
			if locked && broken > 0 {
				t.Errorf("the limit was broken %d times", broken)
			}
			if !locked && broken < rounds {
				t.Errorf("without read locks the limit held %d times of %d: the test does not see", rounds-broken, rounds)
			}
		})
	}
}

// Two writers with conditions on two names are in each other's way if they have
// both names in common, and only then.
func TestConditionsKeepWritersFromSkew(t *testing.T) {
	for _, unchecked := range []bool{false, true} {
		t.Run(fmt.Sprintf("unchecked %v", unchecked), func(t *testing.T) {
			const workers = 20
			rounds := testkit.Sized(5, 50, 500)
			if unchecked {
				rounds = 5
			}
			ctx, log := newOneNode(t)
			broken, err := proof.Conditions{Workers: workers, Rounds: rounds, Unchecked: unchecked}.Run(ctx, log)
			if err != nil {
				t.Fatal(err)
			}
			want := 0
			if unchecked {
				want = workers * rounds
			}
			if broken != want {
				t.Errorf("in %d of %d rounds both writers took both names; want %d", broken, workers*rounds, want)
			}
		})
	}
}

// A follower that is a million transactions behind catches up, and the live
// memory does not depend on how far it is behind.
func TestCatchingUpTakesBoundedMemory(t *testing.T) {
	count := 20_000
	if testkit.Long() {
		count = 1_000_000
	}
	n := openNode(t, broker.Options{Partitions: 1})
	c := newClient(t, connect(t, n), client.Options{})
	fillUp(t, c, count)
	const buffer, slack = 1 << 20, 64 << 20 // what a node and a client take anyway
	before := liveHeap()
	handled, most := 0, uint64(0)
	for tx, err := range c.All(t.Context(), 0, 0, client.FollowOptions{BufferBytes: buffer}) {
		if err != nil {
			t.Fatal(err)
		}
		if handled++; tx.Txid != uint64(handled) {
			t.Fatalf("txid %d came where %d was next", tx.Txid, handled)
		}
		if handled%(count/10) == 0 {
			most = max(most, liveHeap())
		}
		if handled == count {
			break
		}
	}
	if most > before+slack {
		t.Errorf("%d MiB were alive before, and up to %d MiB while catching up", before>>20, most>>20)
	}
	t.Logf("%d MiB before, at most %d MiB while catching up", before>>20, most>>20)
}

// fillUp appends count transactions of 256 bytes with a lock.
func fillUp(t *testing.T, c *client.Client, count int) {
	t.Helper()
	futures := make(chan *client.Future, 8192)
	appended := make(chan error, 1)
	go func() {
		defer close(futures)
		req := &client.Request{Payload: make([]byte, 256), AppendLocks: []string{""}}
		for i := range count {
			req.AppendLocks[0] = fmt.Sprintf("account.%d", i%1000)
			f, err := c.AppendAsync(context.Background(), req)
			if err != nil {
				appended <- err
				return
			}
			futures <- f
		}
		appended <- nil
	}()
	for f := range futures {
		if _, err := f.Wait(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if err := <-appended; err != nil {
		t.Fatal(err)
	}
}

func liveHeap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
