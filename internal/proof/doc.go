// Package proof tests the log's guarantees to writers. The tests run against
// any log, of one node or of several.
//
//   - In Probe, writers compute transactions from their high-water marks while
//     leaders fail. Then the log must have none that was computed from a stale
//     state.
//   - In Skew, two writers read two accounts and each writes one. The limit on
//     the accounts' sum must hold.
//   - In Conditions, two writers append unless somebody has recorded two names
//     together. One of two that have both names in common must be refused, and
//     none of two that have only one in common.
package proof

import (
	"context"
	"errors"
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/client"
)

// Log is the log under test. It has the default prefix.
type Log interface {
	// Connect returns a new connection that survives failures: it reconnects
	// without limit, to any node. The caller closes it.
	Connect(opts ...nats.Option) (*nats.Conn, error)
	// Fail makes the leader of partition 0 fail in some way, and returns when
	// the partition is available again.
	Fail(ctx context.Context) error
}

// writer is an application: it has a view that follows partition 0, and appends
// transactions that are computed from the view.
type writer struct {
	nc       *nats.Conn
	client   *client.Client
	follower *client.Follower
	app      *client.Transactor

	stop    context.CancelFunc
	running sync.WaitGroup
}

// newWriter returns a writer whose view applies transactions with apply.
func newWriter(log Log, apply client.Handler) (*writer, error) {
	nc, err := log.Connect()
	if err != nil {
		return nil, err
	}
	c, err := client.New(nc, client.Options{})
	if err != nil {
		nc.Close()
		return nil, err
	}
	w := &writer{nc: nc, client: c}
	w.follower, err = c.NewFollower(client.Positions{0: 0}, apply, client.FollowOptions{})
	if err == nil {
		w.app, err = client.NewTransactor(c, w.follower, client.TransactorOptions{MaxAttempts: 1 << 20, WaitApplied: true})
	}
	if err != nil {
		nc.Close()
		return nil, errors.Join(err, c.Close())
	}
	ctx, stop := context.WithCancel(context.Background())
	w.stop = stop
	w.running.Go(func() { _ = w.follower.Run(ctx) }) // Follower.Wait returns its error
	return w, nil
}

func (w *writer) close() error {
	w.stop()
	w.running.Wait()
	err := w.client.Close()
	w.nc.Close()
	return err
}

// readAll returns all transactions of partition 0, read on a new connection.
func readAll(ctx context.Context, log Log) (all []*client.Transaction, err error) {
	nc, err := log.Connect()
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	c, err := client.New(nc, client.Options{})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	mark, err := c.HighWaterMark(ctx, 0)
	if err != nil || mark == 0 {
		return nil, err
	}
	for tx, err := range c.All(ctx, 0, 0, client.FollowOptions{}) {
		if err != nil {
			return nil, err
		}
		if all = append(all, tx); tx.Txid == mark {
			break
		}
	}
	return all, nil
}
