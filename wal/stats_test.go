package wal_test

import (
	"testing"
	"time"

	"github.com/cantuslog/cantus/wal"
)

func TestStats(t *testing.T) {
	t.Parallel()
	began := time.Now()
	s := openStore(t, t.TempDir(), wal.Options{})
	before := s.Stats()
	if err := s.Log(0).Append(wal.Entry{Index: 1, Term: 1, Data: batch(1, 1, "p")}); err != nil {
		t.Fatal(err)
	}
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	after := s.Stats()
	if after.Checkpoints != before.Checkpoints+1 || after.LastCheckpoint.Before(began) || after.LastCheckpoint.After(time.Now()) {
		t.Errorf("checkpoints: before %+v, after %+v", before, after)
	}
	if after.Journal.Frames <= before.Journal.Frames || len(after.Levels) == 0 {
		t.Errorf("before %+v, after %+v", before, after)
	}
	journal, badger, err := s.DiskUsage()
	if err != nil || journal <= 0 || badger <= 0 {
		t.Errorf("%d and %d bytes, %v", journal, badger, err)
	}
	if size, err := wal.DiskSize(s.Dir()); err != nil || size < journal+badger {
		t.Errorf("a disk of %d bytes, %v", size, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if closed := s.Stats(); len(closed.Levels) > 0 {
		t.Errorf("closed: %+v", closed)
	}
	if usage, _, err := s.DiskUsage(); err != nil || usage <= 0 {
		t.Errorf("closed: %d bytes, %v", usage, err)
	}
}
