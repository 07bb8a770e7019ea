package wal_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/wal"
)

// TestTrimmedSpaceComesBack trims a log that is no longer written to: the space
// that it takes must still be freed.
func TestTrimmedSpaceComesBack(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	opts := small()
	opts.SegmentSize = 1 << 20
	s := openStore(t, dir, opts)
	const count, kept = 2_000, 100
	appendMany(t, s.Log(0), count, 4<<10)
	store := filepath.Join(dir, "store")
	s.WaitApplied()
	full := onDisk(t, store)
	if err := s.Log(0).TrimHead(count - kept); err != nil {
		t.Fatal(err)
	}
	testkit.Until(t, fmt.Sprintf("of %d bytes on the disk most are freed", full), func() bool { return onDisk(t, store) <= full/4 })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, opts)
	if r := wal.VerifyLog(s.Log(0), wal.Base{Txid: count - kept}); r.Err != nil || r.LastTxid != count {
		t.Fatalf("report %+v", r)
	}
}

// TestTrimmedSpaceComesBackThroughRestarts trims little before each of many
// restarts: what was deleted must add up.
func TestTrimmedSpaceComesBackThroughRestarts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const each, entry = 250, 4 << 10
	opts := small().MergeAfter(3 * each * entry)
	opts.SegmentSize = 1 << 20
	count, deleted := uint64(0), int64(0)
	for range 2 {
		s := openStore(t, dir, opts)
		if got := s.Deleted(); got < deleted {
			t.Fatalf("%d bytes were deleted before the restart; after it the store knows of %d", deleted, got)
		}
		appendMany(t, s.Log(0), each, entry)
		count += each
		if err := s.Log(0).TrimHead(count - 1); err != nil {
			t.Fatal(err)
		}
		least := deleted + (each-1)*entry
		testkit.Until(t, "all is deleted", func() bool { return s.Deleted() >= least })
		deleted = s.Deleted()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s := openStore(t, dir, opts)
	appendMany(t, s.Log(0), each, entry)
	if err := s.Log(0).TrimHead(count + each - 1); err != nil {
		t.Fatal(err)
	}
	testkit.Until(t, "tables are merged, and value logs rewritten", func() bool {
		return s.Deleted() < deleted && onDisk(t, filepath.Join(dir, "store")) < 4*each*entry
	})
	left := s.Deleted()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s = openStore(t, dir, opts); s.Deleted() > left {
		t.Errorf("%d bytes are deleted and not merged after a restart, %d before", s.Deleted(), left)
	}
}

// TestALargeValueLogKeepsNoSmallOnes leaves a large value log of which a part
// was deleted, and small ones, as restarts leave them behind, of which nothing
// is needed.
func TestALargeValueLogKeepsNoSmallOnes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	opts := small()
	opts.SegmentSize = 1 << 20
	const entry = 4 << 10
	s := openStore(t, dir, opts)
	appendMany(t, s.Log(0), 100, entry) // in one value log: two thirds are group 1's
	appendMany(t, s.Log(1), 150, entry)
	for range 8 { // in one each: less than in the first
		s.WaitApplied()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, dir, opts)
		appendMany(t, s.Log(0), 50, entry)
	}
	s.WaitApplied()
	if err := s.Log(0).TrimHead(s.Log(0).LastIndex() - 1); err != nil {
		t.Fatal(err)
	}
	logs := func() int {
		names, err := filepath.Glob(filepath.Join(dir, "store", "*.vlog"))
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	testkit.Until(t, "the small value logs are gone", func() bool { return logs() <= 3 })
	if r := wal.VerifyLog(s.Log(1), wal.Base{}); r.Err != nil || r.LastTxid != 150 {
		t.Fatalf("report %+v", r)
	}
}

// TestTrimmedSpaceComesBackWithLittleSpaceLeft trims a log on a disk that has
// less space left than a value log takes: it must still be freed.
func TestTrimmedSpaceComesBackWithLittleSpaceLeft(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	opts := small()
	opts.SegmentSize = 1 << 20
	store := filepath.Join(dir, "store")
	var size atomic.Int64 // of the disk; 0 if there is plenty
	opts.FreeSpace = func(string) (int64, error) {
		if size.Load() == 0 {
			return 1 << 40, nil
		}
		return size.Load() - int64(onDisk(t, store)), nil
	}
	s := openStore(t, dir, opts)
	const count, kept = 2_000, 100
	appendMany(t, s.Log(0), count, 4<<10)
	s.WaitApplied()
	full := onDisk(t, store)
	size.Store(int64(full) + s.Floor() + 256<<10) // what is deleted takes some
	if err := s.Log(0).TrimHead(count - kept); err != nil {
		t.Fatal(err)
	}
	testkit.Until(t, fmt.Sprintf("of %d bytes on the disk most are freed", full), func() bool { return onDisk(t, store) <= full/4 })
	if r := wal.VerifyLog(s.Log(0), wal.Base{Txid: count - kept}); r.Err != nil || r.LastTxid != count {
		t.Fatalf("report %+v", r)
	}
}

