package sim

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/cantuslog/cantus/internal/simnet"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/wal"
	"github.com/cantuslog/cantus/wal/journal/journaltest"
)

// GroupID is the number of the cluster's one group.
const GroupID = 1

// App is what runs on the nodes.
type App interface {
	// Start opens a node's replica. Stop closes it and waits for its
	// goroutines. They are called alternately for each node, by one goroutine
	// at a time; for several nodes they run concurrently.
	Start(n *Node) (*raftstore.Group, error)
	Stop(n *Node)
	// Trim removes the head of a running node's log, as far as the application
	// can do without it.
	Trim(n *Node)
}

// Node is a machine. Its supervisor, run, is the goroutine that opens and
// closes everything on it. A fault cuts off its disk and its network at once,
// from another goroutine, and the supervisor then closes what is left of the
// process and starts the next one.
type Node struct {
	Name   string
	Voters []string // the names of all nodes

	cluster *Cluster
	dir     string
	rng     *rand.Rand

	mu        sync.Mutex // guards the fields below
	disk      *Disk
	store     *wal.Store         // of the last process; nil before the first
	network   *raftstore.Network // of the last process
	group     *raftstore.Group   // nil while no replica runs
	downUntil time.Time          // the next process starts then
	ended     chan struct{}      // receives when a fault has ended the process; capacity 1
}

// Group returns the node's replica, or nil while none runs.
func (n *Node) Group() *raftstore.Group {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.group
}

// Store returns the open data directory.
func (n *Node) Store() *wal.Store {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.store
}

// Network returns the network of the running process.
func (n *Node) Network() *raftstore.Network {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.network
}

// Log returns the log of the running process.
func (n *Node) Log() *wal.Log { return n.Store().Log(GroupID) }

// Whole reports whether the running process still has its disk, so that what it
// has stored is durable.
func (n *Node) Whole() bool { return !n.currentDisk().isCut() && n.Store().Failed() == nil }

// end ends the process now. A new one starts after a time.
func (n *Node) end(power bool, after time.Duration) {
	if power {
		n.cluster.Net.PowerOff(n.Name)
	} else {
		n.cluster.Net.Kill(n.Name)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.disk.cut(power)
	n.downUntil = time.Now().Add(after)
	select {
	case n.ended <- struct{}{}:
	default:
	}
}

// run starts processes until ctx is done.
func (n *Node) run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := n.process(ctx); err != nil && !n.currentDisk().isCut() {
			n.cluster.Fail("%s: %v", n.Name, err)
			return
		}
		n.reboot(ctx)
	}
}

func (n *Node) currentDisk() *Disk {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.disk
}

// reboot waits until the next process may start, and gives it the disk as it
// finds it.
func (n *Node) reboot(ctx context.Context) {
	for {
		n.mu.Lock()
		wait := time.Until(n.downUntil)
		if wait <= 0 && n.disk.isCut() {
			n.disk = n.disk.next()
			select {
			case <-n.ended:
			default:
			}
		}
		n.mu.Unlock()
		if wait <= 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// process runs one process until it ends.
func (n *Node) process(ctx context.Context) (err error) {
	store, err := wal.Open(n.dir, wal.Options{
		Identity: wal.Identity{Cluster: "sim", Node: n.Name, Partitions: 1}, FS: n.currentDisk(),
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
	if n.currentDisk().isCut() { // meanwhile
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
		if behind, err = n.replica(ctx); err != nil || !behind {
			return err
		}
	}
}

// key is the cluster's secret.
var key = []byte("the secret of a simulated cluster")

// replica runs the replica until the process ends, or until the replica is
// behind.
func (n *Node) replica(ctx context.Context) (behind bool, err error) {
	group, err := n.cluster.app.Start(n)
	if err != nil {
		return false, err
	}
	n.setGroup(group)
	defer n.cluster.app.Stop(n)
	defer n.setGroup(nil)
	select {
	case <-ctx.Done():
	case <-n.ended:
	case <-n.Store().Failure():
		n.cluster.Note("%s: its store has failed: %v", n.Name, n.Store().Failed())
		n.end(false, 10*time.Millisecond)
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
		if ctx.Err() != nil || n.currentDisk().isCut() || n.Store().Failed() != nil {
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

// newNode returns a node that does not run.
func newNode(c *Cluster, name, dir string, seed uint64) *Node {
	rng := rand.New(rand.NewPCG(seed, uint64(len(c.Nodes))+100))
	return &Node{
		Name: name, Voters: c.names, cluster: c, dir: dir, rng: rng,
		disk: newDisk(journaltest.New(rng.Uint64()), rng), ended: make(chan struct{}, 1),
	}
}
