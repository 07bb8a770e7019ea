package raftstore

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// heartbeatBypass decides which heartbeats of a group may be answered beside
// raft's main goroutine. That goroutine may be writing to the disk for longer
// than a heartbeat can wait, so raft lets a transport hand heartbeats to a
// second goroutine. But there raft handles a heartbeat like any other request:
// it may raise the term and step down while the main goroutine still acts as
// the leader of the old term. The main goroutine would then write entries of a
// term that it never led.
//
// So a heartbeat passes the main goroutine (askMain) like any other request,
// unless that goroutine has already followed this leader in this term and has
// not stopped since (bypassMain). Then raft's handler changes nothing but the
// time of the last contact.
//
// Raft stops following in three cases: it stands for election, it sees a newer
// term, or it is told to stand. In each of them its main goroutine first
// forgets the leader and tells its observers, and only then goes on. The
// observer here, revoke, takes mu, and bypassMain holds mu from its check until
// raft's handler has returned. So no heartbeat is answered beside the main
// goroutine once that has begun to stop following. revoke also raises epoch: a
// reply of the main goroutine that was on its way meanwhile does not renew the
// permission.
type heartbeatBypass struct {
	mu     sync.Mutex
	epoch  uint64 // how often raft has forgotten its leader
	term   uint64 // the leader's term, 0 while nothing may bypass
	leader string

	// queued counts the heartbeats that wait for the main goroutine.
	queued atomic.Int64
}

// maxQueuedHeartbeats bounds the heartbeats of a group that wait for raft's
// main goroutine. A leader gives up on the first of them long before there are
// this many.
const maxQueuedHeartbeats = 64

// revoke withdraws the permission. It is an observer of raft.
func (f *heartbeatBypass) revoke(o *raft.Observation) bool {
	if l, is := o.Data.(raft.LeaderObservation); is && l.LeaderID == "" {
		f.mu.Lock()
		f.epoch++
		f.term, f.leader = 0, ""
		f.mu.Unlock()
	}
	return false // the observer has no channel
}

// now returns the current epoch.
func (f *heartbeatBypass) currentEpoch() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.epoch
}

// allow permits the heartbeats of a leader in a term. raft's main goroutine has
// followed that leader, at some time after the epoch was read.
func (f *heartbeatBypass) allow(epoch, term uint64, leader string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.epoch == epoch {
		f.term, f.leader = term, leader
	}
}

// bypassMain answers a heartbeat beside raft's main goroutine. It returns false
// if the heartbeat must pass that goroutine.
func (e *endpoint) bypassMain(from string, q *raft.AppendEntriesRequest) (a raft.AppendEntriesResponse, ok bool) {
	f := &e.bypass
	f.mu.Lock()
	defer f.mu.Unlock()
	g, handle := e.group.Load(), e.heartbeatHandler.Load()
	if g == nil || handle == nil || from == "" || f.term != q.Term || f.leader != from ||
		g.raft.State() != raft.Follower || g.raft.CurrentTerm() != q.Term {
		return a, false
	}
	answered := make(chan raft.RPCResponse, 1)
	(*handle)(raft.RPC{Command: q, RespChan: answered})
	select {
	case r := <-answered:
		if full, is := r.Response.(*raft.AppendEntriesResponse); is && r.Error == nil {
			return *full, true
		}
	default: // raft is shutting down
	}
	return a, false
}

// askMain passes a heartbeat to raft's main goroutine and waits for the reply
// for as long as the leader does. It returns false if there is none.
func (e *endpoint) askMain(from string, q *raft.AppendEntriesRequest) (a raft.AppendEntriesResponse, ok bool) {
	f := &e.bypass
	defer f.queued.Add(-1)
	g := e.group.Load()
	if f.queued.Add(1) > maxQueuedHeartbeats || g == nil {
		return a, false
	}
	epoch := f.currentEpoch()
	timeout := time.NewTimer(g.network.replyTimeout)
	defer timeout.Stop()
	answered := make(chan raft.RPCResponse, 1)
	rpc := raft.RPC{Command: q, RespChan: answered}
	for out := g.network.filter.out; ; {
		select {
		case out <- rpc:
			out = nil
		case r := <-answered:
			full, is := r.Response.(*raft.AppendEntriesResponse)
			if !is || r.Error != nil {
				return a, false
			}
			if full.Success {
				f.allow(epoch, q.Term, from)
			}
			return *full, true
		case <-timeout.C:
			return a, false
		case <-e.open.Done():
			return a, false
		}
	}
}
