package broker

import (
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/cantuslog/cantus/broker/internal/loglimit"
	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/broker/internal/natsserver"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// Node is a running node.
type Node struct {
	opts       Options
	names      subjects.Names
	log        *slog.Logger
	instance   string // new at each start
	started    time.Time
	nodeID     string // of the data directory, while that is being founded
	raftAddr   string // what the other nodes dial, "" for a node alone
	founding   wal.Identity
	fresh      bool                   // the data directory was not founded when the node came
	dir        string                 // while it is being founded
	private    *ecdh.PrivateKey       // while it is being founded: for the secret to be sealed for
	sealedFor  map[string]string      // founders that the secret was sealed for, and their keys
	said       atomic.Uint64          // the number of the newest envelope
	doubt      atomic.Pointer[string] // why the node may be no member any more
	doubts     loglimit.Repeats       // what was said of it
	voice      voice
	distrusted loglimit.Interval
	foreigners atomic.Int64 // hellos of another cluster's nodes, while starting
	joinedAt   uint64       // version of the facts that has this node, if it has just joined

	nats *natsserver.Server
	// The node's connections to its own server: a slow reader of one kind of
	// message does not hold up the others.
	appends, reads, feeds *natslink.Link
	sender, readSender    *natslink.Sender
	pacer                 *pacer

	peers     *peers
	helloNow  chan struct{} // capacity 1: say hello at once
	helloStop chan struct{} // closed when it is said no more
	strangers loglimit.Once // instances of nodes that were complained about
	leaving   atomic.Bool   // the node is being stopped
	checked   atomic.Pointer[natsCheck]
	serviceID string       // in discovery
	listener  net.Listener // for replication, until network has it
	network   *raftstore.Network

	generations *generations // of the data directory; set once that is open

	// mu guards what a node that is starting does not have yet.
	mu      sync.Mutex
	store   *wal.Store
	away    map[string]time.Time // members that are, and since when
	secret  wal.Secret           // the cluster's, zero until there is one
	sealed  map[string][]byte    // the secret, for founders
	meta    *meta
	slots   []*slot    // by partition
	control *nats.Conn // for what the node asks of others
	served  bool       // it was ready once

	metrics   *metrics
	stats     *serviceStats
	http      *http.Server
	httpAddr  string
	httpConns *httpListener

	// limits are the options that Reload changes.
	reloading sync.Mutex
	limits    struct{ reserve, queueBytes atomic.Int64 }

	inflight *inflightLimit      // batches in flight, of all partitions
	reading  *semaphore.Weighted // reads being served
	scans    *semaphore.Weighted // reads that go through a log
	readsNow atomic.Int64        // and how many
	full     atomic.Bool         // the disk has no room
	free     atomic.Int64        // bytes free on it

	cancel     context.CancelFunc // stops the partitions
	quit       chan struct{}      // closed when the node begins to stop
	cleared    chan struct{}      // closed when the node may lead: see clear
	clearOnce  sync.Once
	clearTimer *time.Timer
	background sync.WaitGroup
	hellos     sync.WaitGroup
	readers    sync.WaitGroup

	// intake is held by who begins a reader, and by close to end that; it
	// guards deaf.
	intake sync.RWMutex
	deaf   bool // no more readers are begun

	closing  sync.Once
	closeErr error
	stopped  chan struct{} // closed when the node is closed or has failed
	stopOnce sync.Once
	failure  atomic.Pointer[error]
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
	n := &Node{
		opts: opts, names: subjects.Names{Prefix: opts.Prefix}, log: opts.Logger, metrics: newMetrics(), stats: newServiceStats(),
		instance: newInstance(), started: time.Now().UTC(), sealedFor: map[string]string{}, away: map[string]time.Time{},
		helloNow: make(chan struct{}, 1), helloStop: make(chan struct{}), quit: make(chan struct{}), cleared: make(chan struct{}),
		inflight: newInflightLimit(batchesInFlight), reading: semaphore.NewWeighted(readsAtOnce), scans: semaphore.NewWeighted(scansAtOnce()), stopped: make(chan struct{}),
	}
	n.peers = newPeers(n.instance, n.said.Load)
	n.voice.wake, n.voice.all = make(chan struct{}, 1), map[*common]struct{}{}
	n.limits.reserve.Store(opts.MinFreeBytes)
	n.limits.queueBytes.Store(int64(opts.QueueBytes))
	if err := n.open(ctx, dir); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

func (n *Node) open(ctx context.Context, dir string) error {
	running, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	id, known, err := n.identify(dir)
	if err != nil {
		return err
	}
	n.founding = id
	if known {
		if n.fresh {
			if err := n.rehearse(); err != nil {
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
		if err := startHTTP(n); err != nil {
			return err
		}
	}
	if !known {
		if id, err = n.agree(ctx); err != nil {
			return err
		}
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
	n.background.Go(func() { n.pacer.answer(running) })
	n.background.Go(func() { n.watchStore(running) })
	n.checkSpace()
	n.background.Go(func() { n.meta.run(running) })
	n.background.Go(func() { n.watchAway(running) })
	if n.network != nil {
		n.background.Go(func() { n.generations.run(running) })
	}
	for _, s := range n.slots {
		n.background.Go(func() { s.run(running) })
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
	g, err := openGenerations(n, store)
	n.mu.Lock()
	n.store, n.generations = store, g // hellos are heard already, and look at both
	n.mu.Unlock()
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
	n.opts.routePassword = routePassword(n.secret, n.opts.Cluster)
	opts := n.opts
	if n.opts.clustered() {
		// NATS servers hang up on one that has the name of another. A node must be
		// able to hear that its own name is taken.
		id := n.nodeID
		if known {
			id = n.store.Identity().NodeID
		}
		opts.Name = natsserver.ServerName(opts.Name, id)
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
	if !n.opts.clustered() {
		n.clear()
		return nil
	}
	for subject, handle := range map[string]func(*natslink.Message){
		n.names.Admin("hello"):             n.onHello,
		n.names.Admin("pace"):              n.pacer.onQuestion,
		n.names.Admin("pace", n.opts.Name): n.pacer.onAnswer,
	} {
		if _, err := n.reads.Subscribe(subject, "", handle); err != nil {
			return err
		}
	}
	n.hellos.Go(n.sayHello)
	n.clearTimer = time.AfterFunc(clearTime, n.clear)
	return nil
}

// clearTime is how long a node waits to hear of others before it leads what it
// can lead by itself.
const clearTime = 3 * time.Second

// clear lets the node lead. Before, it has heard another node of its cluster:
// one that was started on another cluster's routes must find that out before
// it answers for it.
func (n *Node) clear() { n.clearOnce.Do(func() { close(n.cleared) }) }

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
	n.pacer = newPacer(n, n.nats)
	n.sender, n.readSender = natslink.NewSender(n.appends, n.log), natslink.NewSender(n.reads, n.log)
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
	meta, err := openMeta(n)
	if err != nil {
		return err
	}
	slots := make([]*slot, n.store.Identity().Partitions)
	for i := range slots {
		slots[i] = newSlot(n, i)
	}
	n.mu.Lock()
	n.meta, n.slots = meta, slots
	n.mu.Unlock()
	var g errgroup.Group
	for _, s := range slots {
		g.Go(s.openLocal)
	}
	return g.Wait()
}

// resolve gives the address at which a node said it is.
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

// slot gives the slot of a partition, nil if there is no such partition.
func (n *Node) slot(partition int) *slot {
	n.mu.Lock()
	defer n.mu.Unlock()
	if partition < 0 || partition >= len(n.slots) {
		return nil
	}
	return n.slots[partition]
}

// serve subscribes to what is the node's and not a partition's, and waits
// until every partition is served.
func (n *Node) serve(ctx, running context.Context) error {
	if _, err := n.answerInCommon(n.names.Info(), n.serveCluster); err != nil {
		return err
	}
	if err := n.subscribeNode(running); err != nil {
		return err
	}
	if err := n.updateVoice(); err != nil {
		return err
	}
	n.background.Go(func() { n.watchVoice(running) })
	if err := startDiscovery(n); err != nil {
		return err
	}
	if err := n.checkMappings(); err != nil {
		return err
	}
	n.background.Go(func() { n.watchNATS(running) })
	n.metrics.watch(n)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for why := n.unserved(); why != ""; why = n.unserved() {
		if err := n.refusal(); err != nil {
			return err // the operator has to change something
		}
		select {
		case <-tick.C:
		case <-n.stopped:
			return n.Err()
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", why, ctx.Err())
		}
	}
	if err := n.updateVoice(); err != nil {
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
			n.fail(n.store.Failed())
			return
		case <-tick.C:
			n.checkSpace()
		}
	}
}

// fail stops the node's service because of an error that makes going on
// unsafe. The owner sees Done and closes the node.
func (n *Node) fail(err error) {
	if n.failure.CompareAndSwap(nil, &err) {
		if errors.Is(err, ErrRemoved) {
			n.log.Info("this node was removed from the cluster and stops", "reason", err)
		} else {
			n.log.Error("the node has failed and serves no more", "err", err)
			if n.sender != nil {
				n.advise("failed", map[string]any{"error": err.Error()})
			}
		}
		n.cancel()
		n.stopOnce.Do(func() { close(n.stopped) })
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
	n.mu.Lock()
	slots := n.slots
	n.mu.Unlock()
	for _, s := range slots {
		if p := s.current(); p != nil {
			if e := p.unsendableNow(); e != nil {
				return fmt.Sprintf("partition %d can't be read as a whole: %s", p.id, e)
			}
		}
	}
	return ""
}

// unserved says what keeps the node from serving, "" if nothing does.
func (n *Node) unserved() string {
	if err := n.Err(); err != nil {
		return err.Error()
	}
	n.mu.Lock()
	meta, slots := n.meta, n.slots
	n.mu.Unlock()
	doubt := n.doubt.Load()
	switch {
	case n.leaving.Load():
		return "stopping"
	case doubt != nil:
		return *doubt
	case meta == nil:
		return "waiting for the other nodes"
	case n.natsTrouble() != "":
		return n.natsTrouble()
	case n.generations.why() != "":
		return "the data directory is an older copy of itself: " + n.generations.why()
	case meta.disputed.Load() != nil:
		return (*meta.disputed.Load()).Error()
	case meta.group.Status().Leader == "":
		return "the cluster's facts have no leader"
	}
	for _, s := range slots {
		if why := s.unserved(); why != "" {
			return why
		}
	}
	return ""
}

// Done is closed when the node has stopped serving: by Close, or by itself
// because its storage failed, which [Node.Err] tells.
func (n *Node) Done() <-chan struct{} { return n.stopped }

// Err tells why the node stopped by itself, nil if it did not.
func (n *Node) Err() error {
	if p := n.failure.Load(); p != nil {
		return *p
	}
	return nil
}

// ClientURL is where NATS clients connect, "" if no port is open.
func (n *Node) ClientURL() string {
	if n.nats.Addr() == nil {
		return ""
	}
	return n.nats.ClientURL()
}

// HTTPAddr is the host:port of health and metrics, "" if none is open.
func (n *Node) HTTPAddr() string { return n.httpAddr }

// Partitions is the number of partitions.
func (n *Node) Partitions() int { return len(n.slots) }

// Name is the node's name in its cluster.
func (n *Node) Name() string { return n.opts.Name }
