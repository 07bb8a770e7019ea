package client_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/client"
)

// balances is a view: the last amount written for each name. Transactions are
// "name=amount", separated by spaces.
type balances struct {
	mu  sync.Mutex
	all map[string]int
}

func (b *balances) apply(_ context.Context, tx *client.Transaction) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range strings.Fields(string(tx.Payload)) {
		name, amount, _ := strings.Cut(f, "=")
		n, err := strconv.Atoi(amount)
		if err != nil {
			return err
		}
		b.all[name] = n
	}
	return nil
}

func (b *balances) get(name string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all[name]
}

// newTransactor returns a transactor with balances and a connection of its own.
func newTransactor(t testing.TB, n *broker.Node, opts client.TransactorOptions) (*client.Transactor, *balances, *client.Follower) {
	t.Helper()
	c := newClient(t, connect(t, n), client.Options{})
	b := &balances{all: map[string]int{}}
	f, err := c.NewFollower(map[int]uint64{0: 0}, b.apply, client.FollowOptions{})
	if err != nil {
		t.Fatal(err)
	}
	run(t, f)
	transactor, err := client.NewTransactor(c, f, opts)
	if err != nil {
		t.Fatal(err)
	}
	return transactor, b, f
}

// While the function runs, what it has read changes, and the view follows.
func TestMarkIsTakenBeforeTheFunctionRuns(t *testing.T) {
	n := openNode(t, broker.Options{Partitions: 1})
	transactor, view, f := newTransactor(t, n, client.TransactorOptions{})
	other := newClient(t, connect(t, n), client.Options{})
	runs := 0
	_, err := transactor.Transact(soon(t), 0, func(req *client.Request) error {
		req.WriteLock("a")
		req.Set("", fmt.Appendf(nil, "a=%d", view.get("a")+1))
		if runs++; runs > 1 {
			return nil
		}
		r := mustAppend(t, other, client.Request{AppendLocks: []string{"a"}, Payload: []byte("a=10")})
		return f.Wait(soon(t), 0, r.Txid)
	})
	if err != nil {
		t.Fatal(err)
	}
	if txs := readAll(t, other, 0); len(txs) != 2 || string(txs[1].Payload) != "a=11" || runs != 2 {
		t.Errorf("after %d runs the last of %d transactions is %q", runs, len(txs), txs[len(txs)-1].Payload)
	}
}

func TestTransactAppendsNothingWithoutData(t *testing.T) {
	n := openNode(t, broker.Options{Partitions: 1})
	transactor, _, _ := newTransactor(t, n, client.TransactorOptions{})
	mine := errors.New("mine")
	_, err := transactor.Transact(soon(t), 0, func(req *client.Request) error {
		req.Set("", []byte("a=1"))
		return mine
	})
	wantErr(t, err, mine)
	r, err := transactor.Transact(soon(t), 0, func(req *client.Request) error {
		req.WriteLock("a")
		return nil
	})
	wantErr(t, err, client.ErrNothing)
	if r != (client.Receipt{}) {
		t.Errorf("%+v", r)
	}
	if txs := readAll(t, newClient(t, connect(t, n), client.Options{}), 0); len(txs) > 0 {
		t.Errorf("%d transactions in the log", len(txs))
	}
}

func TestTransactReturnsWhenTheViewHoldsIt(t *testing.T) {
	n := openNode(t, broker.Options{Partitions: 1})
	transactor, view, f := newTransactor(t, n, client.TransactorOptions{WaitApplied: true})
	for i := range 50 {
		r, err := transactor.Transact(soon(t), 0, func(req *client.Request) error {
			req.WriteLock("a")
			req.Set("set", fmt.Appendf(nil, "a=%d", i))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if view.get("a") != i || f.Applied(0) < r.Txid {
			t.Fatalf("committed as %+v, and the view is at %d with %d", r, f.Applied(0), view.get("a"))
		}
	}
}

// stale is a view that says it contains nothing, even after a wait.
type stale struct{ waited atomic.Int64 }

func (s *stale) Applied(int) uint64                            { return 0 }
func (s *stale) Wait(_ context.Context, _ int, _ uint64) error { s.waited.Add(1); return nil }

// stuck is a view that gets no transactions.
type stuck struct{ stale }

func (s *stuck) Wait(ctx context.Context, _ int, _ uint64) error { <-ctx.Done(); return ctx.Err() }

func TestTransactGivesUp(t *testing.T) {
	_, c := newLog(t)
	mustAppend(t, c, client.Request{WriteLocks: []string{"a"}})
	compute := func(req *client.Request) error {
		req.WriteLock("a")
		req.Set("", nil)
		return nil
	}
	view := &stale{}
	transactor, err := client.NewTransactor(c, view, client.TransactorOptions{MaxAttempts: 5})
	if err != nil {
		t.Fatal(err)
	}
	var conflict *client.ConflictError
	_, err = transactor.Transact(soon(t), 0, compute)
	wantErr(t, err, client.ErrAttempts)
	if !errors.As(err, &conflict) || conflict.Txid != 1 || view.waited.Load() != 5 {
		t.Errorf("%v after %d waits", err, view.waited.Load())
	}

	// On a slow machine the time may end before the view is waited for.
	for timeout := 50 * time.Millisecond; ; timeout *= 2 {
		transactor, err = client.NewTransactor(c, &stuck{}, client.TransactorOptions{Timeout: timeout})
		if err != nil {
			t.Fatal(err)
		}
		_, err = transactor.Transact(soon(t), 0, compute)
		wantErr(t, err, context.DeadlineExceeded)
		if !errors.Is(err, client.ErrUnknown) || timeout > 10*time.Second {
			break
		}
	}
	wantErr(t, err, client.ErrConflict)

	for timeout := 50 * time.Millisecond; ; timeout *= 2 {
		transactor, err = client.NewTransactor(c, &stuck{}, client.TransactorOptions{Timeout: timeout, WaitApplied: true})
		if err != nil {
			t.Fatal(err)
		}
		r, err := transactor.Transact(soon(t), 0, func(req *client.Request) error { req.Set("", nil); return nil })
		wantErr(t, err, context.DeadlineExceeded)
		if errors.Is(err, client.ErrUnknown) && timeout < 10*time.Second {
			continue
		}
		if r.Txid < 2 {
			t.Errorf("committed, and the receipt is %+v", r)
		}
		break
	}
	for _, o := range []client.TransactorOptions{{MaxAttempts: -1}, {Timeout: -1}} {
		_, err = client.NewTransactor(c, view, o)
		wantErr(t, err, client.ErrOptions)
	}
}
