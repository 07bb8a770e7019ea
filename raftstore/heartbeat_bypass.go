package raftstore

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// following says which heartbeats of a group may be answered beside raft's main
// goroutine. That one may be in the middle of writing to the disk for longer
// than a heartbeat can wait, so raft lets a transport pass heartbeats to it from
// another goroutine. But there raft handles a heartbeat like any request: it
// may raise the term and cease to lead while its main goroutine still acts as
// the leader of the old term, which then writes entries of a term that it never
// led.
//
// So a heartbeat goes through the main goroutine like any other request, unless
// that has already followed this leader in this term and has not ceased to
// since. Then raft's handler changes nothing but the time of the last contact.
// Raft ceases to follow in three ways: it stands for election, it meets a newer
// term, or it is told to stand. In all of them its main goroutine forgets the
// leader first, and tells its observers before it goes on. The observer here
// takes mu, which whoever answers beside the main goroutine holds from the check
// until raft's handler has returned. It also raises epoch, so that an answer of
// the main goroutine that was on its way meanwhile is not taken for a new
// permission.
type heartbeatBypass struct {
	mu     sync.Mutex
	epoch  uint64 // counts how often raft has forgotten its leader
	term   uint64 // of the leader that is followed; 0 if none is known to be
	leader string

	// waiting counts heartbeats on their way through the main goroutine.
	queued atomic.Int64
}

// maxBeatsWaiting bounds how many heartbeats of a group wait for raft's main
// goroutine. A leader has given up the first long before there are as many.
const maxQueuedHeartbeats = 64

// forget withdraws the permission. It is raft's observer.
func (f *heartbeatBypass) revoke(o *raft.Observation) bool {
	if l, is := o.Data.(raft.LeaderObservation); is && l.LeaderID == "" {
		f.mu.Lock()
		f.epoch++
		f.term, f.leader = 0, ""
		f.mu.Unlock()
	}
	return false // nothing is to be put into the observer's channel
}

// now returns the current epoch.
func (f *heartbeatBypass) currentEpoch() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.epoch
}

// follow notes that raft's main goroutine has followed a leader in a term, at
// some time after the epoch was read.
func (f *heartbeatBypass) allow(epoch, term uint64, leader string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.epoch == epoch {
		f.term, f.leader = term, leader
	}
}

// beside answers a heartbeat beside raft's main goroutine; false says that it
// has to go through it.
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

// through passes a heartbeat to raft's main goroutine and waits for the answer,
// as long as the leader does. False says that there was none.
func (e *endpoint) askMain(from string, q *raft.AppendEntriesRequest) (a raft.AppendEntriesResponse, ok bool) {
	f := &e.bypass
	defer f.queued.Add(-1)
	g := e.group.Load()
	if f.queued.Add(1) > maxQueuedHeartbeats || g == nil {
		return a, false
	}
	epoch := f.currentEpoch()
	patience := time.NewTimer(g.network.replyTimeout)
	defer patience.Stop()
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
		case <-patience.C:
			return a, false
		case <-e.open.Done():
			return a, false
		}
	}
}
