package broker

import (
	"fmt"

	"github.com/cantuslog/cantus/lockmgr"
)

// Tables describes the locks and message ids that a node's replica remembers.
func Tables(n *Node, partition int) lockmgr.State {
	r := n.replicas.get(partition).current().state
	r.certifier.mu.Lock()
	defer r.certifier.mu.Unlock()
	return lockmgr.StateOf(r.certifier.table)
}

// TrimPoints describes where a node's replica begins, and where it can be
// trimmed.
func TrimPoints(n *Node, partition int) string {
	r := n.replicas.get(partition).current().state
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Sprintf("first %d base %v %d %d time %d %d newest %v bytes %d %d cut %d points %v", r.first, r.base, r.baseTime, r.baseBytes, r.certifier.time(), r.lastTime, r.lastPoint, r.bytes, r.behind, r.trimIndex, r.trimPoints)
}

// Trimmed reports whether a node's replica has deleted all entries that were
// trimmed.
func Trimmed(n *Node, partition int) bool {
	r := n.replicas.get(partition).current()
	r.state.mu.Lock()
	defer r.state.mu.Unlock()
	return r.store.FirstIndex() > r.state.trimIndex
}

// Entries returns how many entries a node's log of a partition holds, and how
// many of them were read since the node was opened.
func Entries(n *Node, partition int) (held, read uint64) {
	r := n.replicas.get(partition).current()
	return r.store.LastIndex() + 1 - r.store.FirstIndex(), r.store.EntriesRead()
}

// PointEvery sets how many transactions lie between trim points.
func PointEvery(o *Options, transactions uint64) { o.pointEvery = transactions }

// Trimming sets a function that is called before each step of trimming a log.
func Trimming(o *Options, step func(string)) { o.trimming = step }

// Replica returns a value that identifies the replica of a partition, which
// changes when another takes its place; nil if there is none.
func Replica(n *Node, partition int) any {
	if r := n.replicas.get(partition).current(); r != nil {
		return r
	}
	return nil
}

// CountTrimPoints returns how many trim points a node's replica has, and how
// many are stored.
func CountTrimPoints(n *Node, partition int) (held, stored int) {
	r := n.replicas.get(partition).current()
	r.state.mu.Lock()
	defer r.state.mu.Unlock()
	return len(r.state.trimPoints), len(r.store.Metas(metaPoint))
}
