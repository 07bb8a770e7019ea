package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cantuslog/cantus/client"
)

// load is money moved at random. Its requests have names, so that a load that
// was killed goes on where it was: what is done is done once.
type load struct {
	name      string
	accounts  int
	each      int64 // what an account begins with
	transfers int
	workers   int
}

// again is how long to wait before repeating what failed.
const retryDelay = 50 * time.Millisecond

func accountName(i int) string { return fmt.Sprintf("a%03d", i) }

// run opens the accounts that are not there, and makes the transfers.
func (l load) run(ctx context.Context, b *bank, w io.Writer) error {
	for i := range l.accounts {
		err := retryUntilDecided(ctx, func() error { return b.open(ctx, opened{accountName(i), l.each}) })
		if err != nil && !errors.Is(err, errExists) {
			return err
		}
	}
	next := make(chan int)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(next)
		for i := range l.transfers {
			select {
			case next <- i:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	for range l.workers {
		group.Go(func() error {
			for i := range next {
				if err := l.transfer(ctx, b, i); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%s: %d transfers made\n", l.name, l.transfers)
	return err
}

// transfer makes the i-th transfer: of some amount, between some accounts that
// allow it.
func (l load) transfer(ctx context.Context, b *bank, i int) error {
	for {
		from, to := rand.N(l.accounts), rand.N(l.accounts-1)
		if to >= from {
			to++
		}
		e := transferred{
			Request: fmt.Sprintf("%s-%d", l.name, i), From: accountName(from), To: accountName(to), Amount: 1 + rand.N(l.each),
		}
		err := retryUntilDecided(ctx, func() error { return b.transfer(ctx, e) })
		if !errors.Is(err, errInsufficient) && !errors.Is(err, errClosed) {
			return err
		}
	}
}

// insist repeats what failed for another reason than a decision: the log or
// the database is away for a while. Requests are safe to repeat.
func retryUntilDecided(ctx context.Context, do func() error) error {
	for {
		err := do()
		if err == nil || ctx.Err() != nil {
			return errors.Join(err, context.Cause(ctx))
		}
		for _, decision := range []error{errInsufficient, errClosed, errExists, errNotEmpty, errAmount, errSelf, client.ErrClosed} {
			if errors.Is(err, decision) {
				return err
			}
		}
		select {
		case <-time.After(retryDelay):
		case <-ctx.Done():
		}
	}
}
