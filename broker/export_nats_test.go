package broker

import (
	"net"
	"strconv"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/broker/internal/natsserver"
)

// LeafAddress returns the address at which a node's NATS server listens for
// leaf nodes.
func LeafAddress(n *Node) string {
	v, _ := n.nats.(*natsserver.Server).Varz(nil)
	return net.JoinHostPort(v.LeafNode.Host, strconv.Itoa(v.LeafNode.Port))
}

// Unready returns why a node is not ready.
func Unready(n *Node) string { return n.unready() }

// Dir returns a node's data directory.
func Dir(n *Node) string { return n.store.Dir() }

// Objections returns how often the NATS server has rejected something that a
// node's own connections sent.
func Objections(n *Node) (count int64) {
	for _, l := range []*natslink.Link{n.conns.appends, n.conns.reads, n.conns.feeds} {
		count += l.Errors()
	}
	return count
}
