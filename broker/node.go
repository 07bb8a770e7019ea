package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/cantuslog/cantus/broker/internal/loglimit"
	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/broker/internal/natsserver"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/wal"
)

// Node is a running node. It makes its parts, opens them and closes them. Each
// part declares what it needs; none holds a reference to the Node.
type Node struct {
	identity   *identity
	advisories *advisories
	peers      *peers
	gossip     *gossip
	bootstrap  *bootstrap
	membership *membership
	shared     *sharedSubjects
	pacer      *pacer

	nats     natsServer
	conns    *connections
	watch    *serverWatch
	listener net.Listener // for replication, until network has it
	http     *httpServer

	// mu guards what a node that is starting does not have yet.
	mu          sync.Mutex
	store       *wal.Store
	generations *generations // of the data directory
	network     *raftstore.Network
	meta        *meta
	operations  *operations
	absences    *absences
	served      bool // it was ready once
	replicas    *replicaSet

	metrics   *metrics
	tracing   *tracing
	stats     *serviceStats
	space     *space
	scrubber  *scrubber
	limits    *limits
	reloading sync.Mutex

	leaderships loglimit.Burst // see host
	probes      atomic.Uint64  // calls of Probe
	life        *lifecycle
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
	n := &Node{
		identity: newIdentity(opts, m.rejected), conns: &connections{}, metrics: m, stats: newServiceStats(), limits: newLimits(opts),
		life: newLifecycle(opts.Logger),
	}
	n.tracing = startTracing(&n.identity.opts, m.registry)
	n.wire()
	if err := n.open(ctx, dir); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// open opens the node's parts. A directory that belongs to no cluster yet is
// opened only once its node has founded or joined one, which it does over NATS.
func (n *Node) open(ctx context.Context, dir string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	known, err := n.openKnown(dir)
	if err != nil {
		return err
	}
	if err := n.openNATS(ctx, known); err != nil {
		return err
	}
	if n.identity.opts.HTTPListen != "" {
		if n.http, err = startHTTP(n.identity.opts, n.metrics, n.unready, n.Probe); err != nil {
			return err
		}
	}
	if !known {
		if err := n.openNew(ctx, dir); err != nil {
			return err
		}
	}
	if err := n.openReplicas(); err != nil {
		return err
	}
	n.runParts(n.life.running)
	return n.serve(ctx)
}

// openKnown opens the store of a data directory that belongs to a cluster or to
// a standalone node. known is false for one that belongs to neither yet.
func (n *Node) openKnown(dir string) (known bool, err error) {
	n.membership.dir = dir
	id, known, err := n.bootstrap.identify(dir)
	if err != nil {
		return false, err
	}
	n.identity.setPlanned(id)
	if !known {
		return false, nil
	}
	if n.bootstrap.fresh {
		if err := checkStart(n.identity.opts); err != nil {
			return false, err
		}
	}
	return true, n.openStore(dir, id)
}

// openNew waits until this node has founded or joined a cluster, and opens the
// store of its data directory.
func (n *Node) openNew(ctx context.Context, dir string) error {
	id, err := n.bootstrap.run(ctx)
	if err != nil {
		return err
	}
	if err := n.openStore(dir, id); err != nil {
		return err
	}
	return n.nats.MapKeys(n.identity.names, id.Partitions)
}

func (n *Node) openStore(dir string, id wal.Identity) error {
	opts := n.identity.opts.store
	opts.Identity, opts.TailBytes, opts.Logger = id, n.identity.opts.CacheBytes/id.Partitions, n.identity.log
	opts.Damaged = func(d wal.Damage) { n.scrubber.readDamage(d) }
	opts.Repairable = n.identity.opts.clustered()
	store, err := wal.Open(dir, opts)
	if err != nil {
		return err
	}
	g := n.newGenerations()
	err = g.open(store)
	n.mu.Lock()
	n.store, n.generations = store, g // statuses are handled already, and use both
	n.mu.Unlock()
	n.space = n.newSpace(store)
	n.scrubber.store, n.scrubber.dir = store, dir
	n.identity.setFounded(store.Identity())
	for _, left := range store.Identity().Past {
		n.identity.log.Info("this node's cluster was recovered from another, without its other nodes", "left", left.Cluster, "id", left.ID, "at", left.Left.Format(time.RFC3339))
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	return n.identity.openSecret(dir)
}

// openNATS starts the NATS server and connects the node to it. In a cluster,
// the node then announces itself and hears the others.
func (n *Node) openNATS(ctx context.Context, known bool) (err error) {
	partitions := 0
	if known {
		partitions = n.store.Identity().Partitions
	}
	i := n.identity
	if i.opts.clustered() {
		if n.listener, i.raftAddr, err = listenRaft(i.opts); err != nil {
			return err
		}
	}
	i.opts.routePassword = routePassword(i.currentSecret(), i.opts.Cluster)
	opts := i.opts
	if i.opts.clustered() {
		// A NATS server drops the connection of one that has the name of
		// another. A node must be able to hear that its own name is taken.
		opts.Name = natsserver.ServerName(opts.Name, i.directory())
	}
	if n.nats, err = opts.startNATS(ctx, partitions); err != nil {
		n.nats = nil
		return err
	}
	n.warnOfExpired(time.Now())
	if err := n.conns.open(n.nats, i.names, i.log); err != nil {
		return err
	}
	n.wireConnections()
	if !i.opts.clustered() {
		n.life.allowLeading()
		return nil
	}
	return n.startGossip()
}

// startGossip begins to send announcements, and to handle those of other nodes
// and their questions about pace.
func (n *Node) startGossip() error {
	i := n.identity
	for subject, handle := range map[string]func(*natslink.Message){
		i.names.Admin("hello"):             n.gossip.onAnnouncement,
		i.names.Admin("pace"):              n.pacer.onQuestion,
		i.names.Admin("pace", i.opts.Name): n.pacer.onAnswer,
	} {
		if _, err := n.conns.reads.Subscribe(subject, "", handle); err != nil {
			return err
		}
	}
	n.life.gossip.Go(n.gossip.run)
	n.life.leadTimer = time.AfterFunc(leadAnywayTime, n.life.allowLeading)
	return nil
}

// openReplicas opens the facts, and then, side by side, all replicas whose logs
// need not be fetched: each rebuilds its tables.
func (n *Node) openReplicas() error {
	if n.listener != nil {
		network, err := raftstore.NewNetwork(n.networkOptions())
		if err != nil {
			return err
		}
		n.mu.Lock()
		n.network, n.listener = network, nil
		n.mu.Unlock()
		n.scrubber.sources.network = network
	}
	m := n.newMeta()
	if err := m.open(n.groupOptions); err != nil {
		return err
	}
	controllers := make([]*replicaController, n.store.Identity().Partitions)
	for i := range controllers {
		controllers[i] = newReplicaController(n.controllerConfig(i, m), i, n.identity.log.With("partition", i), n.store.Log(uint32(i)))
	}
	n.mu.Lock()
	n.meta, n.operations, n.absences = m, m.operations, m.operations.absences
	n.mu.Unlock()
	n.replicas.set(controllers)
	var g errgroup.Group
	for _, c := range controllers {
		g.Go(c.openLocal)
	}
	return g.Wait()
}

// runParts starts the parts that have goroutines of their own, until ctx ends.
func (n *Node) runParts(ctx context.Context) {
	background := &n.life.background
	background.Go(func() { n.pacer.answer(ctx) })
	background.Go(func() { n.watchStore(ctx) })
	n.space.check()
	background.Go(func() { n.meta.run(ctx) })
	background.Go(func() { n.absences.run(ctx) })
	background.Go(func() { n.scrubber.run(ctx) })
	if n.identity.opts.Archive != nil {
		background.Go(func() { watchArchive(ctx, n.replicas.archives) })
	}
	if n.network != nil {
		background.Go(func() { n.generations.run(ctx) })
	}
	for _, c := range n.replicas.list() {
		background.Go(func() { c.run(ctx) })
	}
}

// serve subscribes to the node's own subjects, and waits until every partition
// is served.
func (n *Node) serve(ctx context.Context) error {
	if _, err := n.shared.add(n.identity.names.Info(), n.newClusterInfo().serve); err != nil {
		return err
	}
	if err := n.operations.subscribeNode(n.life.running); err != nil {
		return err
	}
	if err := n.shared.update(); err != nil {
		return err
	}
	n.life.background.Go(func() { n.shared.run(n.life.running) })
	n.life.background.Go(func() { n.newNamespaces().run(n.life.running) })
	if err := n.startDiscovery(); err != nil {
		return err
	}
	n.metrics.registry.MustRegister(n.newNodeCollector(), newPartitionCollector(n.identity.opts.Name, n.meta, n.peers, n.replicas.list()))
	if err := n.awaitServed(ctx); err != nil {
		return err
	}
	if err := n.shared.update(); err != nil {
		return err
	}
	n.mu.Lock()
	n.served = true
	n.mu.Unlock()
	return n.conns.reads.Flush(ctx)
}

// startDiscovery makes the node known to NATS service discovery, by which it
// also checks that it hears its own requests.
func (n *Node) startDiscovery() error {
	i := n.identity
	d := newDiscovery(i.opts.Prefix, i.opts.Name, n.store.Identity().Cluster, i.opts.Version, n.stats)
	if err := startDiscovery(d, n.conns.reads, n.conns.readOutbox); err != nil {
		return err
	}
	n.watch.serviceID = d.id
	if err := n.watch.checkMappings(); err != nil {
		return err
	}
	n.life.background.Go(func() { n.watch.run(n.life.running) })
	return nil
}

// awaitServed waits until every partition is served.
func (n *Node) awaitServed(ctx context.Context) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for why := n.unserved(); why != ""; why = n.unserved() {
		if err := n.refusedSubscription(); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-n.life.stopped:
			return n.Err()
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", cmp.Or(n.unserved(), why), ctx.Err()) // why may be old
		}
	}
	return nil
}

