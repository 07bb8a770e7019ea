package broker

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/broker/internal/natsserver"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/wal"
)

// Node is a running node. It wires its parts together, opens them and closes them.
type Node struct {
	*identity
	peers      *peers
	gossip     *gossip
	founding   *founding
	membership *membership
	shared     *sharedSubjects
	pacer      *pacer

	nats *natsserver.Server
	// The node's connections to its own server: a slow reader of one kind of
	// message does not hold up the others.
	appends, reads, feeds *natslink.Link
	sender, readSender    *natslink.Sender
	watch                 *serverWatch
	listener              net.Listener // for replication, until network has it
	http                  *httpServer

	// mu guards what a node that is starting does not have yet.
	mu          sync.Mutex
	store       *wal.Store
	generations *generations // of the data directory
	network     *raftstore.Network
	meta        *meta
	operations  *operations
	absences    *absences
	control     *nats.Conn // for requests to other nodes
	served      bool       // it was ready once
	replicas    *replicaSet

	metrics   *metrics
	stats     *serviceStats
	space     *space
	limits    *limits
	reloading sync.Mutex
	life      *lifecycle
}

// Open runs a node on the data directory dir and returns once every partition
// that it holds is served, by it or by another node of its cluster. A new node
// of a cluster waits for the other founders, or to be added by an operator.
// ctx bounds the start only. The errors to test for are [ErrInUse],
// [ErrIdentity], [ErrFormat], [ErrReadOnly], [ErrDamaged], [ErrNameTaken],
// [ErrProtocol], [ErrNATSNotReady] and [ErrOptions].
func Open(ctx context.Context, dir string, opts Options) (*Node, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	m := newMetrics()
	n := &Node{identity: newIdentity(opts, m.distrusted), metrics: m, stats: newServiceStats(), limits: newLimits(opts), life: newLifecycle(opts.Logger)}
	n.peers = newPeers(n.instance, n.number.Load)
	n.replicas = &replicaSet{peers: n.peers}
	n.life.failing = n.adviseFailure
	n.wire()
	if err := n.open(ctx, dir); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

func (n *Node) open(ctx context.Context, dir string) error {
	running := n.life.running
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	n.membership.dir = dir
	id, known, err := n.founding.identify(dir)
	if err != nil {
		return err
	}
	n.identity.mu.Lock()
	n.planned = id
	n.identity.mu.Unlock()
	if known {
		if n.founding.fresh {
			if err := rehearse(n.opts); err != nil {
				return err
			}
		}
		if err := n.openStore(dir, id); err != nil {
			return err
		}
		id = n.store.Identity()
	}
	if err := n.openNATS(ctx, known); err != nil {
		return err
	}
	if n.opts.HTTPListen != "" {
		if n.http, err = startHTTP(n.opts, n.metrics, n.unready); err != nil {
			return err
		}
	}
	if !known {
		if id, err = n.founding.run(ctx); err != nil {
			return err
		}
		n.membership.joinedAt = n.founding.joinedAt
		if err := n.openStore(dir, id); err != nil {
			return err
		}
		if err := n.nats.MapKeys(id.Partitions); err != nil {
			return err
		}
	}
	if err := n.openReplicas(); err != nil {
		return err
	}
	background := &n.life.background
	background.Go(func() { n.pacer.answer(running) })
	background.Go(func() { n.watchStore(running) })
	n.space.check()
	background.Go(func() { n.meta.run(running) })
	background.Go(func() { n.absences.run(running) })
	if n.network != nil {
		background.Go(func() { n.generations.run(running) })
	}
	for _, s := range n.replicas.list() {
		background.Go(func() { s.run(running) })
	}
	return n.serve(ctx, running)
}

func (n *Node) openStore(dir string, id wal.Identity) error {
	opts := n.opts.store
	opts.Identity, opts.TailBytes, opts.Logger = id, n.opts.CacheBytes/id.Partitions, n.log
	store, err := wal.Open(dir, opts)
	if err != nil {
		return err
	}
	g := &generations{
		identity: n.identity, services: n.services(), peers: n.peers, facts: func() cluster.Facts { return n.openMeta().now() },
		greet: n.greet, reconnect: n.reconnect,
	}
	err = g.open(store)
	n.mu.Lock()
	n.store, n.generations = store, g // statuses are handled already, and use both
	n.mu.Unlock()
	n.space = newSpace(n, store)
	n.identity.setFounded(store.Identity())
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	return n.openSecret(dir)
}

// openNATS starts the NATS server and, in a cluster, has the node heard and
// hear the others.
func (n *Node) openNATS(ctx context.Context, known bool) (err error) {
	partitions := 0
	if known {
		partitions = n.store.Identity().Partitions
	}
	if err := n.listenRaft(); err != nil {
		return err
	}
	n.opts.routePassword = routePassword(n.currentSecret(), n.opts.Cluster)
	opts := n.opts
	if n.opts.clustered() {
		// NATS servers hang up on one that has the name of another. A node must be
		// able to hear that its own name is taken.
		opts.Name = natsserver.ServerName(opts.Name, n.directory())
	}
	if n.nats, err = natsserver.Start(ctx, opts.natsServer(), partitions, n.log); err != nil {
		return err
	}
	if err := n.openLinks(); err != nil {
		return err
	}
	if err := n.openControl(); err != nil {
		return err
	}
	n.watch = &serverWatch{
		log: n.log, server: n.nats, names: n.names, partitions: func() int { return n.store.Identity().Partitions },
		links: []*natslink.Link{n.appends, n.reads, n.feeds}, reads: n.reads, control: n.controlConn,
	}
	if !n.opts.clustered() {
		n.life.allowLeading()
		return nil
	}
	for subject, handle := range map[string]func(*natslink.Message){
		n.names.Admin("hello"):             n.gossip.onHello,
		n.names.Admin("pace"):              n.pacer.onQuestion,
		n.names.Admin("pace", n.opts.Name): n.pacer.onAnswer,
	} {
		if _, err := n.reads.Subscribe(subject, "", handle); err != nil {
			return err
		}
	}
	n.life.gossip.Go(n.gossip.run)
	n.life.leadTimer = time.AfterFunc(leadAnywayTime, n.life.allowLeading)
	return nil
}

func (n *Node) openLinks() (err error) {
	for _, l := range []struct {
		name string
		at   **natslink.Link
	}{{"appends", &n.appends}, {"reads", &n.reads}, {"feed", &n.feeds}} {
		*l.at, err = natslink.Open(natslink.Options{
			Name: l.name, Dial: n.nats.InProcessConn, User: n.nats.NodeUser,
			Subscriptions: n.nats.Subscriptions, MaxReply: n.nats.MaxReply(), Forbidden: natsserver.ForbiddenReplies(n.names, l.at == &n.appends),
		}, n.log)
		if err != nil {
			return err
		}
	}
	n.nats.SetLinks(n.appends, n.reads, n.feeds)
	n.sender, n.readSender = natslink.NewSender(n.appends, n.log), natslink.NewSender(n.reads, n.log)
	n.gossip.send, n.shared.reads, n.shared.refusals = n.sender, n.reads, n.readSender
	n.pacer = newPacer(n.identity, n.nats, n.peers, n.reads, n.readSender)
	return nil
}

// openReplicas opens the facts, and side by side all replicas that can be
// opened from what the node has: each rebuilds its tables.
func (n *Node) openReplicas() (err error) {
	if n.listener != nil {
		network, err := raftstore.NewNetwork(raftstore.NetworkOptions{
			Node: n.opts.Name, ID: n.store.Identity().NodeID, Cluster: n.store.Identity().ID, Key: n.derive("replication"),
			Member: n.checkMember, Claims: n.generations.claims, CheckClaims: n.generations.check,
			Listener: n.listener, Resolve: n.resolve,
			TLS: n.nats.ClusterTLS(), CatchUpRate: n.opts.CatchUpRate, Logger: n.log,
		})
		if err != nil {
			return err
		}
		n.mu.Lock()
		n.network, n.listener = network, nil
		n.mu.Unlock()
	}
	m := &meta{
		identity: n.identity, services: n.services(), stored: n.store.Log(metaGroup), peers: n.peers, replicas: n.replicas, starts: n.generations, greet: n.greet,
	}
	m.operations = &operations{
		identity: n.identity, services: n.services(), peers: n.peers, meta: m, replicas: n.replicas, membership: n.membership, shared: n.shared,
		reads: n.reads, queueGroup: n.queueGroup, status: n.gossip.status,
	}
	m.operations.absences = &absences{self: n.opts.Name, log: n.log, started: n.started, peers: n.peers, facts: m.current, away: map[string]time.Time{}}
	if err := m.open(n.groupOptions); err != nil {
		return err
	}
	slots := make([]*slot, n.store.Identity().Partitions)
	for i := range slots {
		slots[i] = newSlot(n.slotNode(i, m), i, n.log.With("partition", i), n.store.Log(uint32(i)))
	}
	n.mu.Lock()
	n.meta, n.operations, n.absences = m, m.operations, m.operations.absences
	n.mu.Unlock()
	n.replicas.set(slots)
	var g errgroup.Group
	for _, s := range slots {
		g.Go(s.openLocal)
	}
	return g.Wait()
}

// resolve returns the address at which a node said it is.
func (n *Node) resolve(node string) (string, error) {
	q, ok := n.peers.get(node)
	if !ok || q.Raft == "" {
		return "", fmt.Errorf("node %s was not heard of yet", node)
	}
	if n.opts.reroute != nil {
		return n.opts.reroute(node, q.Raft), nil
	}
	return q.Raft, nil
}

// groupOptions are those that all groups of the node have in common.
func (n *Node) groupOptions(id uint32, log *wal.Log, fsm raftstore.FSM, logger *slog.Logger) raftstore.Options {
	o := raftstore.Options{Node: n.opts.Name, Network: n.network, ID: id, Log: log, FSM: fsm, Logger: logger}
	if n.network != nil {
		o.HeartbeatTimeout, o.ElectionTimeout = n.opts.ElectionTimeout, n.opts.ElectionTimeout
	}
	return o
}

// serve subscribes to what is the node's and not a partition's, and waits
// until every partition is served.
func (n *Node) serve(ctx, running context.Context) error {
	id := n.store.Identity()
	info := &clusterInfo{
		self: n.opts.Name, cluster: id.Cluster, version: n.opts.Version, partitions: id.Partitions, feedKey: n.feedKey().Public().(ed25519.PublicKey),
		peers: n.peers, facts: n.meta.current, ready: n.Ready, stats: n.stats, answers: n.readSender,
	}
	if _, err := n.shared.add(n.names.Info(), info.serve); err != nil {
		return err
	}
	if err := n.operations.subscribeNode(running); err != nil {
		return err
	}
	if err := n.shared.update(); err != nil {
		return err
	}
	n.life.background.Go(func() { n.shared.run(running) })
	d := newDiscovery(n.opts.Prefix, n.opts.Name, id.Cluster, n.opts.Version, n.stats)
	if err := startDiscovery(d, n.reads, n.readSender); err != nil {
		return err
	}
	n.watch.serviceID = d.id
	if err := n.watch.checkMappings(); err != nil {
		return err
	}
	n.life.background.Go(func() { n.watch.run(running) })
	n.metrics.watch(watched{ready: n.Ready, free: n.space.free.Load, full: n.space.isFull, store: n.store, slots: n.replicas.list()})
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for why := n.unserved(); why != ""; why = n.unserved() {
		if err := n.refusal(); err != nil {
			return err // the operator has to change something
		}
		select {
		case <-tick.C:
		case <-n.life.stopped:
			return n.Err()
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", why, ctx.Err())
		}
	}
	if err := n.shared.update(); err != nil {
		return err
	}
	n.mu.Lock()
	n.served = true
	n.mu.Unlock()
	return n.reads.Flush(ctx)
}

// watchStore stops the node when its storage fails, and looks after the room
// on the disk.
func (n *Node) watchStore(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.store.Failure():
			n.life.fail(n.store.Failed())
			return
		case <-tick.C:
			n.space.check()
		}
	}
}

