package client

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// View is local state that a log is applied to. A [Follower] is one: that of what
// its handler has applied. Both methods may be called at any time, by several
// goroutines at once.
type View interface {
	// Applied returns the last txid of the partition that the state holds, 0 if
	// it holds none or does not follow the partition. What is read from the state
	// afterwards holds at least that.
	Applied(partition int) uint64
	// Wait returns nil once the state holds txid. It returns an error when ctx
	// ends, and at once if the state does not follow the partition or has stopped
	// following it.
	Wait(ctx context.Context, partition int, txid uint64) error
}

// TransactorOptions configures a [Transactor]. The zero value has every default.
type TransactorOptions struct {
	// MaxAttempts is how often the function is run at most. Default 100.
	MaxAttempts int
	// Timeout bounds Transact, beside its ctx. Default 1 minute.
	Timeout time.Duration
	// WaitApplied has Transact return only when the view holds the transaction.
	WaitApplied bool
}

// Transactor runs functions as transactions against a view.
type Transactor struct {
	c    *Client
	view View
	opts TransactorOptions
}

// NewTransactor returns a [Transactor] over view.
func NewTransactor(c *Client, view View, opts TransactorOptions) (*Transactor, error) {
	if opts.MaxAttempts == 0 {
		opts.MaxAttempts = 100
	}
	if opts.MaxAttempts < 0 {
		return nil, fmt.Errorf("%w: MaxAttempts is %d", ErrOptions, opts.MaxAttempts)
	}
	if err := fillDurations(map[string]duration{"Timeout": {&opts.Timeout, time.Minute}}); err != nil {
		return nil, err
	}
	return &Transactor{c, view, opts}, nil
}

// Transact runs compute, which reads the view and makes a transaction: its
// data, a read lock for all that it looked at and a write lock for what it changes. The view's high-water
// mark is taken before, so that compute may see newer state, never older. The
// transaction commits only if nothing that it names was recorded since. If something was, Transact waits
// until the view holds it, and runs compute again, which has to be free of
// side effects.
//
// It returns the receipt once the transaction is committed, and with
// TransactorOptions.WaitApplied once the view holds it: where that wait fails, the
// receipt comes together with the error. If compute returns an error, that is returned; if it
// does not call Set, the receipt and the error are zero. Nothing was appended in both cases. Other errors are Append's, and
// ErrAttempts.
func (t *Transactor) Transact(ctx context.Context, partition int, compute func(tx *Tx) error) (Receipt, error) {
	ctx, cancel := context.WithTimeout(ctx, t.opts.Timeout)
	defer cancel()
	var conflict *ConflictError
	for range t.opts.MaxAttempts {
		tx := &Tx{Partition: partition, HighWaterMark: t.view.Applied(partition)}
		if err := compute(tx); err != nil {
			return Receipt{}, err
		}
		if !tx.isSet && tx.Payload == nil {
			return Receipt{}, nil
		}
		r, err := t.c.Append(ctx, tx)
		if !errors.As(err, &conflict) {
			return t.committed(ctx, r, err)
		}
		if err := t.view.Wait(ctx, partition, conflict.Txid); err != nil {
			return Receipt{}, fmt.Errorf("wait for txid %d to be applied: %w; after: %w", conflict.Txid, err, conflict)
		}
	}
	return Receipt{}, fmt.Errorf("%w (%d): %w", ErrAttempts, t.opts.MaxAttempts, conflict)
}

func (t *Transactor) committed(ctx context.Context, r Receipt, err error) (Receipt, error) {
	if err != nil || !t.opts.WaitApplied {
		return r, err
	}
	if err := t.view.Wait(ctx, r.Partition, r.Txid); err != nil {
		return r, fmt.Errorf("committed as txid %d, wait for it to be applied: %w", r.Txid, err)
	}
	return r, nil
}
