package raftstore

import (
	"io"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/cantuslog/cantus/wal"
)

// FSM is what committed entries are applied to. Its methods are called from
// one goroutine at a time.
type FSM interface {
	// Apply applies committed entries, in order, and gives a result for each,
	// which its proposer gets.
	Apply(entries []Committed) []any
	// Mark describes the state after the last Apply. It is called between two
	// Applies, after many entries or some seconds, and when the group closes.
	// Committed entries wait while it runs: its cost must follow from what
	// changed since the last one, or from state that is small, and it does no I/O.
	Snapshot() Snapshot
	// Restore sets the state to what Mark once described. It is called at
	// most once, before any Apply; without it the FSM begins empty.
	Restore(state []byte) error
}

// Committed is a committed entry. Data is shared and not to be changed.
type Committed struct {
	Index uint64
	Term  uint64
	Data  []byte
	// Taken is when this replica, leading, took the entry up, and Synced when
	// it had synced it. Both are zero where that is not known, as on followers.
	Taken, Synced time.Time
}

// Mark is a state in brief.
type Snapshot struct {
	// State is what Restore is given: some bytes.
	State []byte
	// Metas go into the log's small state together with it, all or none.
	Metas []wal.Meta
}

// fsmAdapter is raft's view of an FSM.
type fsmAdapter struct {
	fsm         FSM
	writes      *asyncWrites
	snapshotter *snapshotter
	// restored is told why the state could not be restored: raft only logs it.
	restored *error
}

// notSynced is the result of an entry that raft took for committed and that
// could not be synced here. It was not applied, and nothing behind it will be.
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
			e.Taken = time.Time{} // by the leader's clock
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

// marking is a Mark on its way into the marker store.
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
