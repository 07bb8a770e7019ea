package broker

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/wal"
)

// wire makes the parts that a node has before its data directory is open.
func (n *Node) wire() {
	i := n.identity
	n.advisories = &advisories{node: i.opts.Name, names: i.names}
	n.life.failing = n.advisories.publishFailure
	n.peers = newPeers(i.instance, i.number.Load)
	n.replicas = &replicaSet{peers: n.peers}
	n.gossip = newGossip(i, n.peers, gossipNode{
		describe: n.describe, measure: n.measure, heard: n.heard,
		checkMember: n.checkMember, isMember: n.isMember,
		nameTaken: func(a announcement) bool { return n.currentMeta().nameTaken(a) },
		routed:    func(name, id string) bool { return n.nats.Routed(name, id) },
		served:    n.wasServed, allowLeading: n.life.allowLeading, fail: n.life.fail, failed: n.life.failure,
	})
	n.scrubber = newScrubber(i, n.metrics, n.advisories.publish, &replicaSources{peers: n.peers}, n.applied)
	n.bootstrap = &bootstrap{
		identity: i, peers: n.peers, request: n.request, announce: n.gossip.announce, stopped: n.life.stopped, failed: n.life.failure,
		wrappedFor: map[string]string{},
	}
	t := &touch{peers: n.peers, meta: n.currentMeta, failed: n.life.failure, mayLead: n.life.mayLead}
	n.shared = &sharedSubjects{
		self: i.opts.Name, log: i.log, clustered: i.opts.clustered(), queueGroup: i.queueGroup, touch: t,
		wake: make(chan struct{}, 1), all: map[*sharedSubject]struct{}{},
	}
	n.membership = &membership{
		identity: i, facts: n.factsIfOpen, request: n.request, wake: func() { wake(n.shared.wake) }, quit: n.life.quit,
		fail: n.life.fail, failed: n.life.failure, background: n.background,
	}
	t.removalSuspected, n.shared.check = n.membership.removalSuspected, n.membership.checkOwnFacts
}

// wireConnections gives the node's connections to the parts that use them, and
// makes the parts that need the NATS server.
func (n *Node) wireConnections() {
	c := n.conns
	n.advisories.outbox, n.gossip.send = c.outbox, c.outbox
	n.shared.reads, n.shared.refusals = c.reads, c.readOutbox
	n.pacer = newPacer(n.identity, n.nats, n.peers, c.reads, c.readOutbox)
	n.watch = &serverWatch{
		log: n.identity.log, server: n.nats, partitions: func() int { return n.store.Identity().Partitions },
		links: []*natslink.Link{c.appends, c.reads, c.feeds}, reads: c.reads, control: c.controlConn,
	}
}

func (n *Node) services() services {
	return services{fail: n.life.fail, failed: n.life.failure, advise: n.advisories.publish, background: n.background, quit: n.life.quit}
}

func (n *Node) background(fn func()) { n.life.begin(fn) }

// request sends a signed request to another node, or to the leader of the
// facts, and returns the reply.
func (n *Node) request(ctx context.Context, subject string, body any) ([]byte, error) {
	return n.conns.request(ctx, subject, n.identity.envelope(subject, body))
}

// currentMeta returns the node's replica of the facts, nil while the node is
// starting.
func (n *Node) currentMeta() *meta {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.meta
}

// factsIfOpen returns the facts and a channel that is closed when they change;
// open is false while the node is starting.
func (n *Node) factsIfOpen() (facts cluster.Facts, changed <-chan struct{}, open bool) {
	m := n.currentMeta()
	if m == nil {
		return facts, nil, false
	}
	facts, changed = m.current()
	return facts, changed, true
}

func (n *Node) wasServed() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.served
}

func (n *Node) newGenerations() *generations {
	return &generations{
		identity: n.identity, services: n.services(), peers: n.peers, facts: func() cluster.Facts { return n.currentMeta().now() },
		handshake: n.handshake, reconnect: n.reconnect,
	}
}

func (n *Node) newSpace(store *wal.Store) *space {
	return &space{
		self: n.identity.opts.Name, log: n.identity.log, store: store, peers: n.peers, reserved: &n.limits.reserve, read: n.identity.opts.freeSpace,
		advise: n.advisories.publish, announce: n.gossip.announce,
	}
}

