package raftstore

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/cantuslog/cantus/wal"
)

// rpcFilter is the request filter: it handles the requests of peers on their way
// to raft. hashicorp/raft does not expect a log whose head is trimmed by others,
// nor a snapshot that is not a copy of the state; and it trusts terms that no
// election can have produced. The filter
//
//   - rejects all requests while the replica is halted,
//   - rejects terms that are implausibly high,
//   - rejects entries while the disk is full,
//   - removes from a request what lies before the head of the log,
//   - answers offers of a snapshot itself, since no snapshot is installed from
//     another node.
type rpcFilter struct {
	in   <-chan raft.RPC
	out  chan raft.RPC
	open context.Context
	log  *wal.Log
	full func(bytes int) bool // Options.Full; may be nil
	raft atomic.Pointer[raft.Raft]
	halt *halt // nil in some tests

	warn func(msg string, args ...any) // nil in some tests

	behind     chan struct{} // closed when the replica lacks what the leader has trimmed
	behindOnce sync.Once
	running    sync.WaitGroup
}

func newRPCFilter(in <-chan raft.RPC, open context.Context, log *wal.Log, h *halt, full func(bytes int) bool, warn func(string, ...any)) *rpcFilter {
	f := &rpcFilter{in: in, out: make(chan raft.RPC), open: open, log: log, halt: h, full: full, warn: warn, behind: make(chan struct{})}
	f.running.Go(f.run)
	return f
}

func (f *rpcFilter) wait() { f.running.Wait() }

func (f *rpcFilter) run() {
	for {
		select {
		case <-f.open.Done():
			return
		case rpc := <-f.in:
			if !f.filter(&rpc) {
				continue
			}
			select {
			case <-f.open.Done():
				return
			case f.out <- rpc:
			}
		}
	}
}

// maxTermLead is how far a peer's term may be ahead of this replica's. An
// election raises the term by one: no peer that works gets so far ahead. A term
// near the largest number would end the group for good, since there is none
// after it.
const maxTermLead = 1 << 32

// implausibleTerm reports whether a peer's term is further ahead of this
// replica's than elections can have brought it.
func implausibleTerm(own, term uint64) bool { return term > own && term-own > maxTermLead }

// errImplausibleTerm rejects a request whose term is implausible.
var errImplausibleTerm = errors.New("the term is further ahead than elections can have brought it")

// requestTerm returns the term of a request, 0 for one that has none.
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

// filter reports whether raft should handle a request. If not, it has replied.
func (f *rpcFilter) filter(rpc *raft.RPC) bool {
	if err := f.halt.err(); err != nil {
		if rpc.Reader != nil {
			_, _ = io.Copy(io.Discard, rpc.Reader) // the next request comes after it
		}
		rpc.Respond(nil, err)
		return false
	}
	if term := requestTerm(rpc.Command); implausibleTerm(f.term(), term) {
		if f.warn != nil {
			f.warn("request refused: the peer's term is implausibly high", "term", term, "own", f.term())
		}
		if rpc.Reader != nil {
			_, _ = io.Copy(io.Discard, rpc.Reader) // the next request comes after it
		}
		rpc.Respond(nil, errImplausibleTerm)
		return false
	}
	switch q := rpc.Command.(type) {
	case *raft.AppendEntriesRequest:
		if f.full != nil && needsRoom(q) && f.full(entryBytes(q)) {
			rpc.Respond(nil, errFull)
			return false
		}
		f.trimPrefix(q)
		// Entries behind those of the request may be another leader's, even if
		// this log is longer: raft would take them for committed.
		q.LeaderCommitIndex = min(q.LeaderCommitIndex, lastIndexAfter(q))
	case *raft.InstallSnapshotRequest:
		_, _ = io.Copy(io.Discard, rpc.Reader) // the next request comes after it
		rpc.Respond(f.answerInstall(q))
		return false
	}
	return true
}

// errFull answers a leader whose entries this replica has no room for. Raft
// itself must not reject them: its leader would take that to mean that the logs
// differ, and look for the point where they do.
var errFull = errors.New("this replica has no room for entries")

// isFull reports whether a peer answered with errFull. Only the text of an
// error crosses the wire.
func isFull(err error) bool { return err != nil && strings.HasSuffix(err.Error(), errFull.Error()) }

// needsRoom reports whether a request has entries that a full disk does not
// accept.
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

// trimPrefix removes from a request what lies before the head of this log. A
// leader that has lost track of this replica's position may begin there. What
// was trimmed, and the oldest entry kept, is committed, so every leader has the
// same.
func (f *rpcFilter) trimPrefix(q *raft.AppendEntriesRequest) {
	first := f.log.FirstIndex()
	if first <= 1 || q.PrevLogEntry >= first {
		return
	}
	oldest, err := f.log.Entry(first)
	if err != nil {
		return // raft rejects the request
	}
	for len(q.Entries) > 0 && q.Entries[0].Index <= first {
		q.Entries = q.Entries[1:]
	}
	q.PrevLogEntry, q.PrevLogTerm = first, oldest.Term
}

var errBehind = errors.New("this replica lacks entries that the leader has trimmed: it has to fetch them")

// answerInstall answers a leader that offers a snapshot because it has trimmed
// what it takes for this replica's next entries. If the log holds what the
// snapshot covers, that is as good as having installed it: the leader goes on
// from there. Otherwise the replica is behind.
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

// covers reports whether the log holds, or held and trimmed, what a leader's
// snapshot at an index covers.
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

// rejectsTerm reports whether a heartbeat's term is implausible, and if so logs
// it.
func (e *endpoint) rejectsTerm(term uint64) bool {
	g := e.group.Load()
	if g == nil || !implausibleTerm(g.raft.CurrentTerm(), term) {
		return false
	}
	e.network.peers.Warn("heartbeat refused: the peer's term is implausibly high", "term", term, "own", g.raft.CurrentTerm())
	return true
}
