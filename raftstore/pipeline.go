package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"
)

// resendInterval is how long a pipeline skips redundant requests before it
// sends one again.
const resendInterval = 500 * time.Millisecond

// pipeline is raft's pipeline to a peer, with two changes: it throttles old
// entries, and it skips redundant requests. On an idle node, raft would repeat
// the commit index to every peer of every group many times a second. Leases and
// elections don't depend on these requests, since heartbeats are sent
// separately.
//
// Raft's goroutine for the peer sends requests through AppendEntries. It blocks
// in throttleOld, and while maxInFlight requests have no reply. Other
// goroutines of raft receive the replies; this package does not see them.
type pipeline struct {
	raft.AppendPipeline
	transport *transport
	peer      *peer
	acks      *peerAcks // of the peer when the pipeline began

	// The state of the last request that was sent. The sending goroutine owns
	// these fields.
	term           uint64
	sentCommit     uint64 // its commit index
	sentIndex      uint64 // the last entry that was sent
	sentUnanswered int64  // peer.unanswered when it was sent
	sentAt         time.Time
	skippedAt      time.Time // when a redundant request was last skipped
}

// AppendEntriesPipeline implements raft.Transport. It returns an error for a
// peer that has to catch up: through a pipeline raft sends one request for each
// new entry and one in each commitTimeout; without one it sends the next
// request as soon as the last is answered.
func (t *transport) AppendEntriesPipeline(id raft.ServerID, to raft.ServerAddress) (raft.AppendPipeline, error) {
	if err := t.endpoint.halt.err(); err != nil {
		return nil, err
	}
	p := t.peer(id)
	acks := p.acks.Load()
	if err := acks.check(0); err != nil {
		return nil, err
	}
	if t.lags(p.stored.Load()) {
		return nil, raft.ErrPipelineReplicationNotSupported
	}
	pipe, err := t.NetworkTransport.AppendEntriesPipeline(id, to)
	if err != nil {
		return nil, err
	}
	return &pipeline{AppendPipeline: pipe, transport: t, peer: p, acks: acks}, nil
}

// errLags closes a pipeline.
var errLags = errors.New("the peer has to catch up")

// lags reports whether a peer that has the entries up to index has to catch up.
func (t *transport) lags(index uint64) bool {
	r := t.raft.Load()
	return r != nil && index+2*maxAppend < r.LastIndex()
}

// AppendEntries sends a request, unless it is redundant. Raft does not use the
// future, so it is nil for a skipped request.
func (p *pipeline) AppendEntries(q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if err := p.transport.endpoint.halt.err(); err != nil {
		return nil, err
	}
	limitBytes(q)
	q.LeaderCommitIndex = p.transport.writes.limit(q.LeaderCommitIndex)
	if p.redundant(q) {
		return nil, nil
	}
	if p.transport.lags(lastIndexAfter(q)) {
		return nil, errLags
	}
	if err := p.transport.throttleOld(q); err != nil {
		return nil, err
	}
	if p.term != q.Term {
		p.term = q.Term
		p.acks.recordPipeline(q.Term)
	}
	f, err := p.AppendPipeline.AppendEntries(q, a)
	if err == nil {
		p.sentCommit, p.sentIndex, p.sentUnanswered, p.sentAt = q.LeaderCommitIndex, lastIndexAfter(q), p.peer.unanswered.Load(), time.Now()
	}
	return f, err
}

// redundant reports whether q contains nothing new, and the peer has replied to
// all heartbeats since the last request, so that it has not restarted. During a
// leadership transfer, raft sends requests in a busy loop until the peer has
// caught up; redundant slows that loop down.
func (p *pipeline) redundant(q *raft.AppendEntriesRequest) bool {
	now := time.Now()
	if len(q.Entries) > 0 || q.LeaderCommitIndex != p.sentCommit || q.PrevLogEntry != p.sentIndex ||
		p.peer.unanswered.Load() != p.sentUnanswered || now.Sub(p.sentAt) > resendInterval {
		return false
	}
	if now.Sub(p.skippedAt) < time.Millisecond {
		time.Sleep(time.Millisecond)
	}
	p.skippedAt = time.Now()
	return true
}

// maxSnapshotState bounds the FSM's state, in bytes, in a snapshot that is
// offered to a peer.
const maxSnapshotState = 64 << 20

// InstallSnapshot implements raft.Transport. A peer that is behind does not
// install the snapshot: it fetches the log, which takes a while. The request is
// retried until the peer has done so.
func (t *transport) InstallSnapshot(id raft.ServerID, to raft.ServerAddress, q *raft.InstallSnapshotRequest, a *raft.InstallSnapshotResponse, state io.Reader) error {
	if q.Size > maxSnapshotState {
		return fmt.Errorf("a snapshot's state of %d bytes is too large", q.Size)
	}
	b, err := io.ReadAll(state)
	if err != nil {
		return err
	}
	if err := errors.Join(t.endpoint.halt.err(), t.peer(id).acks.Load().check(0)); err != nil {
		return err
	}
	return t.retry(id, q.Term, func() error {
		*a = raft.InstallSnapshotResponse{}
		return t.NetworkTransport.InstallSnapshot(id, to, q, a, bytes.NewReader(b))
	})
}
