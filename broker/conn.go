package broker

import (
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
