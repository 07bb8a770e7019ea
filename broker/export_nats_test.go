package broker

import (
	"net"
	"strconv"

	"github.com/cantuslog/cantus/broker/internal/natslink"
)

// LeafAddress is where a node's NATS server listens for leaf nodes.
func LeafAddress(n *Node) string {
	v, _ := n.nats.Varz(nil)
	return net.JoinHostPort(v.LeafNode.Host, strconv.Itoa(v.LeafNode.Port))
}

// Unready says why a node is not ready.
func Unready(n *Node) string { return n.unready() }

// Dir is a node's data directory.
func Dir(n *Node) string { return n.store.Dir() }

// Objections is how often the NATS server has objected to what a node's own
// connections said.
func Objections(n *Node) (count int64) {
	for _, l := range []*natslink.Link{n.conns.appends, n.conns.reads, n.conns.feeds} {
		count += l.Errors()
	}
	return count
}
