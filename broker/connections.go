package broker

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/broker/internal/natsserver"
	"github.com/cantuslog/cantus/subjects"
)

// connections are the node's own connections to its NATS server. They are nil
// until open has opened them.
type connections struct {
	// Each kind of message has a link of its own, so that a slow reader of one
	// kind does not hold up the others.
	appends, reads, feeds *natslink.Link
	outbox, readOutbox    *natslink.Outbox

	// mu guards control: requests are made while the node starts.
	mu      sync.Mutex
	control *nats.Conn // for requests to other nodes, and to this one
}

func (c *connections) open(server connectedServer, names subjects.Names, log *slog.Logger) (err error) {
	for _, l := range []struct {
		name string
		at   **natslink.Link
	}{{"appends", &c.appends}, {"reads", &c.reads}, {"feed", &c.feeds}} {
		*l.at, err = natslink.Open(natslink.Options{
			Name: l.name, Dial: server.InProcessConn, User: server.NodeUser,
			Subscriptions: server.Subscriptions, MaxReply: server.MaxReply(), Forbidden: natsserver.ForbiddenReplies(names, l.at == &c.appends),
		}, log)
		if err != nil {
			return err
		}
	}
	server.SetLinks(c.appends, c.reads, c.feeds)
	c.outbox, c.readOutbox = natslink.NewOutbox(c.appends, log), natslink.NewOutbox(c.reads, log)
	return c.openControl(server)
}

func (c *connections) openControl(server connectedServer) error {
	nc, err := nats.Connect("", nats.InProcessServer(server), nats.Name("cantus control"), nats.MaxReconnects(-1),
		nats.ReconnectWait(100*time.Millisecond), nats.IgnoreAuthErrorAbort(), server.CurrentUser())
	if err != nil {
		return fmt.Errorf("connect to the node's own NATS server: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.control = nc
	return nil
}

// controlConn returns the connection for requests, nil before open has opened
// it.
func (c *connections) controlConn() *nats.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.control
}

// request sends a request and returns the reply.
func (c *connections) request(ctx context.Context, subject string, data []byte) ([]byte, error) {
	m, err := c.controlConn().RequestMsgWithContext(ctx, &nats.Msg{Subject: subject, Data: data})
	if err != nil {
		return nil, err
	}
	return m.Data, nil
}

// refusedSubscription returns why the NATS server refuses the node's
// subscriptions, nil if it does not. An operator has to change its
// configuration then.
func (c *connections) refusedSubscription() error {
	for _, l := range []*natslink.Link{c.appends, c.reads} {
		if err := l.Refusal(); err != nil {
			return err
		}
	}
	return nil
}

// close sends what is still to be sent and closes the connections.
func (c *connections) close(log *slog.Logger) {
	for _, s := range []*natslink.Outbox{c.outbox, c.readOutbox} {
		if s != nil {
			s.Close()
		}
	}
	if nc := c.controlConn(); nc != nil {
		nc.Close()
	}
	for _, l := range []*natslink.Link{c.appends, c.reads, c.feeds} {
		if l != nil {
			flushLink(l, log)
			l.Close()
		}
	}
}

// flushLink waits until the NATS server has forwarded what was sent on a link.
func flushLink(l *natslink.Link, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), unsubscribeTime)
	defer cancel()
	if err := l.Flush(ctx); err != nil {
		log.Debug("the last replies may be lost", "link", l.Name(), "err", err)
	}
}

// connect opens a connection to a NATS server within the process.
func connect(server nats.InProcessConnProvider, as natslink.User, opts ...nats.Option) (*nats.Conn, error) {
	opts = append([]nats.Option{nats.InProcessServer(server), nats.Name("in-process")}, opts...)
	return nats.Connect("", append(opts, as.Options()...)...)
}
