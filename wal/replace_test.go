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

// TestAReplacedEntryThatComesBackIsDamage has Badger lose the newer one of two
// entries at an index, as it did when it deleted tables that it had not merged.
// The older one is intact, and must not be taken for it.
func TestAReplacedEntryThatComesBackIsDamage(t *testing.T) {
	const index = 30
	for how, replace := range map[string]func(*wal.Log, wal.Entry) error{
		"replaced": func(l *wal.Log, e wal.Entry) error { return l.Replace(e) },
		"truncated": func(l *wal.Log, e wal.Entry) error {
			return errors.Join(l.TruncateSuffix(index), l.Append(e))
		},
	} {
		t.Run(how, func(t *testing.T) {
			s := openStore(t, t.TempDir(), wal.Options{TailBytes: 1})
			l := s.Log(1)
			appendMany(t, l, 50, 10)
			s.WaitApplied()
			older, err := l.Stored(index)
			if err != nil {
				t.Fatal(err)
			}
			if err := replace(l, wal.Entry{Index: index, Term: 2, Data: batch(index, 1, "newer")}); err != nil {
				t.Fatal(err)
			}
			for range 2 { // then memory does not have it any more
				s.WaitApplied()
				appendMany(t, l, 50, 10)
			}
			s.WaitApplied()
			if e, err := l.Entry(index); err != nil || e.Term != 2 {
				t.Fatalf("entry %d is of term %d: %v", index, e.Term, err)
			}
			if err := l.SetStored(index, older); err != nil {
				t.Fatal(err)
			}
			if e, err := l.Entry(index); !errors.Is(err, wal.ErrDamaged) {
				t.Errorf("entry %d is of term %d: %v", index, e.Term, err)
			}
		})
	}
}
