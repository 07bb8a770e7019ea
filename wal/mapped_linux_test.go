package wal_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/wal"
)

// scarceSpace stands in for fallocate on a file system that has no space for
// some files.
type scarceSpace struct {
	mu        sync.Mutex
	lacks     func(name string) bool
	refused   int
	allocated map[string]int64 // by name
}

func newScarceSpace() *scarceSpace {
	s := &scarceSpace{allocated: map[string]int64{}}
	s.lack(nil)
	return s
}

// lack sets for which files there is no space.
func (s *scarceSpace) lack(which func(name string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lacks, s.refused = which, 0
}

func (s *scarceSpace) refusals() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused
}

func (s *scarceSpace) allocate(fd uintptr, bytes int64) error {
	path, err := os.Readlink(fmt.Sprint("/proc/self/fd/", fd))
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lacks != nil && s.lacks(path) {
		s.refused++
		return syscall.ENOSPC
	}
	s.allocated[filepath.Base(path)] = bytes
	return nil
}

func isTable(name string) bool    { return strings.HasSuffix(name, ".sst") }
func isManifest(name string) bool { return filepath.Base(name) == "MANIFEST" }

func tablesOf(t *testing.T, s *wal.Store) []string {
	t.Helper()
	tables, err := filepath.Glob(filepath.Join(s.Dir(), "store", "*.sst"))
	if err != nil {
		t.Fatal(err)
	}
	return tables
}

// usedTables returns how many tables Badger's manifest lists.
func usedTables(t *testing.T, s *wal.Store) int {
	t.Helper()
	f, err := os.Open(filepath.Join(s.Dir(), "store", badger.ManifestFilename))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	manifest, _, err := badger.ReplayManifestFile(f, 0, badger.DefaultOptions(""))
	if err != nil {
		t.Fatal(err)
	}
	return len(manifest.Tables)
}

// TestTablesAreAllocated checks that all of a table's blocks are allocated
// before Badger copies into its mapping, and the first of a log's.
func TestTablesAreAllocated(t *testing.T) {
	t.Parallel()
	space := newScarceSpace()
	s := openStore(t, t.TempDir(), small().WithAllocate(space.allocate))
	appendMany(t, s.Log(0), 3_000, 600)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	tables, logs := 0, 0
	for _, path := range tablesOf(t, s) {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		tables++
		if got := space.allocated[filepath.Base(path)]; got != info.Size() {
			t.Errorf("%s has %d bytes, %d were allocated", path, info.Size(), got)
		}
	}
	for name := range space.allocated {
		if strings.HasSuffix(name, ".mem") || strings.HasSuffix(name, ".vlog") {
			logs++
		}
	}
	if tables == 0 || logs < 2 {
		t.Errorf("%d tables and %d logs", tables, logs)
	}
}

// TestManifestIsAllocated checks that there are blocks for what Badger appends
// to its manifest. Badger appends behind a record of which only a part could be
// written, and then no start can read the file.
func TestManifestIsAllocated(t *testing.T) {
	t.Parallel()
	space := newScarceSpace()
	s := openStore(t, t.TempDir(), small().WithAllocate(space.allocate))
	appendMany(t, s.Log(0), 3_000, 600)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(s.Dir(), "store", "MANIFEST"))
	if err != nil {
		t.Fatal(err)
	}
	if got := space.allocated["MANIFEST"]; got < info.Size() {
		t.Errorf("the manifest has %d bytes, %d were allocated", info.Size(), got)
	}
}

// TestNewFilesMayHaveBlocks maps files that have blocks: without data they are
// new, and are allocated; with data they are not.
func TestNewFilesMayHaveBlocks(t *testing.T) {
	t.Parallel()
	space := newScarceSpace()
	dir := t.TempDir()
	detach, err := wal.AllocateWhatIsMappedIn(dir, space.allocate)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(detach)
	const length = 1 << 20
	mapFile := func(name string, data []byte) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		// A block of an access control list counts as one of the file's too,
		// but not every file system has those.
		if err := wal.Allocate(path, 4<<10); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(length); err != nil {
			t.Fatal(err)
		}
		mapping, err := unix.Mmap(int(f.Fd()), 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Munmap(mapping); err != nil {
			t.Fatal(err)
		}
	}
	mapFile("000001.sst", nil)
	if got := space.allocated["000001.sst"]; got != length {
		t.Errorf("%d bytes of a new file are allocated, want %d", got, length)
	}
	mapFile("000002.sst", []byte("data"))
	if got, ok := space.allocated["000002.sst"]; ok {
		t.Errorf("%d bytes of an old file are allocated", got)
	}
}

// TestLogsAreAllocatedInWholeFolios checks that the page cache has no folio
// that is written to and is allocated only in part.
func TestLogsAreAllocatedInWholeFolios(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), wal.Options{Identity: small().Identity})
	appendMany(t, s.Log(0), 50, 2_000)
	if !s.WaitApplied() {
		t.Fatal(s.Failed())
	}
	for _, name := range []string{"*.vlog", "*.mem"} {
		paths, err := filepath.Glob(filepath.Join(s.Dir(), "store", name))
		if err != nil || len(paths) == 0 {
			t.Fatal(paths, err)
		}
		newest := paths[len(paths)-1]
		if got := allocated(newest); got < 2<<20 {
			t.Errorf("%d bytes of %s are allocated, want %d or more", got, newest, 2<<20)
		}
	}
}

