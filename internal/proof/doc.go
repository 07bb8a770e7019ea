// Package proof holds the tests of the log's guarantees to writers. They run against
// any log: one node or several.
//
//   - Probe has writers compute from their own high-water marks while leaders fail,
//     and searches the log for anything that was computed on a stale state.
//   - Skew has two writers read two accounts and write one each, and checks that the
//     joint limit holds.
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
	// Connect returns a new connection that survives failures: it reconnects for
	// ever, to any node. The caller closes it.
	Connect(opts ...nats.Option) (*nats.Conn, error)
	// Fail makes the leader of partition 0 fail, in a way of the log's choice, and
	// returns when the partition is served again.
	Fail(ctx context.Context) error
}

// writer is an application: a view that follows partition 0, and appends transactions
// that were computed from it.
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
	w.running.Go(func() { _ = w.follower.Run(ctx) }) // waiting for the view returns its error
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
