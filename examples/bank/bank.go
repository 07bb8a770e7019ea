package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/client/sqlview"
)

// partition contains all accounts: a transfer is one transaction, and a
// transaction cannot span partitions.
const partition = 0

// Reasons to refuse a command.
var (
	errInsufficient = errors.New("not enough money")
	errClosed       = errors.New("no such account, or it is closed")
	errExists       = errors.New("the account exists already")
	errNotEmpty     = errors.New("the account is not empty")
	errAmount       = errors.New("the amount must be positive, or not negative to open an account")
	errSelf         = errors.New("from and to are the same account")
)

// bank is one instance of the service: a view that follows the log, and the
// commands that decide by it.
type bank struct {
	client     *client.Client
	store      *store
	view       *sqlview.View
	transactor *client.Transactor

	stop    context.CancelFunc
	running sync.WaitGroup
}

// openBank connects to the database at location, and starts to apply the log to
// it.
func openBank(ctx context.Context, nc *nats.Conn, location string) (*bank, error) {
	c, err := client.New(nc, client.Options{})
	if err != nil {
		return nil, err
	}
	b := &bank{client: c}
	if b.store, err = openStore(ctx, location); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	// Without OnError the view stops at a transaction that cannot be applied,
	// and commands fail: the bank must not skip any. An operator has to look
	// into it.
	b.view, err = sqlview.Open(ctx, c, b.store.db, b.store.dialect, b.store.apply, sqlview.Options{
		Name: "bank", Partitions: []int{partition},
		Follow: client.FollowOptions{Kinds: []string{kindOpen, kindTransfer, kindClose}},
	})
	if err == nil {
		b.transactor, err = client.NewTransactor(c, b.view, client.TransactorOptions{WaitApplied: true, MaxAttempts: 1000})
	}
	if err != nil {
		return nil, errors.Join(err, b.store.db.Close(), c.Close())
	}
	running, cancel := context.WithCancel(context.Background())
	b.stop = cancel
	b.running.Go(func() { _ = b.view.Run(running) }) // callers that wait for the view get its error
	return b, nil
}

func (b *bank) close() error {
	b.stop()
	b.running.Wait()
	return errors.Join(b.client.Close(), b.store.db.Close())
}

// catchUp waits until the view contains everything that is in the log now.
func (b *bank) catchUp(ctx context.Context) error {
	mark, err := b.client.HighWaterMark(ctx, partition)
	if err != nil {
		return err
	}
	return b.view.Wait(ctx, partition, mark)
}

// decide calls compute with the view, and appends the transaction that it
// makes. It calls compute again if what it read has changed in the meantime. A
// compute that finds everything done sets no transaction.
func (b *bank) decide(ctx context.Context, compute func(req *client.Request, db *sql.Tx) error) error {
	_, err := b.transactor.Transact(ctx, partition, func(req *client.Request) error {
		return b.view.Read(ctx, req, func(db *sql.Tx) error { return compute(req, db) })
	})
	if errors.Is(err, client.ErrNothing) {
		return nil
	}
	return err
}

// open opens an account.
func (b *bank) open(ctx context.Context, e opened) error {
	if e.Balance < 0 {
		return fmt.Errorf("open %s with %d: %w", e.Account, e.Balance, errAmount)
	}
	return b.decide(ctx, func(req *client.Request, db *sql.Tx) error {
		a, err := b.store.account(ctx, db, e.Account)
		if err != nil {
			return err
		}
		if a.Name != "" {
			return fmt.Errorf("open %s: %w", e.Account, errExists)
		}
		return setEvent(req, kindOpen, e)
	})
}

// transfer moves money, once per request: if the request was made before, it
// does nothing.
func (b *bank) transfer(ctx context.Context, e transferred) error {
	if e.From == e.To {
		return fmt.Errorf("transfer %d from %s: %w", e.Amount, e.From, errSelf)
	}
	if e.Amount <= 0 {
		return fmt.Errorf("transfer %d from %s to %s: %w", e.Amount, e.From, e.To, errAmount)
	}
	return b.decide(ctx, func(req *client.Request, db *sql.Tx) error {
		if done, err := b.store.done(ctx, db, e.Request); done || err != nil {
			return err
		}
		from, err := b.store.account(ctx, db, e.From)
		if err != nil {
			return err
		}
		to, err := b.store.account(ctx, db, e.To)
		switch {
		case err != nil:
			return err
		case !from.Active:
			return fmt.Errorf("transfer from %s: %w", e.From, errClosed)
		case !to.Active:
			return fmt.Errorf("transfer to %s: %w", e.To, errClosed)
		case from.Balance < e.Amount:
			return fmt.Errorf("transfer %d from %s, which has %d: %w", e.Amount, e.From, from.Balance, errInsufficient)
		}
		return setEvent(req, kindTransfer, e)
	})
}

// closeAccount closes an empty account.
func (b *bank) closeAccount(ctx context.Context, e closed) error {
	return b.decide(ctx, func(req *client.Request, db *sql.Tx) error {
		a, err := b.store.account(ctx, db, e.Account)
		switch {
		case err != nil:
			return err
		case !a.Active:
			return fmt.Errorf("close %s: %w", e.Account, errClosed)
		case a.Balance != 0:
			return fmt.Errorf("close %s, which has %d: %w", e.Account, a.Balance, errNotEmpty)
		}
		return setEvent(req, kindClose, e)
	})
}
