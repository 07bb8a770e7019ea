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

func (s *replicaSet) set(all []*replicaController) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = all
}

// list returns all controllers, none while the node is starting.
func (s *replicaSet) list() []*replicaController {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all
}

// get returns the controller of a partition, nil if there is no such partition.
func (s *replicaSet) get(partition int) *replicaController {
	all := s.list()
	if partition < 0 || partition >= len(all) {
		return nil
	}
	return all[partition]
}

// open yields the replicas that are open.
func (s *replicaSet) open() iter.Seq[*replica] {
	return func(yield func(*replica) bool) {
		for _, c := range s.list() {
			if r := c.current(); r != nil && !yield(r) {
				return
			}
		}
	}
}

// archives yields the archived transactions of the replicas that are open.
func (s *replicaSet) archives() iter.Seq[*archiveReader] {
	return func(yield func(*archiveReader) bool) {
		for r := range s.open() {
			if !yield(&r.archived) {
				return
			}
		}
	}
}

// compare compares the digests of this node's replicas with another node's.
func (s *replicaSet) compare(a announcement) {
	for _, report := range a.Groups {
		c := s.get(report.Partition)
		if c == nil {
			continue
		}
		if r := c.current(); r != nil && r.fencing.fenced.Load() == nil {
			r.fencing.compare(a.Name, report)
		}
	}
}

// measure sets in a node's status how far its replicas are behind this node's.
// It must be called when the status arrives: later, this node's replicas have
// more entries.
func (s *replicaSet) measure(a *announcement) {
	for i := range a.Groups {
		c := s.get(a.Groups[i].Partition)
		if c == nil {
			continue
		}
		if r := c.current(); r != nil {
			a.Groups[i].measure(r.group)
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
func (s *replicaSet) mayHold(facts cluster.Facts, name string, now time.Time) bool {
	for p := range facts.Placement {
		if slices.Contains(facts.Placement[p], name) {
			return true
		}
		report, ok := s.leaderReport(p, now)
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
func (s *replicaSet) leaderReport(partition int, now time.Time) (groupReport, bool) {
	_, report, ok := s.peers.leader(partition, now)
	if r := s.get(partition).current(); r != nil {
		if own := r.report(); own.leads() && (!ok || own.Term > report.Term) {
			return own, true
		}
	}
	return report, ok
}
