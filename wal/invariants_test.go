package wal_test

import (
	"encoding/binary"
	"testing"

	"github.com/cantuslog/cantus/internal/invariant"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/wal"
	"github.com/cantuslog/cantus/wal/journal"
	"github.com/cantuslog/cantus/wal/journal/journaltest"
)

// TestInvariantsOfAStore makes each statement about a store false.
func TestInvariantsOfAStore(t *testing.T) {
	t.Run("a frame is left out", func(t *testing.T) {
		testkit.Violates(t, invariant.FramesInOrder)
		s := openBroken(t)
		s.ApplyToLogs(s.LastFrame() + 2)
	})
	t.Run("an entry is left out", func(t *testing.T) {
		testkit.Violates(t, invariant.EntriesDense)
		entry := func(index uint64) journal.Op {
			key := binary.BigEndian.AppendUint64([]byte{'e', 0, 0, 0, 0}, index)
			return journal.Op{Key: key, Value: []byte("x")}
		}
		if err := wal.ReplayOps(entry(7), entry(9)); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("a frame is released that Badger does not have", func(t *testing.T) {
		testkit.Violates(t, invariant.ReleasedApplied)
		s := openBroken(t)
		_ = s.ReleaseJournal(s.LastFrame() + 1) // the journal refuses it, or not
	})
}

// openBroken opens a store that the test is about to break.
func openBroken(t *testing.T) *wal.Store {
	t.Helper()
	s, err := wal.Open(t.TempDir(), wal.Options{Identity: wal.Identity{Cluster: "c", Node: "n1", Partitions: 1}, FS: journaltest.New(1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	if err := s.Log(0).Append(wal.Entry{Index: 1, Term: 1}); err != nil {
		t.Fatal(err)
	}
	return s
}