func (n *Node) networkOptions() raftstore.NetworkOptions {
	i, id := n.identity, n.store.Identity()
	return raftstore.NetworkOptions{
		Node: i.opts.Name, ID: id.NodeID, Cluster: id.ID, Key: i.derive("replication"),
		Member: n.checkMember, Payload: n.generations.report, CheckPayload: n.generations.check,
		Listener: n.listener, Resolve: n.resolve,
		Dial: i.opts.dialRaft(), TLS: n.nats.ClusterTLS(), CatchUpRate: i.opts.CatchUpRate, Logger: i.log,
	}
}

// resolve returns the address at which another node said it is.
func (n *Node) resolve(node string) (string, error) {
	q, ok := n.peers.get(node)
	if !ok || q.Raft == "" {
		return "", fmt.Errorf("node %s was not heard of yet", node)
	}
	if reroute := n.identity.opts.reroute; reroute != nil {
		return reroute(node, q.Raft), nil
	}
	return q.Raft, nil
}

// groupOptions returns the options that all groups of the node have in common.
func (n *Node) groupOptions(id uint32, log *wal.Log, fsm raftstore.FSM, logger *slog.Logger) raftstore.Options {
	o := raftstore.Options{Node: n.identity.opts.Name, Network: n.network, ID: id, Log: log, FSM: fsm, Logger: logger}
	if n.network != nil {
		o.HeartbeatTimeout, o.ElectionTimeout = n.identity.opts.ElectionTimeout, n.identity.opts.ElectionTimeout
	}
	return o
}

// newMeta makes the node's replica of the facts, with the operations that its
// leader serves.
func (n *Node) newMeta() *meta {
	i, services := n.identity, n.services()
	m := &meta{
		identity: i, services: services, stored: n.store.Log(metaGroup), peers: n.peers, replicas: n.replicas, starts: n.generations, handshake: n.handshake, announce: n.gossip.announce,
	}
	m.operations = &operations{
		identity: i, services: services, peers: n.peers, meta: m, replicas: n.replicas, membership: n.membership, shared: n.shared,
		reads: n.conns.reads, status: n.gossip.status,
	}
	m.operations.absences = &absences{self: i.opts.Name, log: i.log, started: i.started, peers: n.peers, replicas: n.replicas, facts: m.current, away: map[string]time.Time{}, said: map[string]said{}, led: map[int]time.Time{}}
	return m
}

// controllerConfig returns the configuration of a partition's
// replicaController.
func (n *Node) controllerConfig(partition int, m *meta) controllerConfig {
	self := n.identity.opts.Name
	return controllerConfig{
		self: self, names: n.identity.names, founders: bootstrapVoters(n.store.Identity(), bootstrapFacts(n.store.Identity()).Voters(partition)),
		peers: n.peers, facts: m.current, factsCurrent: m.isCurrent, shared: n.shared, network: n.network, host: n.host, full: n.space.isFull,
		removalSuspected: n.membership.removalSuspected, fail: n.life.fail, sources: n.scrubber.sources,
		forgetDamage: n.scrubber.forget, removeIndex: n.indexes().remove,
	}
}

// host returns what a replica needs of the node.
func (n *Node) host() host {
	i, c := n.identity, n.conns
	return host{
		name: i.opts.Name, cluster: n.store.Identity().ID, names: i.names, partitions: n.store.Identity().Partitions, log: i.log,
		leaderships: &n.leaderships, now: i.opts.clock(), queueBytes: int(n.limits.queueBytes.Load()), state: i.opts.state(), trimming: i.opts.trimming,
		retentionInterval: i.opts.RetentionInterval,
		metrics:           n.metrics, stats: n.stats, tracer: n.tracing.tracer,
		messaging: messaging{
			nats: n.nats, appends: c.appends, reads: c.reads, feeds: c.feeds, outbox: c.outbox, readOutbox: c.readOutbox,
			queueGroup: i.queueGroup(), feedKey: i.feedKey(), pacer: n.pacer, encodeAdvisory: n.advisories.encode,
		},
		sharedLimits: sharedLimits{
			inflight: n.limits.inflight, scans: n.limits.scans, space: n.space, archive: i.opts.Archive, archiving: n.limits.archiving, indexes: n.indexes(),
			startRead: func(serve func()) error { return n.limits.startRead(n.life, serve) },
		},
		clusterView: clusterView{
			clustered: i.opts.clustered(), peers: n.peers, facts: n.meta.current, mayLead: n.life.mayLead,
			electionTimeout: i.opts.ElectionTimeout, announce: n.gossip.announce, groupOptions: n.groupOptions,
		},
		services: n.services(),
	}
}

