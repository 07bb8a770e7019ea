package client_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/cantuslog/cantus/client"
)

func TestBatchHandlerGetsWhatWaits(t *testing.T) {
	_, c := newLog(t)
	const count, most = 1000, 64
	appendMany(t, c, 0, count)
	next, calls := uint64(1), 0
	f, err := c.NewBatchFollower(map[int]uint64{0: 0}, func(_ context.Context, txs []*client.Transaction) error {
		if calls++; len(txs) == 0 || len(txs) > most {
			t.Errorf("%d transactions at once", len(txs))
		}
		for _, tx := range txs {
			if tx.Txid != next {
				t.Errorf("txid %d came where %d was next", tx.Txid, next)
			}
			next++
		}
		return nil
	}, client.FollowOptions{MaxBatch: most})
	if err != nil {
		t.Fatal(err)
	}
	run(t, f)
	if err := f.Wait(soon(t), 0, count); err != nil {
		t.Fatal(err)
	}
	if calls > count/2 {
		t.Errorf("%d calls for %d transactions that waited", calls, count)
	}
}

// A batch contains one transaction that fails. Every other one is applied
// exactly once, and OnError is asked about the failing one only.
func TestAFailedBatchIsHandledOneByOne(t *testing.T) {
	_, c := newLog(t)
	const count, poisoned = 100, 42
	appendMany(t, c, 0, count)
	poison := errors.New("poison")
	var applied, asked []uint64
	f, err := c.NewBatchFollower(map[int]uint64{0: 0}, func(_ context.Context, txs []*client.Transaction) error {
		for _, tx := range txs {
			if tx.Txid == poisoned {
				return poison
			}
		}
		for _, tx := range txs {
			applied = append(applied, tx.Txid)
		}
		return nil
	}, client.FollowOptions{OnError: func(tx *client.Transaction, err error, _ int) client.Decision {
		if !errors.Is(err, poison) {
			t.Errorf("asked about %v", err)
		}
		asked = append(asked, tx.Txid)
		return client.DecideSkip
	}})
	if err != nil {
		t.Fatal(err)
	}
	run(t, f)
	if err := f.Wait(soon(t), 0, count); err != nil {
		t.Fatal(err)
	}
	if len(asked) != 1 || asked[0] != poisoned || len(applied) != count-1 {
		t.Fatalf("asked about %v; %d applied", asked, len(applied))
	}
	for i, txid := range applied {
		want := uint64(i + 1)
		if want >= poisoned {
			want++
		}
		if txid != want {
			t.Fatalf("txid %d was applied where %d was next", txid, want)
		}
	}
}

func TestHandlerMovesItsFollower(t *testing.T) {
	_, c := newLog(t)
	appendMany(t, c, 0, 10)
	var seen []uint64
	f, err := c.NewFollower(map[int]uint64{0: 5}, func(_ context.Context, tx *client.Transaction) error {
		switch {
		case tx.Txid == 8 && len(seen) == 2:
			return &client.MovedError{After: 1} // backwards
		case tx.Txid == 4 && len(seen) == 4:
			return &client.MovedError{After: 8} // forwards
		}
		seen = append(seen, tx.Txid)
		return nil
	}, client.FollowOptions{})
	if err != nil {
		t.Fatal(err)
	}
	run(t, f)
	if err := f.Wait(soon(t), 0, 10); err != nil {
		t.Fatal(err)
	}
	want := []uint64{6, 7, 2, 3, 9, 10}
	if len(seen) != len(want) {
		t.Fatalf("seen %v, want %v", seen, want)
	}
	for i := range want {
		if seen[i] != want[i] {
			t.Fatalf("seen %v, want %v", seen, want)
		}
	}
}

// While a handler is retried, Progress has its error and the lag.
func TestProgressHasTheHandlersError(t *testing.T) {
	_, c := newLog(t)
	appendMany(t, c, 0, 10)
	poison := errors.New("poison")
	tried, repair := make(chan struct{}, 100), make(chan struct{})
	f, err := c.NewFollower(map[int]uint64{0: 0}, func(_ context.Context, tx *client.Transaction) error {
		if tx.Txid != 4 {
			return nil
		}
		select {
		case <-repair:
			return nil
		default:
			tried <- struct{}{}
			return poison
		}
	}, client.FollowOptions{
		OnError:    func(*client.Transaction, error, int) client.Decision { return client.DecideRetry },
		MinBackoff: time.Millisecond, MaxBackoff: time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	run(t, f)
	<-tried
	<-tried // the first has failed
	if g := f.Progress(0); !errors.Is(g.Err, poison) || g.Lag() != 7 || g.Applied != 3 {
		t.Errorf("%+v, lag %d", g, g.Lag())
	}
	close(repair)
	if err := f.Wait(soon(t), 0, 10); err != nil {
		t.Fatal(err)
	}
	if g := f.Progress(0); g.Err != nil || g.Lag() != 0 {
		t.Errorf("after the repair: %+v", g)
	}
}

// Move sets the position while the handler runs, while the follower has caught
// up, and while it does not run.
func TestMovedFromOutside(t *testing.T) {
	_, c := newLog(t)
	const count = 50
	appendMany(t, c, 0, count)
	var mu sync.Mutex
	var f *client.Follower
	last := uint64(0) // the handler's state
	f, err := c.NewFollower(map[int]uint64{0: 0}, func(ctx context.Context, tx *client.Transaction) error {
		mu.Lock()
		defer mu.Unlock()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if tx.Txid != last+1 {
			t.Errorf("txid %d came where %d was next", tx.Txid, last+1)
		}
		last = tx.Txid
		return nil
	}, client.FollowOptions{})
	if err != nil {
		t.Fatal(err)
	}
	move := func(after uint64) {
		mu.Lock()
		defer mu.Unlock()
		last = after
		if err := f.Move(0, after); err != nil {
			t.Fatal(err)
		}
	}
	move(7)
	run(t, f)
	for i := range 100 {
		move(uint64(i % count))
		if i%3 == 0 {
			if err := f.Wait(soon(t), 0, count); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := f.Wait(soon(t), 0, count); err != nil || last != count {
		t.Fatalf("at %d, %v", last, err)
	}
	wantErr(t, f.Move(1, 0), client.ErrNotFollowed)
}
