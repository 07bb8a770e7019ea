package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/cantuslog/cantus/wal"
)

// rpcFilter is the request filter: it handles the requests of peers before raft
// does. hashicorp/raft does not expect that its log is trimmed by others, nor
// that a snapshot is not a copy of the state; and it trusts terms that no
// election can have produced. The filter
//
//   - rejects all requests while the replica is halted,
//   - rejects terms that are implausibly high,
//   - rejects entries that raft would panic on,
//   - rejects entries while the disk is full, and lets raft see the rest of the
//     request,
//   - removes the entries before the log's first from a request,
//   - answers InstallSnapshot itself, since a replica never installs another
//     one's snapshot.
//
// Its one goroutine, run, receives requests from raft's transport and passes
// them to raft's main goroutine, one at a time. It blocks while that goroutine
// is busy. It ends when ctx, the endpoint's, is done. Heartbeats don't pass the
// filter, see heartbeat_receive.go.
type rpcFilter struct {
	in   <-chan raft.RPC
	out  chan raft.RPC
	ctx  context.Context
	log  *wal.Log
	full func(bytes int) bool // Options.Full; may be nil
	raft atomic.Pointer[raft.Raft]
	halt *halt // nil in some tests

	warn func(msg string, args ...any) // nil in some tests

	behind     chan struct{} // closed when the leader has trimmed entries that the replica lacks
	behindOnce sync.Once
	running    sync.WaitGroup
}

func newRPCFilter(ctx context.Context, in <-chan raft.RPC, log *wal.Log, h *halt, full func(bytes int) bool, warn func(string, ...any)) *rpcFilter {
	f := &rpcFilter{in: in, out: make(chan raft.RPC), ctx: ctx, log: log, halt: h, full: full, warn: warn, behind: make(chan struct{})}
	f.running.Go(f.run)
	return f
}

// wait waits until run has returned.
func (f *rpcFilter) wait() { f.running.Wait() }

func (f *rpcFilter) run() {
	for {
		select {
		case <-f.ctx.Done():
			return
		case rpc := <-f.in:
			if f.filter(&rpc) {
				f.pass(rpc)
			}
		}
	}
}

// pass passes a request to raft's main goroutine, unless ctx ends before.
func (f *rpcFilter) pass(rpc raft.RPC) {
	switch rpc.Command.(type) {
	case *raft.RequestVoteRequest, *raft.RequestPreVoteRequest:
		if f.hasStaleLeader() {
			f.send(f.leaderless())
		}
	}
	f.send(rpc)
}

func (f *rpcFilter) send(rpc raft.RPC) {
	select {
	case <-f.ctx.Done():
	case f.out <- rpc:
	}
}

// hasStaleLeader reports whether this replica is a candidate that knows a
// leader. Raft rejects the vote requests of others then, and a candidate does
// not forget its leader: the group could remain without one. A replica gets
// there if it starts an election because a leader asks it to, or because the
// leader's process has ended, and another candidate wins that term, sends a
// heartbeat, and is gone.
func (f *rpcFilter) hasStaleLeader() bool {
	r := f.raft.Load()
	if r == nil {
		return false
	}
	_, leader := r.LeaderWithID()
	return leader != "" && r.State() == raft.Candidate
}

// leaderless returns a heartbeat that makes a candidate a follower without a
// leader. Raft ignores it if the term has changed meanwhile.
func (f *rpcFilter) leaderless() raft.RPC {
	return raft.RPC{Command: heartbeatRequest("", f.term()), RespChan: make(chan raft.RPCResponse, 1)} // nobody receives
}

// maxTermLead is how far a peer's term may be ahead of this replica's. An
// election increments the term, so a correct peer never gets this far ahead. If
// a group adopted a term near the largest number, it would soon have no term
// for another election.
const maxTermLead = 1 << 32

// implausibleTerm reports whether a peer's term is further ahead of this
// replica's than elections can have brought it.
func implausibleTerm(own, term uint64) bool { return term > own && term-own > maxTermLead }

// errImplausibleTerm rejects a request whose term is implausible.
var errImplausibleTerm = errors.New("the term is further ahead than elections can have brought it")

// requestTerm returns the term of a request, 0 if it has none.
func requestTerm(command any) uint64 {
	switch q := command.(type) {
	case *raft.AppendEntriesRequest:
		return q.Term
	case *raft.RequestVoteRequest:
		return q.Term
	case *raft.RequestPreVoteRequest:
		return q.Term
	case *raft.InstallSnapshotRequest:
		return q.Term
	}
	return 0
}

// term returns the replica's current term.
func (f *rpcFilter) term() uint64 {
	if r := f.raft.Load(); r != nil {
		return r.CurrentTerm()
	}
	return storedTerm(f.log)
}

// filter reports whether raft should handle a request. If not, filter has
// replied to it.
func (f *rpcFilter) filter(rpc *raft.RPC) bool {
	if err := f.halt.err(); err != nil {
		if rpc.Reader != nil {
			_, _ = io.Copy(io.Discard, rpc.Reader) // it precedes the next request
		}
		rpc.Respond(nil, err)
		return false
	}
	if term := requestTerm(rpc.Command); implausibleTerm(f.term(), term) {
		if f.warn != nil {
			f.warn("request rejected: the peer's term is implausibly high", "term", term, "own", f.term())
		}
		if rpc.Reader != nil {
			_, _ = io.Copy(io.Discard, rpc.Reader) // it precedes the next request
		}
		rpc.Respond(nil, errImplausibleTerm)
		return false
	}
	switch q := rpc.Command.(type) {
	case *raft.AppendEntriesRequest:
		if err := checkEntries(q); err != nil {
			if f.warn != nil {
				f.warn("request rejected: no leader sends these entries", "err", err)
			}
			rpc.Respond(nil, err)
			return false
		}
		if f.full != nil && needsRoom(q) && f.full(entryBytes(q)) {
			rpc.Respond(nil, errFull)
			withoutEntries(rpc, q)
		}
		f.trimPrefix(q)
		// If this log is longer than the request's entries, the rest may be
		// another leader's, but raft would consider it committed.
		q.LeaderCommitIndex = min(q.LeaderCommitIndex, lastIndexAfter(q))
	case *raft.InstallSnapshotRequest:
		_, _ = io.Copy(io.Discard, rpc.Reader) // it precedes the next request
		rpc.Respond(f.answerInstall(q))
		return false
	}
	return true
}

