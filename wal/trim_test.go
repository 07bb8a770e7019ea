package wal_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/wal"
)

// TestTrimmedSpaceComesBack trims a log, and then writes small entries to
// another one: as Badger compacts its tables it learns what is dead, and what
// it takes on the disk must come down.
func TestTrimmedSpaceComesBack(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	opts := small()
	opts.CheckpointBytes, opts.SegmentSize = 256<<10, 1<<20
	s := openStore(t, dir, opts)
	const count, kept, perFrame = 2_000, 100, 50
	appendMany(t, s.Log(0), count, 4<<10)
	if err := s.Log(0).TrimHead(count - kept); err != nil {
		t.Fatal(err)
	}
	store := filepath.Join(dir, "store")
	s.WaitApplied()
	full, rounds := onDisk(t, store), 0
	for ; onDisk(t, store) > full/2; rounds++ {
		if rounds == 5_000 {
			t.Fatalf("%d bytes were on the disk, and are still %d", full, onDisk(t, store))
		}
		appendMany(t, s.Log(1), perFrame, 300)
		if err := s.Log(1).TrimHead(s.Log(1).LastIndex() - 1); err != nil {
			t.Fatal(err)
		}
		s.WaitApplied() // Badger's compaction is to keep up
	}
	t.Logf("%d bytes were on the disk, and %d after %d rounds", full, onDisk(t, store), rounds)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, opts)
	if r := wal.VerifyLog(s.Log(0), wal.Base{Txid: count - kept}); r.Err != nil || r.LastTxid != count {
		t.Fatalf("report %+v", r)
	}
}

// appendMany appends so many entries of about so many bytes.
func appendMany(t *testing.T, l *wal.Log, count, size int) {
	t.Helper()
	var entries []wal.Entry
	for range count {
		index := l.LastIndex() + 1 + uint64(len(entries))
		entries = append(entries, wal.Entry{Index: index, Data: batch(index, 1, strings.Repeat("x", size))})
		if len(entries) == 50 {
			if err := l.Append(entries...); err != nil {
				t.Fatal(err)
			}
			entries = nil
		}
	}
}

// onDisk is how much room the files in a directory take.
func onDisk(t *testing.T, dir string) (bytes int) {
	t.Helper()
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		bytes += allocated(filepath.Join(dir, n.Name()))
	}
	return bytes
}
