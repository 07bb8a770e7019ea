package broker

import (
	"context"

	"github.com/cantuslog/cantus/broker/internal/natslink"
)

// Probe returns nil once the node's own loops have answered: its connections to
// its NATS server, what reports whether the node is ready, and the Raft loops
// of the facts and of one partition, another one at each call. It waits for as
// long as one of them does not answer, or until ctx ends.
//
// A node that has no leader, or that is not ready for any other reason,
// answers. One that does not answer for a minute hangs, or waits for its disk
// as a follower. A node that stops answers at once.
func (n *Node) Probe(ctx context.Context) error {
	if n.identity.stopping.Load() {
		return nil
	}
	for _, l := range []*natslink.Link{n.conns.appends, n.conns.reads, n.conns.feeds} {
		_ = l.Flush(ctx) // a connection that breaks is opened again by its loop
	}
	n.unready()
	if m := n.currentMeta(); m != nil { // it has not opened its replicas otherwise
		m.group.Ping(ctx)
	}
	if all := n.replicas.list(); len(all) > 0 {
		if r := all[n.probes.Add(1)%uint64(len(all))].current(); r != nil {
			r.group.Ping(ctx)
		}
	}
	return ctx.Err()
}
