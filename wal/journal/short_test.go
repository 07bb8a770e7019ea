package journal_test

import (
	"errors"
	"syscall"
	"testing"

	"github.com/cantuslog/cantus/wal/journal"
	"github.com/cantuslog/cantus/wal/journal/journaltest"
)

// TestShort fills the disk while a segment is active and the next one is made:
// the journal knows at once, not when that segment is used up, and large frames
// leave space to small ones.
func TestShort(t *testing.T) {
	fs := journaltest.New(1)
	j := mustOpen(t, dir, journal.Options{FS: fs, SegmentSize: 1 << 20}, nil)
	if err := j.Prepare(); err != nil || j.Short() {
		t.Fatalf("prepare: %v, short: %t", err, j.Short())
	}
	fs.Hook(func(c journaltest.Call) error {
		if c.Kind == journaltest.Allocate {
			return syscall.ENOSPC
		}
		return nil
	})
	taken := 0
	for ; !j.Short(); taken++ { // the ready segment becomes the active one
		if taken > 1000 {
			t.Fatal("it never runs short")
		}
		if err := j.Commit(put("large", 30<<10)); err != nil {
			t.Fatal(err)
		}
		_ = j.Prepare() // waits for the attempt to end
	}
	var err error
	for _, size := range []int{30 << 10, 5 << 10} {
		for err = nil; err == nil && taken < 10_000; taken++ {
			err = j.Commit(put("large", size))
		}
	}
	if !errors.Is(err, journal.ErrNoSpace) || taken < 60 {
		t.Fatalf("after %d: %v", taken, err)
	}
	for i := range 100 {
		if err := j.Commit(put("vote", 400)); err != nil {
			t.Fatalf("small frame %d: %v", i, err)
		}
	}
	if err := j.Prepare(); !errors.Is(err, journal.ErrNoSpace) {
		t.Errorf("prepare on a full disk: %v", err)
	}
	fs.Hook(nil)
	if err := errors.Join(j.Prepare(), j.Commit(put("large", 30<<10))); err != nil || j.Short() {
		t.Errorf("there is room again: %v, short: %t", err, j.Short())
	}
	mustClose(t, j)
	if err := j.Prepare(); err != nil && !errors.Is(err, journal.ErrClosed) {
		t.Errorf("prepare after close: %v", err)
	}
}
