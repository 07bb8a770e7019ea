package broker

import (
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/raftstore"
)

// replicaSet holds the controllers of the node's replicas, one for each
// partition. It is empty while the node is starting.
type replicaSet struct {
	peers *peers

	mu  sync.Mutex
	all []*replicaController // by partition
}

func (r *replicaSet) set(all []*replicaController) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = all
}

// list returns all controllers, none while the node is starting.
func (r *replicaSet) list() []*replicaController {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.all
}

// get returns the controller of a partition, nil if there is no such partition.
func (r *replicaSet) get(partition int) *replicaController {
	all := r.list()
	if partition < 0 || partition >= len(all) {
		return nil
	}
	return all[partition]
}

// open yields the replicas that are open.
func (r *replicaSet) open() iter.Seq[*replica] {
	return func(yield func(*replica) bool) {
		for _, c := range r.list() {
			if p := c.current(); p != nil && !yield(p) {
				return
			}
		}
	}
}

// archives yields the archived transactions of the replicas that are open.
func (r *replicaSet) archives() iter.Seq[*archiveReader] {
	return func(yield func(*archiveReader) bool) {
		for replica := range r.open() {
			if !yield(&replica.archived) {
				return
			}
		}
	}
}

// compare compares the digests of this node's replicas with another node's.
func (r *replicaSet) compare(a announcement) {
	for _, report := range a.Groups {
		c := r.get(report.Partition)
		if c == nil {
			continue
		}
		if p := c.current(); p != nil && p.fencing.fenced.Load() == nil {
			p.fencing.compare(a.Name, report)
		}
	}
}

// measure sets in a node's status how far its replicas are behind this node's.
// It must be called when the status arrives: later, this node's replicas have
// more entries.
func (r *replicaSet) measure(a *announcement) {
	for i := range a.Groups {
		c := r.get(a.Groups[i].Partition)
		if c == nil {
			continue
		}
		if p := c.current(); p != nil {
			a.Groups[i].measure(p.group)
		}
	}
}

// measure sets how far a replica is behind this node's replica of the same
// group.
func (r *groupReport) measure(own *raftstore.Group) {
	if applied := own.Applied(); applied > r.Applied {
		r.behind = applied - r.Applied
	}
}

// mayHold reports whether a node is, or may be, a member of any partition's
// group.
func (r *replicaSet) mayHold(facts cluster.Facts, name string, now time.Time) bool {
	for p := range facts.Placement {
		if slices.Contains(facts.Placement[p], name) {
			return true
		}
		report, ok := r.leaderReport(p, now)
		if !ok {
			return true // it is not known
		}
		if _, member := report.Voters[name]; member {
			return true
		}
	}
	return false
}

// leaderReport returns the report of a partition's leader, which may be this
// node.
func (r *replicaSet) leaderReport(partition int, now time.Time) (groupReport, bool) {
	_, report, ok := r.peers.leader(partition, now)
	if p := r.get(partition).current(); p != nil {
		if own := p.report(); own.leads() && (!ok || own.Term > report.Term) {
			return own, true
		}
	}
	return report, ok
}
