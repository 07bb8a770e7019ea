package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/internal/workload"
)

// A session with hundreds of transactions in flight outlives the leaders that
// are killed under it: the log has each of its numbers once and in order.
func TestASessionOutlivesKilledLeaders(t *testing.T) {
	c := startCluster(t, 3)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	api, err := client.New(c.dial("n1").Conn, client.Options{MaxInFlight: 500})
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()
	watcher := c.dial("n2")
	w := &sessionWriter{s: api.NewSession(0), receipts: newCounter(), budget: make(chan struct{}, perKill), over: make(chan struct{})}
	group, ctx := errgroup.WithContext(t.Context())
	group.Go(func() error { return w.run(ctx) })
	group.Go(func() error {
		defer close(w.over)
		for i := range testkit.Sized(3, 20, 1000) {
			if err := w.killOne(ctx, c, watcher, random); err != nil {
				return fmt.Errorf("kill %d: %w", i+1, err)
			}
		}
		return w.goOn(ctx, perKill/2)
	})
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	c.awaitPlaced()
	log := drain(t, c.dial("n1"), 0)
	if len(log) != len(w.txids) {
		t.Errorf("the log has %d transactions, and the session %d", len(log), len(w.txids))
	}
	for i, m := range log {
		number := fmt.Sprint(i + 1)
		if got := m.Header.Get("Cantus-Session-Seq"); got != number || string(m.Data) != number {
			t.Fatalf("txid %d is number %s with the payload %s, want %s", i+1, got, m.Data, number)
		}
		// A repeat of a number that is no longer remembered has no txid.
		if i < len(w.txids) && w.txids[i] != uint64(i+1) && w.txids[i] != 0 {
			t.Fatalf("the receipt of number %s says txid %d", number, w.txids[i])
		}
	}
	t.Logf("%d transactions", len(log))
	c.checkSame(t, map[int][]*nats.Msg{0: log})
}

// perKill is how many transactions are appended around each kill.
const perKill = 1000

// sessionWriter appends to a session without waiting, all with one write lock,
// until it is over.
type sessionWriter struct {
	s        *client.Session
	receipts *counter
	budget   chan struct{} // as many transactions as may be appended
	over     chan struct{}
	txids    []uint64 // of the receipts, in the order of the numbers
}

func (w *sessionWriter) run(ctx context.Context) error {
	futures := make(chan *client.Future, 1000)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		for f := range futures {
			r, err := f.Wait(ctx)
			if err != nil {
				return fmt.Errorf("number %d: %w", f.SessionSeq(), err)
			}
			w.txids = append(w.txids, r.Txid)
			w.receipts.add()
		}
		return nil
	})
	group.Go(func() error {
		defer close(futures)
		for n := 1; ; n++ {
			select {
			case <-w.over:
				return nil
			case <-ctx.Done():
				return nil
			case <-w.budget:
			}
			f, err := w.s.Append(ctx, &client.Request{Payload: fmt.Append(nil, n), WriteLocks: []string{"counter"}})
			if err != nil {
				return err
			}
			futures <- f
		}
	})
	return group.Wait()
}

// goOn has more transactions appended, and returns when n got their receipts.
func (w *sessionWriter) goOn(ctx context.Context, n int) error {
	for len(w.budget) < cap(w.budget) {
		w.budget <- struct{}{}
	}
	return w.receipts.reach(ctx, w.receipts.now()+n)
}

// killOne kills the leader amid the load, and starts it again once another node
// leads.
func (w *sessionWriter) killOne(ctx context.Context, c *cluster, watcher *workload.Client, random *rand.Rand) error {
	leader, err := c.leader(ctx, watcher, 0)
	if err == nil {
		err = w.goOn(ctx, 1+random.IntN(perKill/2))
	}
	if err != nil {
		return err
	}
	leader.kill()
	other := c.awaitOther(ctx, watcher, leader)
	return errors.Join(other, leader.start(), c.awaitReady(ctx, watcher))
}
