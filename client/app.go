package client

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// View is local state that a log is applied to. A Follower is one: that of what
// its handler has applied.
type View interface {
	// HighWaterMark is the last txid of the partition that the state holds.
	// What is read from the state afterwards holds at least that.
	HighWaterMark(partition int) uint64
	// Wait returns nil once the state holds txid.
	Wait(ctx context.Context, partition int, txid uint64) error
}

// AppOptions configures an App. The zero value has every default.
type AppOptions struct {
	// Tries is how often the function is run at most. Default 100.
	Tries int
	// Timeout bounds Transact, beside its ctx. Default 1 minute.
	Timeout time.Duration
	// Applied has Transact return only when the view holds the transaction.
	Applied bool
}

// App runs functions as transactions against a view.
type App struct {
	c    *Client
	view View
	opts AppOptions
}

// NewApp gives an App over view.
func NewApp(c *Client, view View, opts AppOptions) (*App, error) {
	if opts.Tries == 0 {
		opts.Tries = 100
	}
	if opts.Tries < 0 {
		return nil, fmt.Errorf("%w: Tries is %d", ErrOptions, opts.Tries)
	}
	if err := fillDurations(map[string]duration{"Timeout": {&opts.Timeout, time.Minute}}); err != nil {
		return nil, err
	}
	return &App{c, view, opts}, nil
}

// Transact runs compute, which reads the view and makes a transaction: its
// data, a read lock for all that it looked at and a write lock for what it changes. The view's high-water
// mark is taken before, so that compute may see newer state, never older. The
// transaction commits only if nothing that it names was recorded since. If something was, Transact waits
// until the view holds it, and runs compute again, which has to be free of
// side effects.
//
// It returns the receipt once the transaction is committed, and with
// AppOptions.Applied once the view holds it: where that wait fails, the
// receipt comes together with the error. If compute returns an error, that is returned; if it
// gives no Data, the receipt and the error are zero. Nothing was appended in both cases. Other errors are Append's, and
// ErrTries.
func (a *App) Transact(ctx context.Context, partition int, compute func(tx *Tx) error) (Receipt, error) {
	ctx, cancel := context.WithTimeout(ctx, a.opts.Timeout)
	defer cancel()
	var conflict *Conflict
	for range a.opts.Tries {
		tx := &Tx{Partition: partition, HighWaterMark: a.view.HighWaterMark(partition)}
		if err := compute(tx); err != nil {
			return Receipt{}, err
		}
		if !tx.hasData && tx.Payload == nil {
			return Receipt{}, nil
		}
		r, err := a.c.Append(ctx, tx)
		if !errors.As(err, &conflict) {
			return a.committed(ctx, r, err)
		}
		if err := a.view.Wait(ctx, partition, conflict.Txid); err != nil {
			return Receipt{}, fmt.Errorf("wait for txid %d to be applied: %w; after: %w", conflict.Txid, err, conflict)
		}
	}
	return Receipt{}, fmt.Errorf("%w (%d): %w", ErrTries, a.opts.Tries, conflict)
}

func (a *App) committed(ctx context.Context, r Receipt, err error) (Receipt, error) {
	if err != nil || !a.opts.Applied {
		return r, err
	}
	if err := a.view.Wait(ctx, r.Partition, r.Txid); err != nil {
		return r, fmt.Errorf("committed as txid %d, wait for it to be applied: %w", r.Txid, err)
	}
	return r, nil
}
