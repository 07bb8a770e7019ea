package raftstore

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/wal"
)

// seen is an FSM that says what it applies.
type seen struct {
	nothing
	applied chan uint64
}

func (s seen) Apply(entries []Committed) []any {
	results := make([]any, len(entries))
	for i, e := range entries {
		results[i] = e.Index
		s.applied <- e.Index
	}
	return results
}

// TestWhatIsSyncedIsAppliedBeforeTheRest commits three entries of a leader at
// once, of which the last is not synced yet. The followers know that the others
// are committed: a leader that did not show them would be behind its followers
// for as long as its disk hangs.
func TestWhatIsSyncedIsAppliedBeforeTheRest(t *testing.T) {
	log := openLog(t, t.TempDir(), wal.Options{})
	s := &logStore{truncating: make(chan struct{}, 1), log: log, halt: &halt{}}
	var logs []*raft.Log
	for i := range uint64(3) {
		logs = append(logs, &raft.Log{Index: i + 1, Term: 1, Type: raft.LogCommand})
	}
	if err := s.StoreLogs(logs); err != nil {
		t.Fatal(err)
	}
	var writes asyncWrites
	writes.add(logs)
	fsm := seen{applied: make(chan uint64, 3)}
	adapter := fsmAdapter{fsm: fsm, log: log, writes: &writes, snapshotter: &snapshotter{entries: 1 << 40}}
	done := make(chan []any, 1)
	go func() { done <- adapter.ApplyBatch(logs) }()
	writes.completed(2, nil)
	for want := range uint64(2) {
		select {
		case got := <-fsm.applied:
			if got != want+1 {
				t.Errorf("applied %d, want %d", got, want+1)
			}
		case <-time.After(testkit.Patience):
			t.Fatal("what is synced is not applied while the rest is not")
		}
	}
	if len(fsm.applied) > 0 {
		t.Error("an entry that is not synced is applied")
	}
	writes.completed(1, nil)
	if results := <-done; len(results) != 3 || results[0] != uint64(1) || results[2] != uint64(3) {
		t.Errorf("results: %v", results)
	}
}
