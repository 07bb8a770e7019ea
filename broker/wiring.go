package broker

import (
	"context"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/wal"
)

// wire makes the parts that listen and speak before the data directory is open. A
// part states what it needs; none has the node.
func (n *Node) wire() {
	openFacts := func() (facts cluster.Facts, changed <-chan struct{}, open bool) {
		m := n.openMeta()
		if m == nil {
			return facts, nil, false
		}
		facts, changed = m.current()
		return facts, changed, true
	}
	n.gossip = newGossip(n.identity, n.peers, gossipNode{
		describe: n.describe, measure: n.measure, heard: n.heard,
		checkMember: n.checkMember, isMember: n.isMember,
		nameTaken: func(h hello) bool { return n.openMeta().nameTaken(h) },
		routed:    func(name, id string) bool { return n.nats.Routed(name, id) },
		served:    n.wasServed, allowLeading: n.life.allowLeading, fail: n.life.fail, failed: n.life.failure,
	})
	n.founding = &founding{
		identity: n.identity, peers: n.peers, ask: n.request, announce: n.gossip.announce, stopped: n.life.stopped, failed: n.life.failure,
		sealedFor: map[string]string{},
	}
	t := &touch{peers: n.peers, meta: n.openMeta, failed: n.life.failure, mayLead: n.life.mayLead}
	n.shared = &sharedSubjects{
		self: n.opts.Name, log: n.log, clustered: n.opts.clustered(), queueGroup: n.queueGroup, touch: t,
		wake: make(chan struct{}, 1), all: map[*sharedSubject]struct{}{},
	}
	n.membership = &membership{
		identity: n.identity, facts: openFacts, ask: n.request, wake: func() { wake(n.shared.wake) }, quit: n.life.quit,
		fail: n.life.fail, failed: n.life.failure, background: n.background,
	}
	t.doubted, n.shared.check = n.membership.doubted, n.membership.checkOwnFacts
}

func (n *Node) services() services {
	return services{fail: n.life.fail, failed: n.life.failure, advise: n.advise, background: n.background, quit: n.life.quit}
}

func (n *Node) background(fn func()) { n.life.begin(fn) }

// openMeta returns the node's replica of the facts, nil while the node is starting.
func (n *Node) openMeta() *meta {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.meta
}

func (n *Node) wasServed() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.served
}

// slotNode returns what the node gives to the place of a partition's replica.
func (n *Node) slotNode(partition int, m *meta) slotNode {
	return slotNode{
		self: n.opts.Name, names: n.names, founders: foundingVoters(n.opts.Name, foundingFacts(n.store.Identity()).Voters(partition)),
		peers: n.peers, facts: m.current, shared: n.shared, network: n.network, host: n.host, full: n.space.isFull,
		doubted: n.membership.doubted, fail: n.life.fail,
		unfenced: func(partition int) { n.metrics.diverged.WithLabelValues(label(partition)).Set(0) },
	}
}

// describe adds to the node's status what it says of its replicas.
func (n *Node) describe(h *hello) {
	m := n.openMeta()
	if m == nil {
		return
	}
	facts, _ := m.current()
	h.Facts, h.Members = facts.Version, facts.Names()
	r := m.report()
	h.Meta = &r
	for p := range n.replicas.open() {
		h.Groups = append(h.Groups, p.report())
	}
	h.Full = n.space.isFull()
	h.Unready = n.unready()
	h.Ready = h.Unready == ""
}

// measure notes how far another node's replicas are behind this node's.
func (n *Node) measure(h *hello) {
	n.replicas.measure(h)
	if m := n.openMeta(); m != nil && h.Meta != nil {
		h.Meta.measure(m.group)
	}
}

// heard acts on what a member has said.
func (n *Node) heard(h hello) {
	if n.generations.vouched(h.NodeID) { // else it says it again, and has shaken hands by then
		n.replicas.compare(h)
		n.openMeta().compare(h)
	}
	n.membership.check(h)
}

func (n *Node) checkMember(name, id string) error { return n.openMeta().checkMember(name, id) }

// isMember reports whether the facts have a node.
func (n *Node) isMember(name, id string) bool {
	facts := foundingFacts(n.store.Identity())
	if m := n.openMeta(); m != nil {
		facts, _ = m.current()
	}
	member, is := facts.Nodes[name]
	return is && member.ID == id
}

// greet connects to another node, so that each shows the other its generations.
func (n *Node) greet(ctx context.Context, node string) error { return n.network.Handshake(ctx, node) }

// reconnect breaks the node's connections to others.
func (n *Node) reconnect() {
	n.mu.Lock()
	network := n.network
	n.mu.Unlock()
	if network != nil {
		network.Reconnect()
	}
}

func newSpace(n *Node, store *wal.Store) *space {
	return &space{
		self: n.opts.Name, log: n.log, store: store, peers: n.peers, reserved: &n.limits.reserve, read: n.opts.freeSpace,
		advise: n.advise, announce: n.gossip.announce,
	}
}
