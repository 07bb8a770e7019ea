package wal_test

import (
	"bytes"
	"runtime/pprof"
	"testing"
	"time"

	"github.com/cantuslog/cantus/wal"
)

// TestCompactorsRest checks that Badger's compactors stop when nothing is
// written, and run when there are new tables.
func TestCompactorsRest(t *testing.T) {
	opts := small()
	opts.CheckpointBytes = 1 << 30 // no checkpoint has them run
	others := compacting(t)        // of stores that other tests could not close
	s := openStore(t, t.TempDir(), opts)
	l := s.Log(0)
	now := time.Now()
	for looks := 0; !s.CompactorsRest(now); looks++ { // the founding may have left something to do
		if now = now.Add(time.Hour); looks > 10 {
			t.Fatal("the compactors do not rest")
		}
	}
	if n := compacting(t) - others; n > 0 {
		t.Fatalf("%d compactors run and are to rest", n)
	}
	write := func(from, to uint64) {
		t.Helper()
		for i := from; i <= to; i += 10 {
			var entries []wal.Entry
			for j := i; j < i+10; j++ {
				entries = append(entries, numbered(j))
			}
			if err := l.Append(entries...); err != nil {
				t.Fatal(err)
			}
		}
		if !s.WaitApplied() {
			t.Fatal(s.Failed())
		}
	}
	write(1, 10)
	if n := compacting(t) - others; n > 0 {
		t.Fatalf("%d compactors run for a few entries", n)
	}
	write(11, 2_000) // more tables than Badger takes without them
	eventually(t, "the tables are compacted", func() bool { return !s.Uncompacted() })
	done := s.NeedCompactors()
	if s.CompactorsRest(now.Add(time.Hour)) || s.CompactorsRest(now.Add(2*time.Hour)) {
		t.Fatal("the compactors rest while they are needed")
	}
	done()
	if err := s.Close(); err != nil { // whether they rest or not
		t.Fatal(err)
	}
}

// compacting returns how many of Badger's compactors run in this process.
func compacting(t *testing.T) int {
	t.Helper()
	var stacks bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&stacks, 2); err != nil {
		t.Fatal(err)
	}
	return bytes.Count(stacks.Bytes(), []byte("levelsController).runCompactor("))
}
