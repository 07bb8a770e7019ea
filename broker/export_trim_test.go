package broker

import (
	"fmt"

	"github.com/cantuslog/cantus/lockmgr"
)

// Tables is what a node's replica remembers of locks and message ids.
func Tables(n *Node, partition int) lockmgr.State {
	r := n.slot(partition).current().replica
	r.certifier.mu.Lock()
	defer r.certifier.mu.Unlock()
	return lockmgr.StateOf(r.certifier.table)
}

// Cuttable describes where a node's replica begins, and where it can be cut.
func Cuttable(n *Node, partition int) string {
	r := n.slot(partition).current().replica
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Sprintf("first %d base %v time %d %d newest %v bytes %d %d cut %d points %v", r.first, r.base, r.certifier.time(), r.lastTime, r.newest, r.bytes, r.behind, r.cut, r.points)
}

// Cut reports whether a node's replica has let go of all entries that were trimmed.
func Cut(n *Node, partition int) bool {
	p := n.slot(partition).current()
	p.replica.mu.Lock()
	defer p.replica.mu.Unlock()
	return p.store.FirstIndex() > p.replica.cut
}

// Entries is how many entries a node's log of a partition holds, and how many were
// read of it since the node was opened.
func Entries(n *Node, partition int) (held, read uint64) {
	p := n.slot(partition).current()
	return p.store.LastIndex() + 1 - p.store.FirstIndex(), p.store.EntriesRead()
}

// PointEvery has the log be cut at every so many transactions.
func PointEvery(o *Options, transactions uint64) { o.pointEvery = transactions }

// Cutting has a function called before each step of cutting a log's head.
func Cutting(o *Options, step func(string)) { o.cutting = step }

// Replica tells one replica of a partition from another that takes its place; nil if
// there is none.
func Replica(n *Node, partition int) any {
	if p := n.slot(partition).current(); p != nil {
		return p
	}
	return nil
}

// Points is how many points a node's replica has, and how many of its are stored.
func Points(n *Node, partition int) (held, stored int) {
	p := n.slot(partition).current()
	p.replica.mu.Lock()
	defer p.replica.mu.Unlock()
	return len(p.replica.points), len(p.store.Metas(metaPoint))
}
