package cantustest

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/subjects"
)

// inner is the prefix of the subjects of the node behind the relay.
const inner = "cantustest"

// Options configures a Log. The zero value selects one partition.
type Options struct {
	// Partitions is the number of partitions. Default 1.
	Partitions int
	// Prefix is the first token of the subjects that clients use. Default
	// "cantus".
	Prefix string
	// Node has other options of the node. Its Partitions, Prefix and
	// ClientListen are ignored.
	Node broker.Options
}

// Log is a running log.
type Log struct {
	opts   Options
	dir    string
	dialer dialer
	rules  rules
	key    ed25519.PrivateKey // signs the feed

	node  *broker.Node
	relay *relay
	url   string

	mu      sync.Mutex
	closers []func() error // of connections and clients; called in reverse order
	closed  bool
}

// Open runs a log in a new temporary directory, until Close is called.
func Open(ctx context.Context, opts Options) (*Log, error) {
	if opts.Partitions == 0 {
		opts.Partitions = 1
	}
	if opts.Prefix == "" {
		opts.Prefix = subjects.DefaultPrefix
	}
	if opts.Prefix == inner {
		return nil, fmt.Errorf("cantustest: prefix %q is reserved for the node: use another", inner)
	}
	dir, err := os.MkdirTemp("", "cantustest-")
	if err != nil {
		return nil, err
	}
	l := &Log{opts: opts, dir: dir, key: newKey()}
	l.opts.Node.Partitions, l.opts.Node.Prefix, l.opts.Node.ClientListen = opts.Partitions, inner, "127.0.0.1:0"
	if err := l.start(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// New runs a log until the end of the test.
func New(tb testing.TB, opts Options) *Log {
	tb.Helper()
	l, err := Open(tb.Context(), opts)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := l.Close(); err != nil {
			tb.Errorf("close the log: %v", err)
		}
	})
	return l
}

func (l *Log) start(ctx context.Context) error {
	if err := l.startNode(ctx); err != nil {
		return err
	}
	return l.startRelay()
}

func (l *Log) startNode(ctx context.Context) (err error) {
	if l.node, err = broker.Open(ctx, l.dir, l.opts.Node); err != nil {
		return err
	}
	l.url = l.node.ClientURL()
	l.opts.Node.ClientListen = l.url[len("nats://"):] // the same port after a restart
	return nil
}

// startRelay lets clients reach the node.
func (l *Log) startRelay() (err error) {
	l.relay, err = newRelay(l.node, l.opts.Prefix, &l.rules, l.key)
	return err
}

func (l *Log) stop() error {
	if l.relay != nil {
		l.relay.close()
		l.relay = nil
	}
	if l.node == nil {
		return nil
	}
	err := l.node.Close()
	l.node = nil
	return err
}

// Close closes the log's clients and connections, stops the node and removes
// its directory. It is idempotent.
func (l *Log) Close() (err error) {
	l.mu.Lock()
	closers := l.closers
	l.closers, l.closed = nil, true
	l.mu.Unlock()
	l.dialer.setBlocked(true)
	for i := len(closers) - 1; i >= 0; i-- {
		err = errors.Join(err, closers[i]())
	}
	return errors.Join(err, l.stop(), os.RemoveAll(l.dir))
}

func (l *Log) onClose(f func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errors.New("cantustest: the log is closed")
	}
	l.closers = append(l.closers, f)
	return nil
}

// URL returns the URL for NATS clients.
func (l *Log) URL() string { return l.url }

// Connect returns a NATS connection that reconnects without limit and at once.
// It is closed with the log.
func (l *Log) Connect(opts ...nats.Option) (*nats.Conn, error) {
	nc, err := nats.Connect(l.url, append([]nats.Option{
		nats.SetCustomDialer(&l.dialer), nats.MaxReconnects(-1), nats.ReconnectWait(reconnectWait),
		nats.ReconnectJitter(reconnectWait, reconnectWait),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}), // tests close connections on purpose
	}, opts...)...)
	if err != nil {
		return nil, err
	}
	if err := l.onClose(func() error { nc.Close(); return nil }); err != nil {
		nc.Close()
		return nil, err
	}
	return nc, nil
}

// Client returns a client with a connection of its own. It is closed with the
// log. The client's prefix is that of the log.
func (l *Log) Client(opts client.Options) (*client.Client, error) {
	nc, err := l.Connect()
	if err != nil {
		return nil, err
	}
	opts.Prefix = l.opts.Prefix
	c, err := client.New(nc, opts)
	if err != nil {
		return nil, err
	}
	return c, l.onClose(c.Close)
}

// NewClient is Client for tests.
func (l *Log) NewClient(tb testing.TB, opts client.Options) *client.Client {
	tb.Helper()
	c, err := l.Client(opts)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// Transactions returns everything that a partition contains. It bypasses the
// relay and its faults.
func (l *Log) Transactions(ctx context.Context, partition int) ([]*client.Transaction, error) {
	nc, err := l.node.Conn()
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	c, err := client.New(nc, client.Options{Prefix: inner})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	mark, err := c.HighWaterMark(ctx, partition)
	if err != nil || mark == 0 {
		return nil, err
	}
	var all []*client.Transaction
	for tx, err := range c.All(ctx, partition, 0, client.FollowOptions{}) {
		if err != nil {
			return nil, err
		}
		if all = append(all, tx); tx.Txid >= mark {
			break
		}
	}
	return all, nil
}

// Disconnect closes all connections made by the log. They reconnect at once;
// what was on the wire is lost.
func (l *Log) Disconnect() { l.dialer.closeAll() }

// Block closes all connections made by the log and keeps them from reconnecting
// until Unblock is called.
func (l *Log) Block() { l.dialer.setBlocked(true) }

// Unblock undoes Block.
func (l *Log) Unblock() { l.dialer.setBlocked(false) }

// Restart stops the node cleanly and starts it again on the same directory and
// port. Clients reconnect by themselves.
func (l *Log) Restart(ctx context.Context) error {
	l.dialer.setBlocked(true)
	defer l.dialer.setBlocked(false)
	if err := l.stop(); err != nil {
		return err
	}
	return l.start(ctx)
}
