package broker

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker/internal/natslink"
)

// Conn opens a connection to the node within the process, without any port. It
// has the permissions of an application: it can't publish or subscribe to what is
// the nodes' alone. The caller closes it.
func (n *Node) Conn(opts ...nats.Option) (*nats.Conn, error) {
	return n.dial(n.nats.AppUser(), opts...)
}

func (n *Node) dial(as natslink.User, opts ...nats.Option) (*nats.Conn, error) {
	opts = append([]nats.Option{nats.InProcessServer(n.nats), nats.Name("in-process")}, opts...)
	return nats.Connect("", append(opts, as.Options()...)...)
}

// openControl makes the connection over which the node asks, and hears whether it
// is heard itself.
func (n *Node) openControl() error {
	nc, err := nats.Connect("", nats.InProcessServer(n.nats), nats.Name("cantus control"), nats.MaxReconnects(-1),
		nats.ReconnectWait(100*time.Millisecond), nats.IgnoreAuthErrorAbort(), n.nats.CurrentUser())
	if err != nil {
		return fmt.Errorf("connect to the node's own NATS server: %w", err)
	}
	n.mu.Lock()
	n.control = nc
	n.mu.Unlock()
	return nil
}

// request asks another node, or the leader of the facts, and returns its answer.
func (n *Node) request(ctx context.Context, subject string, body any) ([]byte, error) {
	m, err := n.controlConn().RequestMsgWithContext(ctx, &nats.Msg{Subject: subject, Data: n.envelope(subject, body)})
	if err != nil {
		return nil, err
	}
	return m.Data, nil
}

// refusal is what an operator has to change before the node can serve.
func (n *Node) refusal() error {
	for _, l := range []*natslink.Link{n.appends, n.reads} {
		if err := l.Refusal(); err != nil {
			return err
		}
	}
	for p := range n.replicas.open() {
		if refused := p.refused.Load(); refused != nil {
			return *refused
		}
	}
	return nil
}

func (n *Node) controlConn() *nats.Conn {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.control
}
