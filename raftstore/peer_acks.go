package raftstore

import (
	"errors"
	"fmt"
	"sync"

	"github.com/hashicorp/raft"
)

// peerAcks is what a leader remembers that a peer has acknowledged. If the
// peer's log is shorter later, though it follows the same leader in the same
// term, the peer has lost entries: its directory was put back to an older
// state. What it acknowledged may count as committed only because of it, and it
// would vote for a leader that lacks that.
//
// Raft itself only sees that the peer rejects a request, and sends it the
// entries that it lacks.
//
// Another replica of the same name gets peerAcks of its own: see peer.replaced. A
// request uses those that were current when it began, so a late reply says nothing
// about the new replica.
type peerAcks struct {
	mu       sync.Mutex
	term     uint64 // the term in which index was acknowledged
	index    uint64 // the newest entry that the peer is known to have acknowledged
	pipeline uint64 // the term of the pipeline that the last requests went through, or 0
	lost     uint64 // not 0: the peer has lost entries, and had this one
}

// PeersThatLostEntries returns the members that have lost entries which they
// had acknowledged to this replica, leading, and for each a text that says what
// it had.
func (g *Group) PeersThatLostEntries() map[string]string {
	if g.network == nil {
		return nil
	}
	var all map[string]string
	for _, r := range g.replicas() {
		m := g.network.peer(raft.ServerID(r.Name)).acks.Load()
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

// errLostEntries says that a peer has lost entries that it had acknowledged.
var errLostEntries = errors.New("the peer has lost entries that it had acknowledged")

// record records that the peer has acknowledged an entry, and with it all
// before.
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

// recordPipeline records that requests of a term go through a pipeline from now
// on. Only raft sees their acknowledgements.
func (m *peerAcks) recordPipeline(term uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pipeline = term
}

// beforeRequest returns the newest entry that the peer has acknowledged before
// a request is sent outside of a pipeline. The first such request after a
// pipeline begins at what raft knows to be acknowledged, if both are of one
// term. (The first request of a term begins at the leader's own end instead.)
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

// newest returns the newest entry that the peer is known to have acknowledged
// in a term.
func (m *peerAcks) newest(term uint64) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.term != term {
		return 0
	}
	return m.index
}

// check returns errLostEntries if the peer has lost entries and its last entry
// is before what it had.
func (m *peerAcks) check(last uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lost != 0 && last < m.lost {
		return errLostEntries
	}
	m.lost = 0
	return nil
}

// replaced forgets what the peer has acknowledged: its name may be that of another
// replica from now on.
func (p *peer) replaced() { p.acks.Store(&peerAcks{}) }

// recordLoss records that the peer has lost an entry that it had. first reports
// whether no loss was known before.
func (m *peerAcks) recordLoss(had uint64) (first bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	first = m.lost == 0
	m.lost = max(m.lost, had)
	return first
}

// reportLoss records that a peer has lost entries, reports it to the owner
// once, and returns an error. acks are those that the request began with.
func (t *transport) reportLoss(id raft.ServerID, p *peer, acks *peerAcks, has, had uint64) error {
	if acks.recordLoss(had) && acks == p.acks.Load() && t.peerLostEntries != nil {
		t.peerLostEntries(string(id), has, had)
	}
	return fmt.Errorf("%w: its newest is %d, and was %d", errLostEntries, has, had)
}
