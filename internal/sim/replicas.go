package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cantuslog/cantus/internal/simnet"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/wal"
)

// Replica is an application that has one replica on each node, of one group.
type Replica interface {
	// Start opens a node's replica. Stop closes it and waits for its
	// goroutines. They are called alternately for each node, by one goroutine
	// at a time; for several nodes they run concurrently.
	Start(n *Node) (*raftstore.Group, error)
	Stop(n *Node)
	// Trim removes the head of a running node's log, as far as the application
	// can do without it.
	Trim(n *Node)
}

// Replicas runs a [Replica] on the nodes of a cluster, each over a store and a
// network of its own. It is an [App].
type Replicas struct {
	Cluster *Cluster
	Replica Replica
}

// Leader implements [App]. If several nodes lead, it is the one of the latest
// term.
func (r *Replicas) Leader() (leader *Node) {
	term := uint64(0)
	for _, n := range r.Cluster.Nodes {
		if g := n.Group(); g != nil && g.Leading() && g.Term() >= term {
			leader, term = n, g.Term()
		}
	}
	return leader
}

// Operate implements [App], for transfers, trims, restarts, rebuilds and
// freezes.
func (r *Replicas) Operate(ctx context.Context, n *Node, f Fault) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	switch g := n.Group(); {
	case f.Kind == Trim:
		r.Replica.Trim(n)
	case g == nil:
	case f.Kind == Transfer:
		return g.Transfer(ctx, "")
	case f.Kind == Freeze:
		BlockRaft(ctx, g)
	case f.Kind == Restart:
		n.ask(Restart)
	case f.Kind == Rebuild && r.whole():
		n.ask(Rebuild)
	}
	return nil
}

// BlockRaft has a leader's group write to the disk twice, which stands still:
// what comes first blocks raft's main goroutine, and what comes second blocks
// it again when it goes on, while what has arrived is read.
func BlockRaft(ctx context.Context, g *raftstore.Group) {
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() { _ = g.Barrier(ctx) })
		time.Sleep(10 * time.Millisecond)
	}
	both.Wait()
}

// whole reports whether every node has a replica, so that one may be rebuilt.
func (r *Replicas) whole() bool {
	return !slices.ContainsFunc(r.Cluster.Nodes, func(n *Node) bool { return n.Group() == nil || len(n.asked) > 0 })
}

// ask asks for a restart of a node's replica in good order, or for it to be
// rebuilt from the others.
func (n *Node) ask(operation Kind) {
	select {
	case n.asked <- operation:
	default:
	}
}

// Converged reports whether all nodes run and have applied the same entries.
func (r *Replicas) Converged() bool {
	leader := r.Leader()
	if leader == nil {
		return false
	}
	g := leader.Group()
	if g == nil {
		return false
	}
	status := g.Status()
	for _, n := range r.Cluster.Nodes {
		g := n.Group()
		if g == nil {
			return false
		}
		s := g.Status()
		if s.AppliedIndex != status.LastIndex || s.LastIndex != status.LastIndex || s.CommitIndex != status.LastIndex {
			return false
		}
	}
	return true
}

// Positions says where each node's replica is.
func (r *Replicas) Positions() string {
	var all []string
	for _, n := range r.Cluster.Nodes {
		g := n.Group()
		if g == nil {
			all = append(all, n.Name+" has no replica")
			continue
		}
		s := g.Status()
		all = append(all, fmt.Sprintf("%s is a %s in term %d, has applied %d, knows that %d is committed, and its log ends at %d",
			n.Name, s.State, s.Term, s.AppliedIndex, s.CommitIndex, s.LastIndex))
	}
	return strings.Join(all, "; ")
}