var errEntries = errors.New("malformed entries")

// checkEntries returns an error unless a request has entries that a leader can
// have sent: dense, of a type that raft knows, and not of a later term.
func checkEntries(q *raft.AppendEntriesRequest) error {
	for i, l := range q.Entries {
		switch next := q.PrevLogEntry + 1 + uint64(i); {
		case l == nil:
			return fmt.Errorf("%w: entry %d is missing", errEntries, next)
		case l.Index != next || next == 0:
			return fmt.Errorf("%w: entry %d comes where %d is due", errEntries, l.Index, next)
		case l.Term > q.Term:
			return fmt.Errorf("%w: entry %d of term %d comes in term %d", errEntries, l.Index, l.Term, q.Term)
		case l.Type == raft.LogConfiguration && !isConfiguration(l.Data):
			return fmt.Errorf("%w: entry %d is no configuration", errEntries, l.Index)
		}
		switch l.Type {
		case raft.LogCommand, raft.LogNoop, raft.LogBarrier, raft.LogConfiguration:
		default:
			return fmt.Errorf("%w: entry %d is of type %d", errEntries, l.Index, l.Type)
		}
	}
	return nil
}

// isConfiguration reports whether raft can decode a configuration: it panics on
// one that it can't.
func isConfiguration(data []byte) (ok bool) {
	defer func() { ok = recover() == nil }()
	raft.DecodeConfiguration(data)
	return true
}

// errFull is the reply to a leader if this replica has no room for its entries.
// It is an error and not one of raft's rejections, from which the leader would
// infer that the logs differ, and search for the entry from which they do.
var errFull = errors.New("this replica has no room for entries")

// withoutEntries removes the entries from a request that was answered. Raft
// still learns from it which of the replica's entries are committed.
func withoutEntries(rpc *raft.RPC, q *raft.AppendEntriesRequest) {
	q.Entries = nil
	rpc.RespChan = make(chan raft.RPCResponse, 1) // nobody receives
}

// isFull reports whether a peer replied with errFull. A reply carries only the
// error's text.
func isFull(err error) bool { return err != nil && strings.HasSuffix(err.Error(), errFull.Error()) }

// needsRoom reports whether a request has entries that a replica rejects while
// its disk is full.
func needsRoom(q *raft.AppendEntriesRequest) bool {
	for _, l := range q.Entries {
		if e := toEntry(l); e.NeedsRoom() {
			return true
		}
	}
	return false
}

// entryBytes returns the size of a request's entries.
func entryBytes(q *raft.AppendEntriesRequest) (n int) {
	for _, l := range q.Entries {
		n += len(l.Data) + len(l.Extensions)
	}
	return n
}

// trimPrefix removes the entries up to the first of this log from a request. A
// leader that does not know this replica's position may begin before it. The
// trimmed entries and the first one in the log are committed, so every leader
// has the same.
func (f *rpcFilter) trimPrefix(q *raft.AppendEntriesRequest) {
	first := f.log.FirstIndex()
	if first <= 1 || q.PrevLogEntry >= first {
		return
	}
	oldest, err := f.log.Entry(first)
	if err != nil {
		return // raft will reject the request
	}
	for len(q.Entries) > 0 && q.Entries[0].Index <= first {
		q.Entries = q.Entries[1:]
	}
	q.PrevLogEntry, q.PrevLogTerm = first, oldest.Term
}

var errBehind = errors.New("this replica lacks entries that the leader has trimmed: it has to fetch them")

// answerInstall returns the reply to a leader that offers a snapshot, because
// it has trimmed the entries that it believes this replica needs next. If the
// log holds the entries that the snapshot covers, the reply is that the
// snapshot is installed, and the leader continues after it. Otherwise the
// replica is behind.
func (f *rpcFilter) answerInstall(q *raft.InstallSnapshotRequest) (any, error) {
	a := &raft.InstallSnapshotResponse{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}, Term: q.Term}
	if r := f.raft.Load(); r != nil && r.CurrentTerm() > q.Term {
		a.Term = r.CurrentTerm()
		return a, nil
	}
	if f.covers(q.LastLogIndex, q.LastLogTerm) {
		a.Success = true
		return a, nil
	}
	f.behindOnce.Do(func() { close(f.behind) })
	return a, errBehind
}

// covers reports whether the log holds, or held before it was trimmed, the
// entries that a leader's snapshot covers.
func (f *rpcFilter) covers(index, term uint64) bool {
	first, last := f.log.FirstIndex(), f.log.LastIndex()
	if first == 0 || index > last {
		return false
	}
	if index < first {
		return true
	}
	e, err := f.log.Entry(index)
	return err == nil && e.Term == term
}

// rejectsTerm reports whether a heartbeat's term is implausible. It logs such a
// heartbeat.
func (e *endpoint) rejectsTerm(term uint64) bool {
	g := e.group.Load()
	if g == nil || !implausibleTerm(g.raft.CurrentTerm(), term) {
		return false
	}
	e.network.peers.Warn("heartbeat rejected: the peer's term is implausibly high", "term", term, "own", g.raft.CurrentTerm())
	return true
}
