package proof

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/cantuslog/cantus/client"
)

// Skew is a test for write skew. Two writers read two accounts, whose sum must
// not become negative, and each withdraws from one of them. Both compute their
// transactions before either appends.
type Skew struct {
	Rounds int
	// ReadLocks makes the writers add read locks for what they read. Without
	// read locks the limit is violated, which shows that the test can detect
	// it.
	ReadLocks bool
}

// accounts is a view. A transaction is "name=amount" pairs, separated by
// spaces.
type accounts struct {
	mu  sync.Mutex
	all map[string]int
}

func (a *accounts) apply(_ context.Context, tx *client.Transaction) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, f := range strings.Fields(string(tx.Payload)) {
		name, amount, _ := strings.Cut(f, "=")
		n, err := strconv.Atoi(amount)
		if err != nil {
			return err
		}
		a.all[name] = n
	}
	return nil
}

func (a *accounts) get(name string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.all[name]
}

// skewed is one of the two writers.
type skewed struct {
	*writer
	view  *accounts
	mine  string
	other string
}

// Run runs the rounds. It returns the number of rounds in which the limit was
// violated.
func (s Skew) Run(ctx context.Context, log Log) (broken int, err error) {
	var two []*skewed
	defer func() {
		for _, w := range two {
			err = errors.Join(err, w.close())
		}
	}()
	for i := range 2 {
		w := &skewed{view: &accounts{all: map[string]int{}}, mine: fmt.Sprint(i), other: fmt.Sprint(1 - i)}
		if w.writer, err = newWriter(log, w.view.apply); err != nil {
			return 0, err
		}
		two = append(two, w)
	}
	for range s.Rounds {
		sum, err := s.round(ctx, two)
		if err != nil {
			return broken, err
		}
		if sum < 0 {
			broken++
		}
	}
	return broken, nil
}

// round sets the sum of the accounts to 100, lets both writers withdraw 100,
// and returns the new sum.
func (s Skew) round(ctx context.Context, two []*skewed) (sum int, err error) {
	last, err := two[0].app.Transact(ctx, 0, func(req *client.Request) error {
		req.WriteLock("0", "1")
		req.Set("", []byte("0=100 1=0"))
		return nil
	})
	if err != nil {
		return 0, err
	}
	if err := two[1].follower.Wait(ctx, 0, last.Txid); err != nil {
		return 0, err
	}
	var computed sync.WaitGroup
	computed.Add(2)
	group, running := errgroup.WithContext(ctx)
	for _, w := range two {
		group.Go(func() error { return w.withdraw(running, &computed, s.ReadLocks) })
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	// Each writer has applied its own transaction. The first waits for the
	// second's.
	if err := two[0].follower.Wait(ctx, 0, two[1].follower.Applied(0)); err != nil {
		return 0, err
	}
	return two[0].view.get("0") + two[0].view.get("1"), nil
}

// withdraw withdraws 100 if the sum allows it. After its first computation it
// waits until the other writer has also computed.
func (w *skewed) withdraw(ctx context.Context, computed *sync.WaitGroup, readLocks bool) error {
	var once sync.Once
	_, err := w.app.Transact(ctx, 0, func(req *client.Request) error {
		mine, allowed := w.view.get(w.mine), w.view.get(w.mine)+w.view.get(w.other) >= 100
		once.Do(func() { computed.Done(); computed.Wait() })
		if !allowed {
			return nil
		}
		if readLocks {
			req.ReadLock(w.other)
		}
		req.WriteLock(w.mine)
		req.Set("", fmt.Appendf(nil, "%s=%d", w.mine, mine-100))
		return nil
	})
	if errors.Is(err, client.ErrNothing) {
		return nil // the sum does not allow it
	}
	return err
}
