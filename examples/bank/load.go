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

// load makes random transfers. Its requests are numbered, so that a load that
// was killed continues where it was, without moving money twice.
type load struct {
	name      string
	accounts  int
	each      int64 // initial balance of an account
	transfers int
	workers   int
}

// retryDelay is the wait before a retry.
const retryDelay = 50 * time.Millisecond

func accountName(i int) string { return fmt.Sprintf("a%03d", i) }

// run opens the accounts that do not exist and makes the transfers.
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

// transfer makes the i-th transfer, of a random amount between random accounts.
// It draws again if they do not allow it.
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

// retryUntilDecided repeats do until it succeeds or the bank refuses: the log
// or the database may be unavailable for a while. Requests are safe to repeat.
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
