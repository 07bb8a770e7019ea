package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

// DecideOptions configures [Decide]. The zero value selects the defaults.
type DecideOptions struct {
	// Partition is the partition to read and to append to.
	Partition int
	// MaxAttempts limits how often decide is called. Default 100.
	MaxAttempts int
	// Timeout bounds Decide, in addition to its ctx. Default 1 minute.
	Timeout time.Duration
}

// Decide makes a decision from the transactions that a query selects, and
// appends it unless one of them is new by then. No local state is needed: each
// attempt reads what is selected, in order, folds it into a state that begins
// as the zero value, and has decide fill in a transaction. It is appended with
// the high-water mark of the state, or an older one that decide sets, and with
// the query as its condition, to which decide may add items by setting Unless.
// After a conflict Decide reads what is new, and decides again. If the newest
// transaction is all that matters, [Client.Query] with NewestFirst and Max, and
// an append with Unless, take less.
//
// The query has at least one item, [subjects.MaxUnless] at most, and the
// transaction that decide makes should record the names that it was decided
// from, as write or append locks: this is how others' queries find it.
//
// fold must not retain the transaction, and must be free of side effects like
// decide. A pointer or a map as the state is made by fold when it is nil.
//
// Decide returns the receipt once the transaction is committed. If decide
// returns an error, Decide returns it; if decide does not call Set, Decide
// returns [ErrNothing]. In both cases nothing was appended. Other errors are
// those of [Client.Query] and [Client.Append], what fold returns, and
// [ErrAttempts].
func Decide[S any](ctx context.Context, c *Client, items []subjects.QueryItem, fold func(state S, tx *Transaction) (S, error), decide func(state S, req *Request) error, opts DecideOptions) (receipt Receipt, err error) {
	err = decideWith(ctx, c, items, fold, func(ctx context.Context, state S, mark uint64) (tried bool, err error) {
		req := &Request{Partition: opts.Partition, HighWaterMark: mark}
		if err := cmp.Or(decide(state, req), req.checkSet()); err != nil {
			return false, err
		}
		req.HighWaterMark, req.Unless = min(req.HighWaterMark, mark), slices.Concat(items, req.Unless)
		receipt, err = c.Append(ctx, req)
		return true, err
	}, opts)
	return receipt, err
}

// DecideAtomic is [Decide] for a decision that makes several transactions,
// which commit together or not at all. If decide adds none to the batch,
// DecideAtomic returns [ErrNothing].
func DecideAtomic[S any](ctx context.Context, c *Client, items []subjects.QueryItem, fold func(state S, tx *Transaction) (S, error), decide func(state S, b *AtomicBatch) error, opts DecideOptions) (receipt AtomicReceipt, err error) {
	err = decideWith(ctx, c, items, fold, func(ctx context.Context, state S, mark uint64) (tried bool, err error) {
		b := &AtomicBatch{Partition: opts.Partition, HighWaterMark: mark}
		if err := cmp.Or(decide(state, b), b.checkSet()); err != nil {
			return false, err
		}
		b.HighWaterMark, b.Unless = min(b.HighWaterMark, mark), slices.Concat(items, b.Unless)
		receipt, err = c.AppendAtomic(ctx, b)
		return true, err
	}, opts)
	return receipt, err
}

// decideWith reads what is selected and calls attempt with the state and its
// mark, again after each conflict that an append has met.
func decideWith[S any](ctx context.Context, c *Client, items []subjects.QueryItem, fold func(state S, tx *Transaction) (S, error), attempt func(ctx context.Context, state S, mark uint64) (tried bool, err error), opts DecideOptions) error {
	if opts.MaxAttempts == 0 {
		opts.MaxAttempts = defaultAttempts
	}
	if opts.MaxAttempts < 0 {
		return fmt.Errorf("%w: MaxAttempts is %d", ErrOptions, opts.MaxAttempts)
	}
	if len(items) == 0 {
		return fmt.Errorf("%w: a decision needs a query with at least one item", ErrOptions)
	}
	if err := fillDurations(map[string]duration{"Timeout": {&opts.Timeout, time.Minute}}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, opts.Timeout)
	defer cancel()
	var (
		state    S
		conflict *ConflictError
	)
	r := c.reading(opts.Partition, Query{Items: items})
	for range opts.MaxAttempts {
		for tx, err := range r.all(ctx) {
			if err == nil {
				state, err = fold(state, tx)
			}
			if err != nil {
				return err
			}
		}
		if tried, err := attempt(ctx, state, r.mark); !tried || !errors.As(err, &conflict) {
			return err
		}
		r = c.reading(opts.Partition, Query{Items: items, From: r.mark + 1})
	}
	return fmt.Errorf("%w (%d): %w", ErrAttempts, opts.MaxAttempts, conflict)
}