// Ready reports whether every replica of this node serves, or follows one that does,
// and can be read as a whole.
func (n *Node) Ready() bool { return n.unready() == "" }

// unready says what keeps the node from being ready, "" if nothing does.
func (n *Node) unready() string {
	if why := n.unserved(); why != "" {
		return why
	}
	for p := range n.replicas.open() {
		if e := p.unsendableNow(); e != nil {
			return fmt.Sprintf("partition %d can't be read as a whole: %s", p.id, e)
		}
	}
	return ""
}

// unserved says what keeps the node from serving, "" if nothing does.
func (n *Node) unserved() string {
	if err := n.Err(); err != nil {
		return err.Error()
	}
	meta := n.openMeta()
	doubt := n.membership.doubt.Load()
	switch {
	case n.stopping.Load():
		return "stopping"
	case doubt != nil:
		return *doubt
	case meta == nil:
		return "waiting for the other nodes"
	case n.watch.trouble() != "":
		return n.watch.trouble()
	case n.generations.why() != "":
		return "the data directory is an older copy of itself: " + n.generations.why()
	case meta.disputed.Load() != nil:
		return (*meta.disputed.Load()).Error()
	case meta.group.Status().Leader == "":
		return "the cluster's facts have no leader"
	}
	for _, s := range n.replicas.list() {
		if why := s.unserved(); why != "" {
			return why
		}
	}
	return ""
}

// Done is closed when the node has stopped serving: by Close, or by itself
// because its storage failed, which [Node.Err] tells.
func (n *Node) Done() <-chan struct{} { return n.life.stopped }

// Err tells why the node stopped by itself, nil if it did not.
func (n *Node) Err() error { return n.life.failure() }

// ClientURL is where NATS clients connect, "" if no port is open.
func (n *Node) ClientURL() string {
	if n.nats.Addr() == nil {
		return ""
	}
	return n.nats.ClientURL()
}

// HTTPAddr is the host:port of health and metrics, "" if none is open.
func (n *Node) HTTPAddr() string {
	if n.http == nil {
		return ""
	}
	return n.http.addr
}

// Partitions is the number of partitions.
func (n *Node) Partitions() int { return len(n.replicas.list()) }

// Name is the node's name in its cluster.
func (n *Node) Name() string { return n.opts.Name }