// TestTablesWaitForSpace lets other processes take the space of each table, or
// of the manifest's record of it, in the moment in which Badger creates the
// table: the store takes no entries, serves reads, and goes on when there is
// space.
func TestTablesWaitForSpace(t *testing.T) {
	t.Parallel()
	for name, lacks := range map[string]func(string) bool{"table": isTable, "manifest": isManifest} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tablesWaitForSpace(t, lacks)
		})
	}
}

func tablesWaitForSpace(t *testing.T, lacks func(name string) bool) {
	space := newScarceSpace()
	dir := t.TempDir()
	opts := small().ManyMemtables().WithAllocate(space.allocate)
	s := openStore(t, dir, opts)
	l := s.Log(0)
	for range 3 {
		space.lack(lacks)
		for !s.Tight() || space.refusals() == 0 {
			if l.LastIndex() > 50_000 {
				t.Fatalf("tight %v after %d entries, and %d tables refused", s.Tight(), l.LastIndex(), space.refusals())
			}
			if s.Tight() { // what could not be flushed before is not yet
				testkit.Until(t, "a table is refused, or entries are taken again", func() bool {
					s.CheckRoom()
					return !s.Tight() || space.refusals() > 0
				})
				continue
			}
			appendMany(t, l, 50, 600)
		}
		if err := s.Failed(); err != nil {
			t.Fatal(err)
		}
		if r := wal.VerifyLog(l, wal.Base{}); r.Err != nil || r.LastTxid != l.LastIndex() {
			t.Fatalf("while there is no space: %+v", r)
		}
		space.lack(nil)
		testkit.Until(t, "there is room", func() bool { s.CheckRoom(); return !s.Tight() })
		appendMany(t, l, 50, 600)
		if !s.WaitApplied() {
			t.Fatal(s.Failed())
		}
		testkit.Until(t, "no table is left that Badger does not use", func() bool { return len(tablesOf(t, s)) == usedTables(t, s) })
	}
	last := l.LastIndex()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, opts)
	if r := wal.VerifyLog(s.Log(0), wal.Base{}); r.Err != nil || r.LastTxid != last {
		t.Fatalf("after a restart: %+v", r)
	}
}

// TestLogsHaveAReserve lets other processes take the space of each new log: the
// store has kept some for it.
func TestLogsHaveAReserve(t *testing.T) {
	t.Parallel()
	space := newScarceSpace()
	s := openStore(t, t.TempDir(), small().WithAllocate(space.allocate))
	tried := map[string]bool{}
	space.lack(func(name string) bool { // at the first try
		first := !tried[name] && !strings.Contains(name, "reserve.tmp") && !isTable(name)
		tried[name] = true
		return first
	})
	appendMany(t, s.Log(0), 3_000, 600)
	if !s.WaitApplied() {
		t.Fatal(s.Failed())
	}
	if n := space.refusals(); n < 2 {
		t.Errorf("%d logs found no space", n)
	}
	if r := wal.VerifyLog(s.Log(0), wal.Base{}); r.Err != nil || r.LastTxid != 3_000 {
		t.Fatalf("%+v", r)
	}
}

// TestNothingIsWrittenWithoutAMemtable takes the space of a new memtable log
// and of the reserve: Badger then has no memtable, and ends the process at the
// next write.
func TestNothingIsWrittenWithoutAMemtable(t *testing.T) {
	t.Parallel()
	space := newScarceSpace()
	s, err := wal.Open(t.TempDir(), small().WithAllocate(space.allocate).Impatient())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	l := s.Log(0)
	appendMany(t, l, 500, 600)
	space.lack(func(name string) bool { return strings.HasSuffix(name, ".mem") })
	testkit.Until(t, "the store fails", func() bool {
		i := l.LastIndex() + 1
		_ = l.Append(wal.Entry{Index: i, Data: batch(i, 1, strings.Repeat("x", 400))})
		return s.Failed() != nil
	})
	if _, err := s.Reclaim(); !errors.Is(err, wal.ErrFailed) {
		t.Errorf("reclaim: %v", err)
	}
}

// TestMergedTablesWaitForSpace lets other processes take the space of tables
// that a compaction makes, or the last files. Badger ignores that it could not
// make a table, and removes those that it has merged: the compaction waits, and
// nothing is lost.
func TestMergedTablesWaitForSpace(t *testing.T) {
	t.Parallel()
	for what, lacks := range map[string]func(string) bool{
		"space": isMerged,
		"files": func(name string) bool { return filepath.Base(name) == "merge.tmp" },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			mergedTablesWaitForSpace(t, lacks)
		})
	}
}

func isMerged(name string) bool { return isTable(name) && merges() }

