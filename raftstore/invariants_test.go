package raftstore

import (
	"bufio"
	"bytes"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/cantuslog/cantus/internal/invariant"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/wal"
)

// TestInvariantsOfAGroup makes each statement about a group false.
func TestInvariantsOfAGroup(t *testing.T) {
	log := openLog(t, t.TempDir(), wal.Options{})
	s := &logStore{truncating: make(chan struct{}, 1), log: log, halt: &halt{}}
	for i := range uint64(5) {
		if err := s.StoreLog(&raft.Log{Index: i + 1, Term: 1}); err != nil {
			t.Fatal(err)
		}
	}
	fsm := fsmAdapter{fsm: nothing{}, log: log, writes: &s.writes, snapshotter: &snapshotter{entries: 1 << 40}}
	store := snapshotStore{log}
	snapshot := func(t *testing.T, index uint64) {
		sink, err := store.Create(raft.SnapshotVersionMax, index, 1, raft.Configuration{}, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := (fsmSnapshot{}).Persist(sink); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		breaks *invariant.Invariant
		by     func(t *testing.T)
	}{
		{invariant.AppliedInOrder, func(*testing.T) {
			for _, index := range []uint64{3, 2} {
				fsm.ApplyBatch([]*raft.Log{{Index: index, Type: raft.LogCommand}})
			}
		}},
		{invariant.AppliedIsSynced, func(*testing.T) { fsm.ApplyBatch([]*raft.Log{{Index: 6, Type: raft.LogCommand}}) }},
		{invariant.SnapshotRises, func(t *testing.T) {
			snapshot(t, 4)
			snapshot(t, 3)
		}},
		{invariant.FetchComplete, func(t *testing.T) {
			testkit.Violates(t, invariant.LogFetched)
			f := fetcher{log: log, header: fetchHeader{First: 1}, snapshot: storedSnapshot{Index: 4, Term: 1}}
			f.conn = &fetchConn{r: bufio.NewReader(bytes.NewReader(nil))}
			if err := f.finish(); err != nil {
				t.Fatal(err)
			}
		}},
		{invariant.TermRises, func(*testing.T) { _ = s.SetUint64([]byte(keyTerm), 3); _ = s.SetUint64([]byte(keyTerm), 2) }},
	} {
		t.Run(test.breaks.Name(), func(t *testing.T) {
			testkit.Violates(t, test.breaks)
			test.by(t)
		})
	}
}
