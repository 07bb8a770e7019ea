package sim

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/wal"
	"github.com/cantuslog/cantus/wal/journal/journaltest"
)

// GroupID is the number of the cluster's one group.
const GroupID = 1

// App is what runs on the nodes.
type App interface {
	// Process runs a process on a node until ctx ends, or a fault or the
	// process itself ends it: see [Node.Ended]. It returns when its goroutines
	// have ended. The next process starts then, or when the node has power
	// again. An error from a process that no fault has ended fails the run.
	// Processes of several nodes run concurrently.
	Process(ctx context.Context, n *Node) error
	// Leader returns the node that leads, nil if none does or that is not known.
	Leader() *Node
	// Operate carries an operation of a schedule out on a node. An error is
	// noted: under faults, operations may fail.
	Operate(ctx context.Context, n *Node, f Fault) error
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
	copied    *journaltest.FS    // the disk as the process has found it, if copies are kept
	change    change             // what happens to the disk before the next process starts
	erased    bool               // the disk was erased since the node's first process
	older     bool               // the process has found what the one before had found
	ended     chan struct{}      // receives when a fault has ended the process; capacity 1
	asked     chan Kind          // of a replica: Restart or Rebuild; capacity 1
	skew      time.Duration      // of the machine's clock

	// had are the entries, with their terms, that the replica had before its
	// log was to be fetched. The supervisor owns it.
	had map[uint64]uint64
}

// Now returns the time by the machine's clock.
func (n *Node) Now() time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return time.Now().Add(n.skew)
}

// setClock sets by how much the machine's clock is ahead.
func (n *Node) setClock(skew time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.skew = skew
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
func (n *Node) Whole() bool { return !n.Disk().isCut() && n.Store().Failed() == nil }

// change is what happens to a disk between two processes.
type change int

const (
	kept   change = iota
	older         // the next process finds what this one has found
	erased        // the next process finds nothing
)

// RollBack ends the process, and lets the next one find the disk as the process
// has found it. [Options.Copies] is needed.
func (n *Node) RollBack(after time.Duration) {
	n.setChange(older)
	n.end(false, after)
}

// Erase ends the process, and lets the next one find an empty disk.
func (n *Node) Erase() {
	n.setChange(erased)
	n.end(false, 10*time.Millisecond)
}

// Erased reports whether the disk was erased since the node's first process.
func (n *Node) Erased() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.erased
}

// RolledBack reports whether the process runs on the disk as the process before
// it had found it.
func (n *Node) RolledBack() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.older
}

func (n *Node) setChange(c change) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.change = max(n.change, c)
}

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
		err := n.copyDisk()
		if err == nil {
			err = n.cluster.app.Process(ctx, n)
		}
		if err != nil && !n.Disk().isCut() {
			n.cluster.Fail("%s: %v", n.Name, err)
			return
		}
		if err := n.reboot(ctx); err != nil {
			n.cluster.Fail("%s: %v", n.Name, err)
			return
		}
	}
}

// Dir returns the directory for files that are not on the simulated disk.
func (n *Node) Dir() string { return n.dir }

// Disk returns the disk of the running process.
func (n *Node) Disk() *Disk {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.disk
}

// reboot waits until the next process may start, and gives it the disk as it
// finds it.
func (n *Node) reboot(ctx context.Context) (err error) {
	for {
		n.mu.Lock()
		wait := time.Until(n.downUntil)
		if wait <= 0 && n.disk.isCut() {
			n.disk, err = n.nextDisk()
			select {
			case <-n.ended:
			default:
			}
		}
		n.mu.Unlock()
		if wait <= 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// Ended returns a channel that receives when a fault has ended the process.
func (n *Node) Ended() <-chan struct{} { return n.ended }

// Restart ends the process, which has noticed that it can't go on, and starts
// the next one soon.
func (n *Node) Restart() { n.end(false, 10*time.Millisecond) }

// newNode returns a node that does not run.
func newNode(c *Cluster, name, dir string, seed uint64) *Node {
	rng := rand.New(rand.NewPCG(seed, uint64(len(c.Nodes))+100))
	return &Node{
		Name: name, Voters: c.names, cluster: c, dir: dir, rng: rng,
		disk: newDisk(journaltest.New(rng.Uint64()), rng), ended: make(chan struct{}, 1),
		asked: make(chan Kind, 1), skew: time.Duration(rng.Int64N(int64(2*MaxSkew))) - MaxSkew,
	}
}
