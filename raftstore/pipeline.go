package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"
)

// idleResend is how long a pipeline leaves out requests that tell the peer
// nothing new.
const idleResend = 500 * time.Millisecond

// pipeline is raft's pipeline, with two changes: old entries are throttled, and
// it is quiet while nothing happens. Raft itself would repeat the commit index
// to every peer of every group many times a second. Leases and elections don't
// depend on it, since heartbeats take another way.
type pipeline struct {
	raft.AppendPipeline
	transport *transport
	peer      *peer
	acks      *peerAcks // of the peer when the pipeline began

	// About the last request that was sent. The sending goroutine owns them.
	term   uint64
	commit uint64
	last   uint64 // the index up to which entries were sent
	missed int64
	at     time.Time
	asked  time.Time // when a request was last left out
}

// AppendEntriesPipeline implements raft.Transport. It refuses a pipeline for a
// peer that has to catch up: through a pipeline raft sends one request for each
// new entry, or in each commitTimeout; without one it sends requests as fast as
// they are answered.
func (t *transport) AppendEntriesPipeline(id raft.ServerID, to raft.ServerAddress) (raft.AppendPipeline, error) {
	if err := t.end.halt.err(); err != nil {
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

// errLags ends a pipeline.
var errLags = errors.New("the peer has to catch up")

// lags reports whether a peer whose last entry is at index has to catch up.
func (t *transport) lags(index uint64) bool {
	r := t.raft.Load()
	return r != nil && index+2*maxAppend < r.LastIndex()
}

// AppendEntries sends a request, unless it is redundant: then it returns a nil
// future, which raft does not use.
func (p *pipeline) AppendEntries(q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if err := p.transport.end.halt.err(); err != nil {
		return nil, err
	}
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
		p.commit, p.last, p.missed, p.at = q.LeaderCommitIndex, lastIndexAfter(q), p.peer.unanswered.Load(), time.Now()
	}
	return f, err
}

// redundant reports whether the peer has been sent all that q says and has
// replied to heartbeats since, so that it has not restarted. A leader that
// transfers its leadership calls it without a pause until the peer has caught
// up, so it slows such a caller down.
func (p *pipeline) redundant(q *raft.AppendEntriesRequest) bool {
	now := time.Now()
	if len(q.Entries) > 0 || q.LeaderCommitIndex != p.commit || q.PrevLogEntry != p.last ||
		p.peer.unanswered.Load() != p.missed || now.Sub(p.at) > idleResend {
		return false
	}
	if now.Sub(p.asked) < time.Millisecond {
		time.Sleep(time.Millisecond)
	}
	p.asked = time.Now()
	return true
}

// maxSnapshotState bounds the FSM's state, in bytes, in a snapshot that is offered
// to a peer.
const maxSnapshotState = 64 << 20

// InstallSnapshot implements raft.Transport. A peer that is behind does not
// install the snapshot: it fetches what it lacks, which takes a while. The
// request is retried until the peer has done so.
func (t *transport) InstallSnapshot(id raft.ServerID, to raft.ServerAddress, q *raft.InstallSnapshotRequest, a *raft.InstallSnapshotResponse, state io.Reader) error {
	if q.Size > maxSnapshotState {
		return fmt.Errorf("a snapshot's state of %d bytes is too large", q.Size)
	}
	b, err := io.ReadAll(state)
	if err != nil {
		return err
	}
	if err := errors.Join(t.end.halt.err(), t.peer(id).acks.Load().check(0)); err != nil {
		return err
	}
	return t.retry(id, q.Term, func() error {
		*a = raft.InstallSnapshotResponse{}
		return t.NetworkTransport.InstallSnapshot(id, to, q, a, bytes.NewReader(b))
	})
}
