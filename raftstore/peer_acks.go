package raftstore

import (
	"errors"
	"fmt"
	"sync"

	"github.com/hashicorp/raft"
)

// peerAcks records which entries a peer has acknowledged to this leader. If the
// peer's log is shorter later, while it follows the same leader in the same
// term, then the peer has lost entries: its directory was restored to an older
// state. Those entries may be committed only because the peer acknowledged
// them, and now it could elect a leader that lacks them.
//
// Raft would not notice: it would see that the peer rejects a request, and send
// the missing entries.
//
// A new replica of the same name gets new peerAcks: see peer.replaced. A
// request keeps using the peerAcks that were current when it began, so a late
// reply does not affect the new replica.
type peerAcks struct {
	mu       sync.Mutex // guards all fields
	term     uint64     // the term in which index was acknowledged
	index    uint64     // the newest entry that the peer is known to have acknowledged
	pipeline uint64     // if the last requests went through a pipeline, its term; else 0
	lost     uint64     // if the peer has lost entries, the newest that it had acknowledged; else 0
}

// PeersThatLostEntries returns the members that have lost entries which they
// had acknowledged to this leader, and for each a text that names the newest
// such entry.
func (g *Group) PeersThatLostEntries() map[string]string {
	if g.network == nil {
		return nil
	}
	var all map[string]string
	for _, r := range g.replicas() {
		a := g.network.peer(raft.ServerID(r.Name)).acks.Load()
		a.mu.Lock()
		if a.lost != 0 {
			if all == nil {
				all = map[string]string{}
			}
			all[r.Name] = fmt.Sprintf("it had acknowledged entry %d", a.lost)
		}
		a.mu.Unlock()
	}
	return all
}

var errLostEntries = errors.New("the peer has lost entries that it had acknowledged")

// record records that the peer has acknowledged the entries up to index.
func (a *peerAcks) record(term, index uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if term > a.term {
		a.term, a.index = term, 0
	}
	if term == a.term {
		a.index = max(a.index, index)
	}
}

// recordPipeline records that the next requests of a term go through a
// pipeline. Only raft sees the replies to them.
func (a *peerAcks) recordPipeline(term uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pipeline = term
}

// beforeRequest is called before a request is sent outside of a pipeline. It
// returns the newest entry that the peer has acknowledged. The first such
// request after a pipeline of the same term begins after the last entry that
// raft knows to be acknowledged, so beforeRequest records that entry. (The
// first request of a term begins at the end of the leader's log instead.)
func (a *peerAcks) beforeRequest(q *raft.AppendEntriesRequest) (index uint64, err error) {
	a.mu.Lock()
	afterPipeline := a.pipeline == q.Term
	a.pipeline = 0
	a.mu.Unlock()
	if afterPipeline {
		a.record(q.Term, q.PrevLogEntry)
	}
	return a.lastAcked(q.Term), a.check(0)
}

// lastAcked returns the newest entry that the peer is known to have
// acknowledged in a term.
func (a *peerAcks) lastAcked(term uint64) uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.term != term {
		return 0
	}
	return a.index
}

// check returns errLostEntries if the peer has lost entries and last, its last
// entry, is still before the newest one that it had acknowledged. Once the peer
// has that entry again, check forgets the loss.
func (a *peerAcks) check(last uint64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.lost != 0 && last < a.lost {
		return errLostEntries
	}
	a.lost = 0
	return nil
}

// replaced discards what the peer has acknowledged: from now on its name may be
// that of a new replica.
func (p *peer) replaced() { p.acks.Store(&peerAcks{}) }

// recordLoss records that the peer has lost entry had, which it had
// acknowledged. It reports whether this is the first known loss.
func (a *peerAcks) recordLoss(had uint64) (first bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	first = a.lost == 0
	a.lost = max(a.lost, had)
	return first
}

// reportLoss records that a peer has lost entries, calls peerLostEntries the
// first time, and returns an error. acks are those that the request began with.
func (t *transport) reportLoss(id raft.ServerID, p *peer, acks *peerAcks, has, had uint64) error {
	if acks.recordLoss(had) && acks == p.acks.Load() && t.peerLostEntries != nil {
		t.peerLostEntries(string(id), has, had)
	}
	return fmt.Errorf("%w: its newest is %d, and was %d", errLostEntries, has, had)
}