// TestMergingWaitsForSpace trims a log when there is no space to merge tables,
// and so to learn what was deleted. That is tried again.
func TestMergingWaitsForSpace(t *testing.T) {
	t.Parallel()
	var free atomic.Int64
	free.Store(1 << 40)
	opts := small()
	opts.FreeSpace = func(string) (int64, error) { return free.Load(), nil }
	s := openStore(t, t.TempDir(), opts)
	const count, entry = 2_000, 4 << 10
	appendMany(t, s.Log(0), count, entry)
	appendMany(t, s.Log(1), 10_000, 100) // small ones are in the tables
	s.WaitApplied()
	free.Store(s.Floor() + 512<<10)
	if err := s.Log(0).TrimHead(count - 100); err != nil {
		t.Fatal(err)
	}
	testkit.Until(t, "all is deleted", func() bool { return s.Deleted() >= (count-100)*entry })
	for range 3 {
		more, err := s.Reclaim()
		for more && err == nil { // of what Badger knows without a merge
			more, err = s.Reclaim()
		}
		if !errors.Is(err, wal.ErrNoSpace) {
			t.Errorf("tables are merged without space: %v", err)
		}
	}
	free.Store(1 << 40)
	// The trim may still delete the last ones: too few to merge for them.
	if _, err := s.Reclaim(); err != nil || s.Deleted() > (count-100)*entry/10 {
		t.Errorf("with space for it: %d bytes are deleted and not merged, %v", s.Deleted(), err)
	}
}

// TestValueLogsKeepToTheirSize writes frames that are large beside a value log.
func TestValueLogsKeepToTheirSize(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openStore(t, dir, small())
	const entry = 4 << 10
	appendMany(t, s.Log(0), 2_000, entry)
	s.WaitApplied()
	logs, err := filepath.Glob(filepath.Join(dir, "store", "*.vlog"))
	if err != nil || len(logs) < 3 {
		t.Fatal(logs, err)
	}
	for _, name := range logs[:len(logs)-1] {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if limit := s.ValueLogSize(); info.Size() > limit+limit/64+entry {
			t.Errorf("%s has %d bytes, its limit is %d", name, info.Size(), limit)
		}
	}
}

// TestDiscardCountsAreNotBelieved makes Badger count a value log as deleted
// that is needed as a whole. With little space left it must not be rewritten:
// the copy would not fit.
func TestDiscardCountsAreNotBelieved(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	opts := small()
	s := openStore(t, dir, opts)
	const count = 1_000
	appendMany(t, s.Log(0), count, 4<<10)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	store := filepath.Join(dir, "store")
	logs, err := filepath.Glob(filepath.Join(store, "*.vlog"))
	if err != nil || len(logs) < 3 {
		t.Fatal(logs, err)
	}
	counts, err := os.OpenFile(filepath.Join(store, "DISCARD"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := counts.WriteAt([]byte{7: 1, 12: 1, 31: 0}, 0); err != nil { // 16 MiB of number 1
		t.Fatal(err)
	}
	if err := counts.Close(); err != nil {
		t.Fatal(err)
	}
	var free atomic.Int64
	free.Store(1 << 40)
	opts.FreeSpace = func(string) (int64, error) { return free.Load(), nil }
	s = openStore(t, dir, opts)
	free.Store(s.Floor() + 128<<10)
	if more, err := s.Reclaim(); more || !errors.Is(err, wal.ErrNoSpace) {
		t.Errorf("reclaimed %v, with %v", more, err)
	}
	if _, err := os.Stat(logs[0]); err != nil {
		t.Error(err)
	}
	free.Store(1 << 40)
	if more, err := s.Reclaim(); !more || err != nil {
		t.Errorf("with space for it: reclaimed %v, with %v", more, err)
	}
	if r := wal.VerifyLog(s.Log(0), wal.Base{}); r.Err != nil || r.LastTxid != count {
		t.Fatalf("report %+v", r)
	}
}

// appendMany appends count entries of about size bytes.
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

// onDisk returns how much space the files in a directory take.
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
