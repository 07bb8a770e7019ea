package broker

import (
	"fmt"
	"time"
)

// distrust counts a message between nodes that is not believed, and logs it once
// in a while. The name is what it claims.
func (n *Node) distrust(what, name string, err error) {
	n.metrics.distrusted.WithLabelValues(what).Inc()
	ok, withheld := n.distrusted.Allow(time.Now())
	if !ok {
		return
	}
	args := []any{"what", what, "not_logged_before", withheld}
	if name != "" {
		args = append(args, "says_it_is", fmt.Sprintf("%.64q", name))
	}
	if err != nil {
		args = append(args, "err", err)
	}
	n.log.Warn("a message for nodes is not believed: it may be from a stranger, or from a node that has no cluster secret, or another one", args...)
}

// foreign looks at a hello of another cluster. A node that was started on another
// cluster's routes must find that out before it answers for that one. Anybody can
// say such a hello; only if the server of the node that it names, which is no
// member here, is connected as a route, and it goes on, is it believed.
func (n *Node) foreign(e envelope) {
	n.mu.Lock()
	serving := n.served
	n.mu.Unlock()
	if serving || e.id == "" || n.isMember(e.name, e.id) || !n.nats.Routed(e.name, e.id) {
		return
	}
	if n.foreigners.Add(1) < foreignHellos {
		return
	}
	n.fail(fmt.Errorf("%w: node %q is of the cluster %q with id %s, this one's data directory belongs to one of that name with id %s",
		ErrIdentity, e.name, n.opts.Cluster, e.cluster, n.clusterID()))
}

// foreignHellos is how many are heard before a node that is starting gives way.
const foreignHellos = 3

// isMember reports whether the facts have a node.
func (n *Node) isMember(name, id string) bool {
	n.mu.Lock()
	meta := n.meta
	n.mu.Unlock()
	facts := foundingFacts(n.store.Identity())
	if meta != nil {
		facts, _ = meta.current()
	}
	m, is := facts.Nodes[name]
	return is && m.ID == id
}