// refusedSubscription returns what an operator has to change before the node
// can serve: the NATS server refuses its subscriptions.
func (n *Node) refusedSubscription() error {
	if err := n.conns.refusedSubscription(); err != nil {
		return err
	}
	for r := range n.replicas.open() {
		if refused := r.refused.Load(); refused != nil {
			return *refused
		}
	}
	return nil
}

// watchStore stops the node when its storage fails, and checks every second
// whether the disk has room.
func (n *Node) watchStore(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.store.Failure():
			n.life.fail(n.store.Failed())
			return
		case <-n.store.RoomChecked():
			n.space.check()
		}
	}
}

// Ready reports whether every replica of this node serves its partition, or
// knows its leader and has caught up with one since it was opened, and can be
// read as a whole.
func (n *Node) Ready() bool { return n.unready() == "" }

// unready returns what keeps the node from being ready, "" if nothing does.
func (n *Node) unready() string {
	if why := n.unserved(); why != "" {
		return why
	}
	for r := range n.replicas.open() {
		if e := r.unsendable.now(); e != nil {
			return fmt.Sprintf("partition %d can't be read as a whole: %s", r.id, e)
		}
	}
	return ""
}

// unserved returns what keeps the node from serving, "" if nothing does.
func (n *Node) unserved() string {
	if err := n.Err(); err != nil {
		return err.Error()
	}
	meta := n.currentMeta()
	suspicion := n.membership.suspicion.Load()
	switch {
	case n.identity.stopping.Load():
		return "stopping"
	case suspicion != nil:
		return *suspicion
	case meta == nil:
		return "waiting for the other nodes"
	case n.watch.trouble() != "":
		return n.watch.trouble()
	case n.generations.why() != "":
		return "the data directory is an older copy of itself: " + n.generations.why()
	case meta.halted.Load() != nil:
		return (*meta.halted.Load()).Error()
	case meta.group.Status().Leader == "":
		return "the cluster's facts have no leader"
	}
	for _, c := range n.replicas.list() {
		if why := c.unserved(); why != "" {
			return why
		}
	}
	return ""
}

