package wal_test

import (
	"errors"
	"testing"

	"github.com/cantuslog/cantus/wal"
	"github.com/cantuslog/cantus/wal/journal/journaltest"
)

// TestReplaceWithoutRoom replaces entries by ones for which there is no space.
// The log keeps those that it has, until there is.
func TestReplaceWithoutRoom(t *testing.T) {
	dir, gate := t.TempDir(), journaltest.NewGate()
	s := openStore(t, dir, wal.Options{FS: gate})
	l := s.Log(1)
	appendMany(t, l, 50, 10)
	gate.Fill(true)
	large := wal.Entry{Index: 30, Term: 2, Data: make([]byte, 8<<20)}
	if err := l.Replace(large); !errors.Is(err, wal.ErrNoSpace) {
		t.Fatalf("without space: %v", err)
	}
	if e, err := l.Entry(30); err != nil || e.Term == 2 || l.LastIndex() != 50 {
		t.Errorf("after an error the log ends at %d, and entry 30 is of term %d: %v", l.LastIndex(), e.Term, err)
	}
	gate.Fill(false)
	if err := l.Replace(large); err != nil {
		t.Fatal(err)
	}
	for _, index := range []uint64{0, 31, 40} {
		if err := l.Replace(wal.Entry{Index: index}); !errors.Is(err, wal.ErrNotFound) {
			t.Errorf("entry %d, which the log does not hold: %v", index, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, wal.Options{})
	if e, err := s.Log(1).Entry(30); err != nil || e.Term != 2 || s.Log(1).LastIndex() != 30 {
		t.Errorf("after a start the log ends at %d, and entry 30 is of term %d: %v", s.Log(1).LastIndex(), e.Term, err)
	}
}
