package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"
)

// defaultAttempts is how often a transaction is computed at most.
const defaultAttempts = 100

// View is local state to which a log is applied. A [Follower] is the view of
// what its handler has applied. Both methods may be called at any time and
// concurrently.
type View interface {
	// Applied returns the last txid of the partition that the state contains, 0
	// if it contains none or does not follow the partition. What is read from
	// the state afterwards contains at least that.
	Applied(partition int) uint64
	// Wait returns nil once the state contains txid. It returns an error when
	// ctx ends, and at once if the state does not follow the partition or has
	// stopped following it.
	Wait(ctx context.Context, partition int, txid uint64) error
}

// TransactorOptions configures a [Transactor]. The zero value selects the
// defaults.
type TransactorOptions struct {
	// MaxAttempts limits how often the function is called. Default 100.
	MaxAttempts int
	// Timeout bounds Transact, in addition to its ctx. Default 1 minute.
	Timeout time.Duration
	// WaitApplied makes Transact return only when the view contains the
	// transaction.
	WaitApplied bool
}

// Transactor runs functions as transactions against a view.
type Transactor struct {
	c    *Client
	view View
	opts TransactorOptions
}

// NewTransactor returns a [Transactor] that uses view.
func NewTransactor(c *Client, view View, opts TransactorOptions) (*Transactor, error) {
	if opts.MaxAttempts == 0 {
		opts.MaxAttempts = defaultAttempts
	}
	if opts.MaxAttempts < 0 {
		return nil, fmt.Errorf("%w: MaxAttempts is %d", ErrOptions, opts.MaxAttempts)
	}
	if err := fillDurations(map[string]duration{"Timeout": {&opts.Timeout, time.Minute}}); err != nil {
		return nil, err
	}
	return &Transactor{c, view, opts}, nil
}

// Transact calls compute, which reads the view and fills in a transaction: its
// payload, a read lock for everything that it read, and a write lock for
// everything that it changes. The view's high-water mark is taken before the
// call, so compute may see newer state but never older. The transaction commits
// only if none of its locks was recorded since. Otherwise Transact waits until
// the view contains the conflicting transaction, and calls compute again, which
// must be free of side effects.
//
// Transact returns the receipt once the transaction is committed, and with
// [TransactorOptions.WaitApplied] once the view contains it; if that wait
// fails, it returns both the receipt and the error. If compute returns an
// error, Transact returns it; if compute does not call Set, Transact returns
// [ErrNothing]. In both cases nothing was appended. Other errors are those of
// [Client.Append], and [ErrAttempts].
func (t *Transactor) Transact(ctx context.Context, partition int, compute func(req *Request) error) (r Receipt, err error) {
	ctx, cancel := context.WithTimeout(ctx, t.opts.Timeout)
	defer cancel()
	err = t.run(ctx, partition, func(mark uint64) (last uint64, tried bool, err error) {
		req := &Request{Partition: partition, HighWaterMark: mark}
		if err := cmp.Or(compute(req), req.checkSet()); err != nil {
			return 0, false, err
		}
		r, err = t.c.Append(ctx, req)
		return r.Txid, true, err
	})
	return r, err
}

// TransactAtomic is [Transactor.Transact] for several transactions, which
// commit together or not at all. If compute adds none to the batch,
// TransactAtomic returns [ErrNothing].
func (t *Transactor) TransactAtomic(ctx context.Context, partition int, compute func(b *AtomicBatch) error) (r AtomicReceipt, err error) {
	ctx, cancel := context.WithTimeout(ctx, t.opts.Timeout)
	defer cancel()
	err = t.run(ctx, partition, func(mark uint64) (last uint64, tried bool, err error) {
		b := &AtomicBatch{Partition: partition, HighWaterMark: mark}
		if err := cmp.Or(compute(b), b.checkSet()); err != nil {
			return 0, false, err
		}
		r, err = t.c.AppendAtomic(ctx, b)
		return r.Last, true, err
	})
	return r, err
}

// run calls attempt with the view's high-water mark, again after each conflict
// that an append has met. attempt returns the last txid that it has appended.
func (t *Transactor) run(ctx context.Context, partition int, attempt func(mark uint64) (last uint64, tried bool, err error)) error {
	var conflict *ConflictError
	for range t.opts.MaxAttempts {
		last, tried, err := attempt(t.view.Applied(partition))
		switch {
		case !tried:
			return err
		case !errors.As(err, &conflict):
			return t.committed(ctx, partition, last, err)
		}
		if err := t.view.Wait(ctx, partition, conflict.Txid); err != nil {
			return fmt.Errorf("wait until txid %d is applied: %w; conflict: %w", conflict.Txid, err, conflict)
		}
	}
	return fmt.Errorf("%w (%d): %w", ErrAttempts, t.opts.MaxAttempts, conflict)
}

func (t *Transactor) committed(ctx context.Context, partition int, last uint64, err error) error {
	if err != nil || !t.opts.WaitApplied {
		return err
	}
	if err := t.view.Wait(ctx, partition, last); err != nil {
		return fmt.Errorf("committed as txid %d; wait until it is applied: %w", last, err)
	}
	return nil
}