// Done returns a channel that is closed when the node has stopped serving: by
// Close, or by itself because of an error, which [Node.Err] returns.
func (n *Node) Done() <-chan struct{} { return n.life.stopped }

// Err returns why the node stopped by itself, nil if it did not.
func (n *Node) Err() error { return n.life.failure() }

// ClientURL returns the URL at which NATS clients connect, "" if no port is
// open.
func (n *Node) ClientURL() string {
	if n.nats.Addr() == nil {
		return ""
	}
	return n.nats.ClientURL()
}

// HTTPAddr returns the host:port of health and metrics, "" if it is not open.
func (n *Node) HTTPAddr() string {
	if n.http == nil {
		return ""
	}
	return n.http.addr
}

// Partitions returns the number of partitions.
func (n *Node) Partitions() int { return len(n.replicas.list()) }

// Name returns the node's name in its cluster.
func (n *Node) Name() string { return n.identity.opts.Name }

// OpenPorts describes in one line which ports are open, and to whom.
func (n *Node) OpenPorts() string {
	ports := openPorts{server: n.nats, replication: n.network}
	if n.http != nil {
		ports.http = n.http.addr
	}
	return ports.String()
}

// Conn opens a connection to the node within the process, without any port. It
// has the permissions of an application: it can't publish or subscribe to the
// subjects that are for nodes only. The caller closes it.
func (n *Node) Conn(opts ...nats.Option) (*nats.Conn, error) {
	return connect(n.nats, n.nats.AppUser(), opts...)
}
