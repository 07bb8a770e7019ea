package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// Node is a running node.
type Node struct {
	opts  Options
	names subjects.Names
	log   *slog.Logger
	store *wal.Store
	nats  *natsServer

	// The node's connections to its own server: a slow reader of one kind of
	// message does not hold up the others.
	appends, reads, feeds *link
	sender, readSender    *sender

	partitions []*partition
	metrics    *metrics
	stats      *serviceStats
	http       *http.Server
	httpAddr   string

	flying  *semaphore.Weighted // batches in flight, of all partitions
	reading *semaphore.Weighted // reads being served
	full    atomic.Bool         // the disk has no room

	cancel     context.CancelFunc // stops the partitions
	background sync.WaitGroup
	readers    sync.WaitGroup

	// intake is held by who begins a reader, and by close to end that; it
	// guards deaf.
	intake sync.RWMutex
	deaf   bool // no more readers are begun

	closing   sync.Once
	closeErr  error
	stopped   chan struct{} // closed when the node is closed or has failed
	stopOnce  sync.Once
	failure   atomic.Pointer[error]
	readyOnce atomic.Bool
}

// batchesInFlight bounds the batches in flight of all partitions together.
// More of them would be smaller, and each costs a round of Raft.
const batchesInFlight = 4

// Open runs a node on the data directory dir and returns once every partition
// serves. ctx bounds the start only. The errors to test for are [ErrInUse],
// [ErrIdentity], [ErrFormat], [ErrReadOnly], [ErrDamaged] and [ErrOptions].
func Open(ctx context.Context, dir string, opts Options) (*Node, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	n := &Node{
		opts: opts, names: subjects.Names{Prefix: opts.Prefix}, log: opts.Logger, metrics: newMetrics(), stats: newServiceStats(),
		flying: semaphore.NewWeighted(batchesInFlight), reading: semaphore.NewWeighted(readsAtOnce), stopped: make(chan struct{}),
	}
	if err := n.open(ctx, dir); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

func (n *Node) open(ctx context.Context, dir string) (err error) {
	running, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	id := wal.Identity{Cluster: n.opts.Cluster, Node: n.opts.Name, Partitions: n.opts.Partitions}
	if have, err := wal.ReadIdentity(dir); err == nil && id.Partitions == 0 {
		id.Partitions = have.Partitions
	} else if id.Partitions == 0 {
		id.Partitions = defaultPartitions
	}
	store := n.opts.store
	store.Identity, store.TailBytes, store.Logger = id, n.opts.TailBytes/id.Partitions, n.log
	if n.store, err = wal.Open(dir, store); err != nil {
		return err
	}
	if n.nats, err = startNATS(ctx, n.opts, id.Partitions, n.log); err != nil {
		return err
	}
	if err := n.openLinks(); err != nil {
		return err
	}
	if err := n.openPartitions(id.Partitions); err != nil {
		return err
	}
	n.background.Go(func() { n.watchStore(running) })
	n.checkSpace()
	for _, p := range n.partitions {
		n.background.Go(func() { p.run(running) })
	}
	return n.serve(ctx, running)
}

func (n *Node) openLinks() (err error) {
	for _, l := range []struct {
		name string
		at   **link
	}{{"appends", &n.appends}, {"reads", &n.reads}, {"feed", &n.feeds}} {
		if *l.at, err = newLink(l.name, n.nats.InProcessConn, n.nats.auth, n.log); err != nil {
			return err
		}
	}
	n.sender, n.readSender = newSender(n.appends, n.log), newSender(n.reads, n.log)
	return nil
}

// openPartitions opens all replicas, side by side: each rebuilds its tables.
func (n *Node) openPartitions(count int) error {
	n.partitions = make([]*partition, count)
	var g errgroup.Group
	for i := range n.partitions {
		g.Go(func() (err error) {
			n.partitions[i], err = openPartition(n, i)
			return err
		})
	}
	err := g.Wait()
	if err != nil { // close those that did open
		opened := n.partitions[:0]
		for _, p := range n.partitions {
			if p != nil {
				opened = append(opened, p)
			}
		}
		n.partitions = opened
	}
	return err
}

// serve waits until every partition has a leader's session and subscribes to
// what is the node's and not a partition's.
func (n *Node) serve(ctx, running context.Context) error {
	for _, p := range n.partitions {
		select {
		case <-p.serving:
		case <-n.stopped:
			return n.Err()
		case <-ctx.Done():
			return fmt.Errorf("partition %d has no leader yet: %w", p.id, ctx.Err())
		}
	}
	for _, p := range n.partitions {
		if _, err := n.reads.subscribe(n.names.ReplicaRead(p.id), "cantus", p.onRead(running, p.serveReplicaRead)); err != nil {
			return err
		}
	}
	if _, err := n.reads.subscribe(n.names.Info(), "cantus", n.serveCluster); err != nil {
		return err
	}
	if err := startDiscovery(n); err != nil {
		return err
	}
	n.metrics.watch(n)
	if n.opts.HTTP != "" {
		if err := startHTTP(n, n.opts.HTTP); err != nil {
			return err
		}
	}
	n.readyOnce.Store(true)
	return n.reads.flush(ctx)
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

func (n *Node) checkSpace() {
	free, err := n.opts.freeSpace(n.store.Dir())
	if err != nil {
		n.log.Warn("free disk space unknown", "err", err)
		return
	}
	if full := free < n.opts.Reserve; full != n.full.Swap(full) {
		n.log.Warn("room on the disk", "enough", !full, "free_bytes", free, "reserve_bytes", n.opts.Reserve)
		n.advise("storage", map[string]any{"full": full, "free_bytes": free, "reserve_bytes": n.opts.Reserve})
	}
}

// fail stops the node's service because of an error that makes going on
// unsafe. The owner sees Done and closes the node.
func (n *Node) fail(err error) {
	if n.failure.CompareAndSwap(nil, &err) {
		n.log.Error("the node has failed and serves no more", "err", err)
		if n.sender != nil {
			n.advise("failed", map[string]any{"error": err.Error()})
		}
		n.cancel()
		n.stopOnce.Do(func() { close(n.stopped) })
	}
}

// Ready tells whether every replica of this node follows a leader, or leads.
func (n *Node) Ready() bool {
	if !n.readyOnce.Load() || n.Err() != nil {
		return false
	}
	for _, p := range n.partitions {
		if p.group.Status().Leader == "" {
			return false
		}
	}
	return true
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

// Conn opens a connection to the node within the process, without any port.
// The caller closes it.
func (n *Node) Conn(opts ...nats.Option) (*nats.Conn, error) {
	opts = append([]nats.Option{nats.InProcessServer(n.nats), nats.Name("in-process")}, opts...)
	return nats.Connect("", append(opts, n.nats.auth.options()...)...)
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
func (n *Node) Partitions() int { return len(n.partitions) }

// Close stops the node: no more requests are taken in, those that were are
// answered, the state is marked so that the next start replays little, and the
// stores are closed. It is idempotent and returns when all is done.
func (n *Node) Close() error {
	n.closing.Do(func() { n.closeErr = n.close() })
	return n.closeErr
}

// close is the one place that says in which order things stop.
func (n *Node) close() (err error) {
	n.readyOnce.Store(false)
	n.cancel() // sessions: unsubscribe, settle, answer
	if n.http != nil {
		err = errors.Join(err, n.http.Close())
	}
	n.background.Wait()
	n.intake.Lock()
	n.deaf = true
	n.intake.Unlock()
	n.readers.Wait()
	for _, s := range []*sender{n.sender, n.readSender} {
		if s != nil {
			s.close()
		}
	}
	for _, p := range n.partitions {
		if n.Err() == nil {
			err = errors.Join(err, p.group.Mark())
		}
		err = errors.Join(err, p.group.Close())
	}
	for _, l := range []*link{n.appends, n.reads, n.feeds} {
		if l != nil {
			n.lastWords(l)
			l.close()
		}
	}
	if n.nats != nil {
		n.nats.Shutdown()
		n.nats.WaitForShutdown()
	}
	if n.store != nil {
		err = errors.Join(err, n.store.Close())
	}
	n.stopOnce.Do(func() { close(n.stopped) })
	return err
}

// lastWords waits until the NATS server has passed on what was sent.
func (n *Node) lastWords(l *link) {
	ctx, cancel := context.WithTimeout(context.Background(), unsubscribeTime)
	defer cancel()
	if err := l.flush(ctx); err != nil {
		n.log.Debug("last answers may be lost", "link", l.name, "err", err)
	}
}
