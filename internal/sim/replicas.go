package sim

import (
	"context"
	"errors"
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

// Operate implements [App], for transfers and trims.
func (r *Replicas) Operate(ctx context.Context, n *Node, f Fault) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	switch g := n.Group(); {
	case f.Kind == Trim:
		r.Replica.Trim(n)
	case g == nil:
	case f.Kind == Transfer:
		return g.Transfer(ctx, "")
	}
	return nil
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

// Process implements [App].
func (r *Replicas) Process(ctx context.Context, n *Node) (err error) {
	store, err := wal.Open(n.dir, wal.Options{
		Identity: wal.Identity{Cluster: "sim", Node: n.Name, Partitions: 1}, FS: n.Disk(),
		SegmentSize: 1 << 20, CheckpointBytes: n.cluster.opts.CheckpointBytes, TailBytes: n.cluster.opts.TailBytes,
		FreeSpace: func(string) (int64, error) { return 1 << 40, nil },
		Logger:    n.cluster.logger(n.Name),
	})
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
	behind := raftstore.Fetching(n.Log())
	for {
		if behind {
			if err := n.fetch(ctx); err != nil {
				return err
			}
		}
		if behind, err = r.run(ctx, n); err != nil || !behind {
			return err
		}
	}
}

// key is the cluster's secret.
var key = []byte("the secret of a simulated cluster")

// run runs a node's replica until the process ends, or until the replica is
// behind.
func (r *Replicas) run(ctx context.Context, n *Node) (behind bool, err error) {
	group, err := r.Replica.Start(n)
	if err != nil {
		return false, err
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
		return true, nil
	}
	return false, nil
}

func (n *Node) setGroup(g *raftstore.Group) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.group = g
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