// TestUnmappableMergedTable checks that the store fails if a table can't be
// mapped that a compaction makes, before Badger removes the tables that it has
// merged.
func TestUnmappableMergedTable(t *testing.T) {
	t.Parallel()
	var unmappable atomic.Bool
	unmappable.Store(true)
	dir := t.TempDir()
	opts := small().WithUnmappable(func(name string) bool { return unmappable.Load() && isMerged(name) })
	s, err := wal.Open(dir, opts.Impatient())
	if err != nil {
		t.Fatal(err)
	}
	l := s.Log(0)
	const enough = 5_000 // for a compaction, which may begin late
	for ; err == nil; err = s.Failed() {
		index := l.LastIndex() + 1
		if err := l.Append(wal.Entry{Index: index, Data: batch(index, 1, strings.Repeat("x", 400))}); err != nil && s.Failed() == nil {
			t.Fatal(err)
		}
		if index == enough {
			testkit.Until(t, "the store fails", func() bool { return s.Failed() != nil })
		}
	}
	if !errors.Is(err, syscall.ENOMEM) {
		t.Error(err)
	}
	last := l.LastIndex()
	_ = s.Close() // leaves the compaction, as the end of the process does
	var left string
	testkit.Until(t, "the directory is copied between two removals", func() bool {
		left = t.TempDir()
		err := os.CopyFS(left, os.DirFS(dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		return err == nil
	})
	unmappable.Store(false)
	if r := wal.VerifyLog(openStore(t, left, small()).Log(0), wal.Base{}); r.Err != nil || r.LastTxid != last {
		t.Errorf("%+v, want up to %d", r, last)
	}
	testkit.Until(t, "the store is closed", func() bool {
		again, err := wal.Open(dir, small())
		return err == nil && again.Close() == nil
	})
}

// merges reports whether it runs where Badger compacts.
func merges() bool {
	pcs := make([]uintptr, 32)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	for f, more := frames.Next(); more; f, more = frames.Next() {
		if strings.Contains(f.Function, "subcompact") {
			return true
		}
	}
	return false
}

func mergedTablesWaitForSpace(t *testing.T, lacks func(name string) bool) {
	space := newScarceSpace()
	dir := t.TempDir()
	opts := small().ManyMemtables().WithAllocate(space.allocate)
	s := openStore(t, dir, opts)
	l := s.Log(0)
	for range 3 {
		space.lack(lacks)
		testkit.Until(t, "a compaction's table is refused", func() bool {
			if s.CheckRoom(); !s.Tight() {
				appendMany(t, l, 50, 400)
			}
			return space.refusals() > 0
		})
		// The compaction learns of the refusal a moment later.
		testkit.Until(t, "no entries are taken while a compaction waits for space", func() bool { s.CheckRoom(); return s.Tight() })
		space.lack(nil)
		testkit.Until(t, "there is room", func() bool { s.CheckRoom(); return !s.Tight() })
		if err := s.Failed(); err != nil {
			t.Fatal(err)
		}
	}
	last := l.LastIndex()
	if r := wal.VerifyLog(l, wal.Base{}); r.Err != nil || r.LastTxid != last {
		t.Fatalf("%+v", r)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, opts)
	if r := wal.VerifyLog(s.Log(0), wal.Base{}); r.Err != nil || r.LastTxid != last {
		t.Fatalf("after a restart: %+v", r)
	}
}

// TestCompactionsWaitForSpace checks that a compaction without space is no
// failure, and that the compactors then pause: they would build tables that
// they can't write, again and again.
func TestCompactionsWaitForSpace(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), small())
	now := time.Now()
	for i, message := range []string{
		"While running doCompact: %v\n",
		"[Compactor: 1] LOG Compact FAILED with error: %+v: level 0",
		"cannot start subcompaction: %+v",
	} {
		s.BadgerLog(i < 2, message, fmt.Errorf("while creating table: %w", syscall.ENOSPC))
		if err := s.Failed(); err != nil {
			t.Fatal(err)
		}
		if !s.Tight() {
			t.Errorf("%q: entries are taken", message)
		}
		if !s.CompactorsRest(now) || !s.CompactorsRest(now.Add(9*time.Second)) {
			t.Errorf("%q: the compactors run", message)
		}
		if now = now.Add(11 * time.Second); s.CompactorsRest(now) {
			t.Errorf("%q: the compactors still rest", message)
		}
		s.CheckRoom()
	}
}

// TestOtherErrorsOfBadgerAreFailures checks that only what Badger repeats may
// lack space.
func TestOtherErrorsOfBadgerAreFailures(t *testing.T) {
	t.Parallel()
	for _, err := range []string{
		"writeRequests: no space left on device",
		"error flushing memtable to disk: input/output error, retrying",
	} {
		s, oerr := wal.Open(t.TempDir(), small().Impatient())
		if oerr != nil {
			t.Fatal(oerr)
		}
		s.BadgerLog(false, "%s", err)
		if s.Failed() == nil {
			t.Errorf("%q is no failure", err)
		}
		s.Close()
	}
}
