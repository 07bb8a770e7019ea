package client

import (
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
// returns a zero receipt and no error. In both cases nothing was appended.
// Other errors are those of [Client.Query] and [Client.Append], what fold
// returns, and [ErrAttempts].
func Decide[S any](ctx context.Context, c *Client, items []subjects.QueryItem, fold func(state S, tx *Transaction) (S, error), decide func(state S, req *Request) error, opts DecideOptions) (Receipt, error) {
	if opts.MaxAttempts == 0 {
		opts.MaxAttempts = defaultAttempts
	}
	if opts.MaxAttempts < 0 {
		return Receipt{}, fmt.Errorf("%w: MaxAttempts is %d", ErrOptions, opts.MaxAttempts)
	}
	if len(items) == 0 {
		return Receipt{}, fmt.Errorf("%w: a decision needs a query with at least one item", ErrOptions)
	}
	if err := fillDurations(map[string]duration{"Timeout": {&opts.Timeout, time.Minute}}); err != nil {
		return Receipt{}, err
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
				return Receipt{}, err
			}
		}
		req := &Request{Partition: opts.Partition, HighWaterMark: r.mark}
		if err := decide(state, req); err != nil {
			return Receipt{}, err
		}
		req.HighWaterMark, req.Unless = min(req.HighWaterMark, r.mark), slices.Concat(items, req.Unless)
		if !req.isSet && req.Payload == nil {
			return Receipt{}, nil
		}
		receipt, err := c.Append(ctx, req)
		if !errors.As(err, &conflict) {
			return receipt, err
		}
		r = c.reading(opts.Partition, Query{Items: items, From: r.mark + 1})
	}
	return Receipt{}, fmt.Errorf("%w (%d): %w", ErrAttempts, opts.MaxAttempts, conflict)
}
