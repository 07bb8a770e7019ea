package raftstore

import (
	"io"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/cantuslog/cantus/internal/invariant"
	"github.com/cantuslog/cantus/wal"
)

// FSM is a state machine that applies committed entries. Its methods are called
// by one goroutine at a time.
type FSM interface {
	// Apply applies committed entries, in order, and returns a result for each.
	// [Proposal.Wait] returns an entry's result to its proposer.
	Apply(entries []Committed) []any
	// Snapshot returns a snapshot of the state after the last Apply. It is
	// called between two calls of Apply, after many entries or a quiet second,
	// and when the group closes. Committed entries wait while it runs, so it
	// must do no I/O, and its cost must depend only on small state, or on what
	// has changed since the last snapshot.
	Snapshot() Snapshot
	// Restore sets the state to that of a snapshot. It is called at most once,
	// before the first Apply. If it is not called, the FSM begins with an empty
	// state.
	Restore(state []byte) error
}

// Committed is a committed entry. Data is shared and must not be changed.
type Committed struct {
	Index uint64
	Term  uint64
	Data  []byte
	// Restored reports whether the entry was proposed by
	// [Group.ProposeRestored].
	Restored bool
	// Taken is the time when this replica, as the leader, accepted the entry,
	// and Synced the time when it had synced it. Both are zero if they are not
	// known, as on followers.
	Taken, Synced time.Time
}

// Snapshot is the metadata of a state.
type Snapshot struct {
	// State is the argument of Restore. It should be a few bytes.
	State []byte
	// Metas are stored in the log's small state, atomically with State.
	Metas []wal.Meta
}

// fsmAdapter adapts an FSM to raft.BatchingFSM.
type fsmAdapter struct {
	fsm         FSM
	log         *wal.Log
	writes      *asyncWrites
	snapshotter *snapshotter
	// restoreErr, if not nil, receives the error of Restore, which raft only
	// logs.
	restoreErr *error
}

// notSynced is the result of an entry that raft considers committed but that
// could not be synced here. Neither it nor a later entry is applied.
type notSynced struct{ err error }

func (a fsmAdapter) Apply(l *raft.Log) any { return a.ApplyBatch([]*raft.Log{l})[0] }

func (a fsmAdapter) ApplyBatch(logs []*raft.Log) []any {
	entries := make([]Committed, 0, len(logs))
	for _, l := range logs {
		if l.Type == raft.LogCommand {
			entries = append(entries, Committed{Index: l.Index, Term: l.Term, Data: l.Data, Restored: wal.IsRestored(l.Extensions), Taken: l.AppendedAt})
		}
	}
	results := make([]any, 0, len(entries))
	for rest := entries; len(rest) > 0; {
		n, err := a.nextSynced(rest)
		if err != nil {
			return align(logs, append(results, slices.Repeat([]any{notSynced{err}}, len(rest))...))
		}
		results = append(results, a.applySynced(rest[:n])...)
		rest = rest[n:]
	}
	a.snapshotter.recordApplied(logs[len(logs)-1].Index)
	return align(logs, results)
}

// align returns a result for each of logs: the FSM returns none for a
// configuration.
func align(logs []*raft.Log, results []any) []any {
	if len(results) == len(logs) {
		return results
	}
	all := make([]any, len(logs))
	for i, l := range logs {
		if l.Type == raft.LogCommand {
			all[i], results = results[0], results[1:]
		}
	}
	return all
}

// nextSynced waits until the first of some entries is synced, and returns how
// many are. The others learn that an entry is committed as soon as it is synced
// here, and apply it: it must not wait here for those behind it.
func (a fsmAdapter) nextSynced(entries []Committed) (n int, err error) {
	if err := a.writes.waitSynced(entries[0].Index); err != nil {
		return 0, err
	}
	through := max(entries[0].Index, a.writes.limit(entries[len(entries)-1].Index))
	for n < len(entries) && entries[n].Index <= through {
		n++
	}
	synced := a.log.LastIndex()
	invariant.AppliedIsSynced.Check(synced >= entries[n-1].Index, synced, entries[n-1].Index)
	return n, nil
}

// applySynced applies entries that are synced.
func (a fsmAdapter) applySynced(entries []Committed) []any {
	applied := a.snapshotter.applied.Load()
	for i := range entries {
		e := &entries[i]
		invariant.AppliedInOrder.Check(e.Index > applied, e.Index, applied+1)
		applied = e.Index
		if e.Synced = a.writes.syncedAt(e.Index); e.Synced.IsZero() {
			e.Taken = time.Time{} // another replica accepted it, by its clock
		}
	}
	results := a.fsm.Apply(entries)
	a.snapshotter.recordApplied(entries[len(entries)-1].Index)
	return results
}

func (a fsmAdapter) Snapshot() (raft.FSMSnapshot, error) { return fsmSnapshot{a.fsm.Snapshot()}, nil }

func (a fsmAdapter) Restore(r io.ReadCloser) error {
	defer r.Close()
	state, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	err = a.fsm.Restore(state)
	if a.restoreErr != nil {
		*a.restoreErr = err
	}
	return err
}

// fsmSnapshot adapts a Snapshot to raft.FSMSnapshot.
type fsmSnapshot struct{ snapshot Snapshot }

func (m fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	s, ok := sink.(*snapshotSink)
	if !ok {
		return errForeignSink
	}
	s.local, s.metas = true, m.snapshot.Metas
	if _, err := s.Write(m.snapshot.State); err != nil {
		return err
	}
	return s.Close()
}

func (m fsmSnapshot) Release() {}
