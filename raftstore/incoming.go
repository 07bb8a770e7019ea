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
type incoming struct {
	in   <-chan raft.RPC
	out  chan raft.RPC
	open context.Context
	log  *wal.Log
	full func() bool // nil: never
	raft atomic.Pointer[raft.Raft]

	behind    chan struct{} // closed once
	behindOne sync.Once
	running   sync.WaitGroup
}

func newIncoming(in <-chan raft.RPC, open context.Context, log *wal.Log, full func() bool) *incoming {
	i := &incoming{in: in, out: make(chan raft.RPC), open: open, log: log, full: full, behind: make(chan struct{})}
	i.running.Go(i.run)
	return i
}

func (i *incoming) wait() { i.running.Wait() }

func (i *incoming) run() {
	for {
		select {
		case <-i.open.Done():
			return
		case rpc := <-i.in:
			if !i.pass(&rpc) {
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

// pass tells whether raft is to see a request.
func (i *incoming) pass(rpc *raft.RPC) bool {
	switch q := rpc.Command.(type) {
	case *raft.AppendEntriesRequest:
		if i.full != nil && needsRoom(q) && i.full() {
			rpc.Respond(nil, errFull)
			return false
		}
		i.raiseHead(q)
	case *raft.InstallSnapshotRequest:
		_, _ = io.Copy(io.Discard, rpc.Reader) // it comes before the next request
		rpc.Respond(i.install(q))
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
func (i *incoming) raiseHead(q *raft.AppendEntriesRequest) {
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
func (i *incoming) install(q *raft.InstallSnapshotRequest) (any, error) {
	a := &raft.InstallSnapshotResponse{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}, Term: q.Term}
	if r := i.raft.Load(); r != nil && r.CurrentTerm() > q.Term {
		a.Term = r.CurrentTerm()
		return a, nil
	}
	if i.covers(q.LastLogIndex, q.LastLogTerm) {
		a.Success = true
		return a, nil
	}
	i.behindOne.Do(func() { close(i.behind) })
	return a, errBehind
}

// covers tells whether the log holds, or held and trimmed, what a leader's
// marker at an index covers.
func (i *incoming) covers(index, term uint64) bool {
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