// indexes returns where the node keeps its indexes.
func (n *Node) indexes() indexOptions {
	if n.identity.opts.NoIndex {
		return indexOptions{}
	}
	return indexOptions{dir: filepath.Join(n.store.Dir(), "index"), budget: n.limits.indexes, room: n.space.takes}
}

func (n *Node) newClusterInfo() *clusterInfo {
	i, id := n.identity, n.store.Identity()
	return &clusterInfo{
		self: i.opts.Name, cluster: id.Cluster, id: id.ID, version: i.opts.Version, partitions: id.Partitions, feedKey: i.feedKey().Public().(ed25519.PublicKey),
		peers: n.peers, facts: n.meta.current, ready: n.Ready, stats: n.stats, answers: n.conns.readOutbox,
	}
}

func (n *Node) newNamespaces() *namespaces {
	i := n.identity
	return &namespaces{
		log: i.log, names: i.names, facts: n.meta.current, shared: n.shared, server: n.nats,
		info: func(name string, partitions int) *clusterInfo {
			c := n.newClusterInfo()
			c.namespace, c.partitions, c.feedKey = name, partitions, namespaceKey(i.feedKey(), name).Public().(ed25519.PublicKey)
			return c
		},
	}
}

func (n *Node) newNodeCollector() *nodeCollector {
	o := &n.identity.opts
	return &nodeCollector{
		self: o.Name, version: o.Version, locks: o.MaxLocks, ids: o.MaxMsgIDs, limits: n.limits, ready: n.Ready,
		facts: n.meta.current, peers: n.peers, space: n.space, store: n.store, server: n.nats,
	}
}

// applied returns how far this node's replica has applied a group's log, 0
// without a replica.
func (n *Node) applied(group uint32) uint64 {
	if group == metaGroup {
		return n.currentMeta().group.Applied()
	}
	if c := n.replicas.get(int(group)); c != nil {
		if r := c.current(); r != nil {
			return r.group.Applied()
		}
	}
	return 0
}

// describe adds the node's replicas, and whether it is ready, to its status.
func (n *Node) describe(a *announcement) {
	m := n.currentMeta()
	if m == nil {
		return
	}
	facts, _ := m.current()
	a.Facts, a.Members = facts.Version, facts.Names()
	r := m.report()
	a.Meta = &r
	for _, c := range n.replicas.list() {
		if r, ok := c.report(); ok {
			a.Groups = append(a.Groups, r)
		}
	}
	a.Full, a.Damaged = n.space.isFull(), n.scrubber.damaged()
	a.Unready = n.unready()
	a.Ready = a.Unready == ""
}

// measure sets in another node's status how far its replicas are behind this
// node's.
func (n *Node) measure(a *announcement) {
	n.replicas.measure(a)
	if m := n.currentMeta(); m != nil && a.Meta != nil {
		a.Meta.measure(m.group)
	}
}

// heard handles a member's status.
func (n *Node) heard(a announcement) {
	// A status whose node has not proved its directory yet is not compared. The
	// node repeats it, and will have connected by then.
	if n.generations.vouched(a.NodeID) {
		n.replicas.compare(a)
		n.currentMeta().compare(a)
	}
	n.membership.check(a)
}

func (n *Node) checkMember(name, id string) error { return n.currentMeta().checkMember(name, id) }

// isMember reports whether a node is a member by the facts that this node has.
func (n *Node) isMember(name, id string) bool {
	facts := bootstrapFacts(n.store.Identity())
	if m := n.currentMeta(); m != nil {
		facts, _ = m.current()
	}
	member, is := facts.Nodes[name]
	return is && member.ID == id
}

// handshake connects to another node, so that each shows the other its
// generations.
func (n *Node) handshake(ctx context.Context, node string) error {
	return n.network.Handshake(ctx, node)
}

// reconnect closes the replication connections to other nodes, which are then
// made again.
func (n *Node) reconnect() {
	n.mu.Lock()
	network := n.network
	n.mu.Unlock()
	if network != nil {
		network.Reconnect()
	}
}
