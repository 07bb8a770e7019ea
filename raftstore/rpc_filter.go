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

// incoming is where what peers ask comes by on its way to raft, which doesn't
// expect that a log's head is trimmed beside it, nor that a snapshot is no
// copy of the state.
type rpcFilter struct {
	in   <-chan raft.RPC
	out  chan raft.RPC
	open context.Context
	log  *wal.Log
	full func() bool // nil: never
	raft atomic.Pointer[raft.Raft]
	halt *halt // may be nil, in tests

	warn func(msg string, args ...any) // may be nil

	behind     chan struct{} // closed once
	behindOnce sync.Once
	running    sync.WaitGroup
}

func newRPCFilter(in <-chan raft.RPC, open context.Context, log *wal.Log, h *halt, full func() bool, complain func(string, ...any)) *rpcFilter {
	i := &rpcFilter{in: in, out: make(chan raft.RPC), open: open, log: log, halt: h, full: full, warn: complain, behind: make(chan struct{})}
	i.running.Go(i.run)
	return i
}

func (i *rpcFilter) wait() { i.running.Wait() }

func (i *rpcFilter) run() {
	for {
		select {
		case <-i.open.Done():
			return
		case rpc := <-i.in:
			if !i.filter(&rpc) {
				continue
			}
			select {
			case <-i.open.Done():
				return
			case i.out <- rpc:
			}
		}
	}
}

// maxLeap is how far ahead of a replica's term a peer's can be. Elections raise
// terms by one: no peer that works gets so far ahead. A term near the largest
// would end the group for ever, since there is none after it.
const maxTermLead = 1 << 32

// leaps reports whether a peer's term is further ahead of the own one than
// elections can have brought it.
func implausibleTerm(own, term uint64) bool { return term > own && term-own > maxTermLead }

// errLeap answers a request whose term leaps.
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

// term is the replica's.
func (i *rpcFilter) term() uint64 {
	if r := i.raft.Load(); r != nil {
		return r.CurrentTerm()
	}
	return storedTerm(i.log)
}

// pass tells whether raft is to see a request.
func (i *rpcFilter) filter(rpc *raft.RPC) bool {
	if err := i.halt.err(); err != nil {
		if rpc.Reader != nil {
			_, _ = io.Copy(io.Discard, rpc.Reader) // it comes before the next request
		}
		rpc.Respond(nil, err)
		return false
	}
	if term := requestTerm(rpc.Command); implausibleTerm(i.term(), term) {
		if i.warn != nil {
			i.warn("a peer's request is refused: its term leaps", "term", term, "own", i.term())
		}
		if rpc.Reader != nil {
			_, _ = io.Copy(io.Discard, rpc.Reader) // it comes before the next request
		}
		rpc.Respond(nil, errImplausibleTerm)
		return false
	}
	switch q := rpc.Command.(type) {
	case *raft.AppendEntriesRequest:
		if i.full != nil && needsRoom(q) && i.full() {
			rpc.Respond(nil, errFull)
			return false
		}
		i.trimPrefix(q)
		// What lies behind the request's entries may be another leader's, also
		// where this log is longer: raft would take it for committed.
		q.LeaderCommitIndex = min(q.LeaderCommitIndex, lastIndexAfter(q))
	case *raft.InstallSnapshotRequest:
		_, _ = io.Copy(io.Discard, rpc.Reader) // it comes before the next request
		rpc.Respond(i.answerInstall(q))
		return false
	}
	return true
}

// errFull answers a leader whose entries this replica has no room for. Raft
// itself must not turn them down: its leader would take it that the logs differ
// and look for where they do.
var errFull = errors.New("this replica has no room for entries")

// isFull reports whether a peer answered with errFull. Only its text comes over
// the wire.
func isFull(err error) bool { return err != nil && strings.HasSuffix(err.Error(), errFull.Error()) }

// needsRoom reports whether the entries of a request are among those that a full
// disk takes no more.
func needsRoom(q *raft.AppendEntriesRequest) bool {
	for _, l := range q.Entries {
		if e := toEntry(l); e.NeedsRoom() {
			return true
		}
	}
	return false
}

// raiseHead takes off a request what lies before this log's head. A leader
// that has lost track of how far this replica is may begin there. What was
// trimmed, and the oldest entry kept, is committed, so every leader has the
// same.
func (i *rpcFilter) trimPrefix(q *raft.AppendEntriesRequest) {
	first := i.log.FirstIndex()
	if first <= 1 || q.PrevLogEntry >= first {
		return
	}
	oldest, err := i.log.Entry(first)
	if err != nil {
		return // raft turns the request down
	}
	for len(q.Entries) > 0 && q.Entries[0].Index <= first {
		q.Entries = q.Entries[1:]
	}
	q.PrevLogEntry, q.PrevLogTerm = first, oldest.Term
}

var errBehind = errors.New("this replica lacks entries that the leader has trimmed: it is to fetch them")

// install answers a leader that wants to send a marker because it has trimmed
// what comes next in what it takes for this replica's log. If the log holds
// what the marker covers, that is as good as having installed it: the leader
// goes on from there. Otherwise the replica is behind.
func (i *rpcFilter) answerInstall(q *raft.InstallSnapshotRequest) (any, error) {
	a := &raft.InstallSnapshotResponse{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}, Term: q.Term}
	if r := i.raft.Load(); r != nil && r.CurrentTerm() > q.Term {
		a.Term = r.CurrentTerm()
		return a, nil
	}
	if i.covers(q.LastLogIndex, q.LastLogTerm) {
		a.Success = true
		return a, nil
	}
	i.behindOnce.Do(func() { close(i.behind) })
	return a, errBehind
}

// covers tells whether the log holds, or held and trimmed, what a leader's
// marker at an index covers.
func (i *rpcFilter) covers(index, term uint64) bool {
	first, last := i.log.FirstIndex(), i.log.LastIndex()
	if first == 0 || index > last {
		return false
	}
	if index < first {
		return true
	}
	e, err := i.log.Entry(index)
	return err == nil && e.Term == term
}

// refusesTerm reports whether a heartbeat's term leaps, and says so in the log.
func (e *endpoint) rejectsTerm(term uint64) bool {
	g := e.group.Load()
	if g == nil || !implausibleTerm(g.raft.CurrentTerm(), term) {
		return false
	}
	e.network.peers.Warn("a peer's heartbeat is refused: its term leaps", "term", term, "own", g.raft.CurrentTerm())
	return true
}
