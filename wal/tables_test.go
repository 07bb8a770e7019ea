package wal_test

import (
	"errors"
	"testing"

	"github.com/cantuslog/cantus/wal"
)

// TestCheckpointsWhileMemtablesBecomeTables takes checkpoints while Badger
// continuously rotates, flushes and removes its files.
func TestCheckpointsWhileMemtablesBecomeTables(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openStore(t, dir, small())
	stop, checkpoints := make(chan struct{}), make(chan error)
	go func() {
		var err error
		for err == nil {
			select {
			case <-stop:
				checkpoints <- nil
				return
			default:
				err = s.Checkpoint()
			}
		}
		checkpoints <- err
	}()
	l := s.Log(0)
	for index := uint64(1); index <= 4_000; index += 20 {
		var entries []wal.Entry
		for i := index; i < index+20; i++ {
			entries = append(entries, numbered(i))
		}
		if err := l.Append(entries...); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	if err := errors.Join(<-checkpoints, s.Failed(), s.Close()); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, small())
	acked := tally{appended: 4_000, tried: 4_000}
	if err := acked.check(s.Log(0)); err != nil {
		t.Fatal(err)
	}
}
