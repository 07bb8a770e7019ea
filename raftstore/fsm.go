package raftstore

import (
	"io"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/cantuslog/cantus/wal"
)

// FSM is the state machine that committed entries are applied to. Its methods
// are called by one goroutine at a time.
type FSM interface {
	// Apply applies committed entries, in order, and returns a result for each.
	// The proposer of an entry gets its result.
	Apply(entries []Committed) []any
	// Snapshot describes the state after the last Apply. It is called between
	// two Applies, after many entries or some seconds, and when the group
	// closes. Committed entries wait while it runs: its cost must depend on
	// what changed since the last one, or on state that is small, and it must
	// do no I/O.
	Snapshot() Snapshot
	// Restore sets the state to what Snapshot once described. It is called at
	// most once, before any Apply. If it is not called, the FSM begins empty.
	Restore(state []byte) error
}

// Committed is a committed entry. Data is shared and must not be changed.
type Committed struct {
	Index uint64
	Term  uint64
	Data  []byte
	// Taken is when this replica, leading, accepted the entry, and Synced when it
	// had synced it. Both are zero where that is not known, as on followers.
	Taken, Synced time.Time
}

// Snapshot describes a state in brief.
type Snapshot struct {
	// State is a few bytes, the argument of Restore.
	State []byte
	// Metas are stored in the log's small state together with it, all or none.
	Metas []wal.Meta
}

// fsmAdapter is raft's view of an FSM.
type fsmAdapter struct {
	fsm         FSM
	writes      *asyncWrites
	snapshotter *snapshotter
	// restored receives the error of Restore: raft only logs it.
	restored *error
}

// notSynced is the result of an entry that raft took for committed and that
// could not be synced here. It was not applied, and nothing after it will be.
type notSynced struct{ err error }

func (a fsmAdapter) Apply(l *raft.Log) any { return a.ApplyBatch([]*raft.Log{l})[0] }

func (a fsmAdapter) ApplyBatch(logs []*raft.Log) []any {
	entries := make([]Committed, 0, len(logs))
	for _, l := range logs {
		if l.Type == raft.LogCommand {
			entries = append(entries, Committed{Index: l.Index, Term: l.Term, Data: l.Data, Taken: l.AppendedAt})
		}
	}
	if n := len(entries); n > 0 {
		if err := a.writes.waitSynced(entries[n-1].Index); err != nil {
			return slices.Repeat([]any{notSynced{err}}, len(logs))
		}
	}
	for i := range entries {
		e := &entries[i]
		if e.Synced = a.writes.syncedAt(e.Index); e.Synced.IsZero() {
			e.Taken = time.Time{} // it is by the leader's clock
		}
	}
	results := a.fsm.Apply(entries)
	a.snapshotter.recordApplied(logs[len(logs)-1].Index)
	if len(results) == len(logs) {
		return results
	}
	all := make([]any, len(logs)) // configurations have no result
	for i, l := range logs {
		if l.Type == raft.LogCommand {
			all[i], results = results[0], results[1:]
		}
	}
	return all
}

func (a fsmAdapter) Snapshot() (raft.FSMSnapshot, error) { return fsmSnapshot{a.fsm.Snapshot()}, nil }

func (a fsmAdapter) Restore(r io.ReadCloser) error {
	defer r.Close()
	state, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	err = a.fsm.Restore(state)
	if a.restored != nil {
		*a.restored = err
	}
	return err
}

// fsmSnapshot is a Snapshot on its way into the snapshotStore.
type fsmSnapshot struct{ snapshot Snapshot }

func (m fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	s, ok := sink.(*snapshotSink)
	if !ok {
		return errForeignSink
	}
	s.own, s.metas = true, m.snapshot.Metas
	if _, err := s.Write(m.snapshot.State); err != nil {
		return err
	}
	return s.Close()
}

func (m fsmSnapshot) Release() {}
