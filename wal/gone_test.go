//go:build unix

package wal_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cantuslog/cantus/wal"
)

// closeInTime closes a store that may have failed.
func closeInTime(t *testing.T, s *wal.Store) error {
	t.Helper()
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	select {
	case err := <-closed:
		return err
	case <-time.After(time.Minute):
		t.Fatal("the store does not close")
		return nil
	}
}

// A directory is deleted while a store is open: no write is acknowledged once
// the journal's files are gone.
func TestNothingIsAcknowledgedIntoADeletedDirectory(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	s, err := wal.Open(dir, wal.Options{Identity: small().Identity}.Impatient())
	if err != nil {
		t.Fatal(err)
	}
	var acked tally
	if err := acked.run(s.Log(0), 10); err != nil {
		t.Fatal(err)
	}
	s.WaitApplied() // Badger has something to write down
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := acked.run(s.Log(0), 1); !errors.Is(err, wal.ErrFailed) {
		t.Errorf("a write into a deleted directory: %v", err)
	}
	if err := closeInTime(t, s); !errors.Is(err, wal.ErrFailed) {
		t.Errorf("close: %v", err)
	}
}

// A directory that is moved away is noticed, and contains what was acknowledged
// until then.
func TestADirectoryThatIsMovedFailsTheStore(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	s, err := wal.Open(dir, wal.Options{Identity: small().Identity}.Impatient())
	if err != nil {
		t.Fatal(err)
	}
	var acked tally
	if err := acked.run(s.Log(0), 10); err != nil {
		t.Fatal(err)
	}
	s.WaitApplied() // Badger has something to write down
	if err := os.Rename(dir, dir+"2"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Failure():
	case <-time.After(time.Minute):
		t.Error("the store does not notice")
	}
	if err := closeInTime(t, s); !errors.Is(err, wal.ErrFailed) {
		t.Errorf("close: %v", err)
	}
	copied := t.TempDir() // this process still has the other one open
	for _, part := range []string{".", "store", "journal"} {
		copyFiles(t, filepath.Join(dir+"2", part), filepath.Join(copied, part))
	}
	s = openStore(t, copied, wal.Options{})
	if err := acked.check(s.Log(0)); err != nil {
		t.Fatal(err)
	}
}