// Process implements [App].
func (r *Replicas) Process(ctx context.Context, n *Node) (err error) {
	store, err := wal.Open(n.dir, wal.Options{
		Identity: wal.Identity{Cluster: "sim", Node: n.Name, Partitions: 1}, FS: n.Disk(),
		SegmentSize: 1 << 20, CheckpointBytes: n.cluster.opts.CheckpointBytes, TailBytes: n.cluster.opts.TailBytes,
		FreeSpace: func(string) (int64, error) { return 1 << 40, nil },
		Logger:    n.cluster.logger(n.Name),
	})
	if errors.Is(err, syscall.EIO) { // of a disk that fails while it is opened
		n.cluster.Note("%s: %v", n.Name, err)
		n.Restart()
		return nil
	}
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.store = store
	n.mu.Unlock()
	defer func() { // a store whose disk is gone can't be closed without an error
		if e := store.Close(); e != nil && err == nil && store.Failed() == nil {
			err = e
		}
	}()
	listener, err := n.cluster.Net.Listen(simnet.Address(n.Name, "raft"))
	if err != nil {
		return err
	}
	if n.Disk().isCut() { // meanwhile
		n.cluster.Net.PowerOff(n.Name)
	}
	network, err := raftstore.NewNetwork(raftstore.NetworkOptions{
		Node: n.Name, Cluster: "sim", Key: key, Listener: listener, Dial: n.cluster.Net.Dialer(n.Name),
		Resolve: func(to string) (string, error) { return simnet.Address(to, "raft"), nil },
		Logger:  n.cluster.logger(n.Name),
	})
	if err != nil {
		return err
	}
	defer network.Close()
	n.mu.Lock()
	n.network = network
	n.mu.Unlock()
	next := endProcess
	if raftstore.Fetching(n.Log()) {
		next = fetchLog
	}
	for {
		if next == rebuildLog || next == fetchLog {
			if err := r.replaceLog(ctx, n, next == rebuildLog); err != nil {
				if n.Store().Failed() != nil {
					n.cluster.Note("%s: %v", n.Name, err)
					n.Restart()
					return nil
				}
				return err
			}
		}
		if next, err = r.run(ctx, n); err != nil || next == endProcess {
			return err
		}
	}
}

// step is what follows when a replica was closed.
type step int

const (
	endProcess step = iota
	openAgain
	fetchLog   // what it lacks, and open it again
	rebuildLog // the same, with all of it
)

// key is the cluster's secret.
var key = []byte("the secret of a simulated cluster")

// run runs a node's replica until the process ends, or until the replica is
// behind, or to be opened again or rebuilt.
func (r *Replicas) run(ctx context.Context, n *Node) (next step, err error) {
	group, err := r.Replica.Start(n)
	if err != nil {
		return endProcess, err
	}
	n.setGroup(group)
	defer r.Replica.Stop(n)
	defer n.setGroup(nil)
	select {
	case <-ctx.Done():
	case <-n.ended:
	case <-n.Store().Failure():
		n.cluster.Note("%s: its store has failed: %v", n.Name, n.Store().Failed())
		n.Restart()
	case <-group.Behind():
		n.cluster.Note("%s is behind", n.Name)
		return fetchLog, nil
	case operation := <-n.asked:
		n.cluster.Note("%s: %s", n.Name, operation)
		if operation == Rebuild {
			return rebuildLog, nil
		}
		return openAgain, nil
	}
	return endProcess, nil
}

func (n *Node) setGroup(g *raftstore.Group) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.group = g
}

// replaceLog fetches a node's log from the others, anew or as far as it lacks
// it. The replica must have every committed entry afterwards that it had
// before: it may have acknowledged it.
func (r *Replicas) replaceLog(ctx context.Context, n *Node, anew bool) error {
	log := n.Log()
	if had, err := terms(log); err == nil && len(had) > len(n.had) {
		n.had = had
	}
	if anew {
		if err := raftstore.Reset(log); err != nil {
			return err
		}
	}
	if err := n.fetch(ctx); err != nil {
		return err
	}
	for index, term := range n.had {
		if index > log.LastIndex() && r.committed(index, term) {
			n.cluster.Fail("%s has fetched a log that ends at entry %d, and had entry %d of term %d, which is committed", n.Name, log.LastIndex(), index, term)
			break
		}
	}
	n.had = nil
	return nil
}

// terms returns the terms of a log's entries.
func terms(log *wal.Log) (map[uint64]uint64, error) {
	all := map[uint64]uint64{}
	for index := max(1, log.FirstIndex()); index <= log.LastIndex(); index++ {
		e, err := log.Entry(index)
		if err != nil {
			return nil, err
		}
		all[index] = e.Term
	}
	return all, nil
}

// committed reports whether a replica knows that an entry is committed.
func (r *Replicas) committed(index, term uint64) bool {
	return slices.ContainsFunc(r.Cluster.Nodes, func(n *Node) bool {
		g := n.Group()
		if g == nil || g.Status().CommitIndex < index {
			return false
		}
		e, err := n.Log().Entry(index)
		return err == nil && e.Term == term
	})
}

// fetch fetches the log from the other nodes, one after the other, until one
// has what is needed.
func (n *Node) fetch(ctx context.Context) error {
	for i := 0; ; i++ {
		from := n.Voters[i%len(n.Voters)]
		if from == n.Name {
			continue
		}
		err := raftstore.Fetch(ctx, n.Network(), GroupID, from, n.Log())
		if err == nil {
			n.cluster.Note("%s has fetched the log from %s", n.Name, from)
			return nil
		}
		if ctx.Err() != nil || n.Disk().isCut() || n.Store().Failed() != nil {
			return errors.Join(ctx.Err(), err)
		}
		select {
		case <-ctx.Done():
		case <-n.ended:
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}
