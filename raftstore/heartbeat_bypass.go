package raftstore

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// heartbeatBypass decides which heartbeats of a group may bypass raft's main
// goroutine. That goroutine may be writing to the disk for longer than a
// heartbeat can wait, so raft lets a transport pass heartbeats to its handler
// on another goroutine. But the handler treats a heartbeat like any other
// request: it may raise the term and step down while the main goroutine still
// acts as the leader of the old term. The main goroutine would then write
// entries of a term that it never led.
//
// So a heartbeat goes to the main goroutine (sendToMain) like any other
// request, unless that goroutine already follows this leader in this term
// (bypassMain). In that case the handler only changes the time of the last
// contact.
//
// Raft stops following in three cases: it starts an election, it sees a newer
// term, or a leader asks it to start an election. In each of them the main
// goroutine first clears the leader and notifies its observers, which it waits
// for. The observer here, revoke, locks mu, and bypassMain holds mu from its
// check until the handler has returned. So no heartbeat bypasses the main
// goroutine once that has begun to stop following. revoke also increments
// revocations, so that an earlier reply of the main goroutine does not renew
// the permission.
type heartbeatBypass struct {
	mu          sync.Mutex // guards the next three fields
	revocations uint64     // number of times that raft has cleared its leader
	term        uint64     // the leader's term, 0 while no heartbeat may bypass
	leader      string

	// queued counts the heartbeats that wait for the main goroutine.
	queued atomic.Int64
}

// maxQueuedHeartbeats bounds the heartbeats of a group that wait for raft's
// main goroutine. The first of them times out long before the limit is reached.
const maxQueuedHeartbeats = 64

// revoke withdraws the permission when raft clears its leader. It is an
// observer of raft, which calls it on the main goroutine.
func (b *heartbeatBypass) revoke(o *raft.Observation) bool {
	if l, ok := o.Data.(raft.LeaderObservation); ok && l.LeaderID == "" {
		b.mu.Lock()
		b.revocations++
		b.term, b.leader = 0, ""
		b.mu.Unlock()
	}
	return false // the observer has no channel
}

func (b *heartbeatBypass) currentRevocations() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.revocations
}

// allow permits the heartbeats of a leader in a term to bypass raft's main
// goroutine, unless it was revoked since the caller read revocations. The main
// goroutine has accepted a heartbeat of that leader meanwhile.
func (b *heartbeatBypass) allow(revocations, term uint64, leader string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.revocations == revocations {
		b.term, b.leader = term, leader
	}
}

// bypassMain answers a heartbeat without raft's main goroutine. It returns
// false if the heartbeat has to go to that goroutine.
func (e *endpoint) bypassMain(from string, q *raft.AppendEntriesRequest) (a raft.AppendEntriesResponse, ok bool) {
	b := &e.bypass
	b.mu.Lock()
	defer b.mu.Unlock()
	g, handle := e.group.Load(), e.heartbeatHandler.Load()
	if g == nil || handle == nil || from == "" || b.term != q.Term || b.leader != from ||
		g.raft.State() != raft.Follower || g.raft.CurrentTerm() != q.Term {
		return a, false
	}
	answered := make(chan raft.RPCResponse, 1)
	(*handle)(raft.RPC{Command: q, RespChan: answered})
	select {
	case r := <-answered:
		if full, ok := r.Response.(*raft.AppendEntriesResponse); ok && r.Error == nil {
			return *full, true
		}
	default: // raft is shutting down
	}
	return a, false
}

// sendToMain passes a heartbeat to raft's main goroutine and waits for the
// reply for as long as the leader does. It returns false if there is no reply.
func (e *endpoint) sendToMain(from string, q *raft.AppendEntriesRequest) (a raft.AppendEntriesResponse, ok bool) {
	b := &e.bypass
	defer b.queued.Add(-1)
	g := e.group.Load()
	if b.queued.Add(1) > maxQueuedHeartbeats || g == nil {
		return a, false
	}
	revocations := b.currentRevocations()
	timeout := time.NewTimer(g.network.replyTimeout)
	defer timeout.Stop()
	answered := make(chan raft.RPCResponse, 1)
	rpc := raft.RPC{Command: q, RespChan: answered}
	for out := g.network.filter.out; ; {
		select {
		case out <- rpc:
			out = nil
		case r := <-answered:
			full, ok := r.Response.(*raft.AppendEntriesResponse)
			if !ok || r.Error != nil {
				return a, false
			}
			if full.Success {
				b.allow(revocations, q.Term, from)
			}
			return *full, true
		case <-timeout.C:
			return a, false
		case <-e.ctx.Done():
			return a, false
		}
	}
}
