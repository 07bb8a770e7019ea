package raftstore

import (
	"errors"
	"fmt"
	"sync"

	"github.com/hashicorp/raft"
)

// memory is what a leader remembers that a peer has acknowledged. A peer whose
// log is shorter later, though it follows the same leader in the same term, has
// lost entries: its directory was put back to an older state. What it
// acknowledged may count as committed only because of it, and it would vote for
// a leader that lacks that.
//
// Raft itself only sees that the peer turns a request down, and sends it what
// it lacks.
type peerAcks struct {
	mu       sync.Mutex
	term     uint64 // of index
	index    uint64 // the newest entry that is known to be acknowledged
	pipeline uint64 // the term of a pipeline through which requests went last, or 0
	lost     uint64 // not 0: it has forgotten, and had this entry
}

// Forgetful returns the members that have lost entries which they had
// acknowledged to this replica, leading, and what they had.
func (g *Group) PeersThatLostEntries() map[string]string {
	if g.network == nil {
		return nil
	}
	var all map[string]string
	for _, r := range g.replicas() {
		m := &g.network.peer(raft.ServerID(r.Name)).acks
		m.mu.Lock()
		if m.lost != 0 {
			if all == nil {
				all = map[string]string{}
			}
			all[r.Name] = fmt.Sprintf("it had acknowledged entry %d", m.lost)
		}
		m.mu.Unlock()
	}
	return all
}

// errForgot is met with a peer that has lost what it had acknowledged.
var errLostEntries = errors.New("the peer has lost entries that it had acknowledged")

// acknowledged notes that the peer has an entry, and all before it.
func (m *peerAcks) record(term, index uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if term > m.term {
		m.term, m.index = term, 0
	}
	if term == m.term {
		m.index = max(m.index, index)
	}
}

// pipelined notes that requests of a term are acknowledged to raft alone from
// now on.
func (m *peerAcks) recordPipeline(term uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pipeline = term
}

// recall returns the newest entry that the peer has acknowledged before a
// request is sent outside of a pipeline. The first such request behind a
// pipeline begins at what raft knows to be acknowledged, if both are of one term:
// the first request of a term begins at the leader's own end.
func (m *peerAcks) beforeRequest(q *raft.AppendEntriesRequest) (index uint64, err error) {
	m.mu.Lock()
	behind := m.pipeline == q.Term
	m.pipeline = 0
	m.mu.Unlock()
	if behind {
		m.record(q.Term, q.PrevLogEntry)
	}
	return m.newest(q.Term), m.check(0)
}

// has returns the newest entry that the peer has acknowledged in a term, as far
// as it is known.
func (m *peerAcks) newest(term uint64) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.term != term {
		return 0
	}
	return m.index
}

// remembers returns an error if the peer has lost entries, and its newest entry
// is not at least what it had.
func (m *peerAcks) check(last uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lost != 0 && last < m.lost {
		return errLostEntries
	}
	m.lost = 0
	return nil
}

// forget forgets all of it: the name may be another replica's from now on.
func (m *peerAcks) reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.term, m.index, m.pipeline, m.lost = 0, 0, 0, 0
}

// forgot notes that the peer has lost an entry that it had; first reports
// whether that was not known before.
func (m *peerAcks) recordLoss(had uint64) (first bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	first = m.lost == 0
	m.lost = max(m.lost, had)
	return first
}

// forgot notes that a peer has lost what it had, and returns the error.
func (t *transport) reportLoss(id raft.ServerID, p *peer, has, had uint64) error {
	if p.acks.recordLoss(had) && t.peerLostEntries != nil {
		t.peerLostEntries(string(id), has, had)
	}
	return fmt.Errorf("%w: its newest is %d, and was %d", errLostEntries, has, had)
}
