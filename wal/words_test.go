package wal_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/wal"
	"github.com/cantuslog/cantus/wal/journal/journaltest"
)

// An empty key registry that is damaged is created again.
func TestADamagedKeyRegistryStopsNobody(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{0, 5, 20} {
		dir := founded(t)
		if err := os.Truncate(filepath.Join(dir, "store", "KEYREGISTRY"), size); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			s, err := wal.Open(dir, small())
			if err != nil {
				t.Fatalf("cut to %d bytes: %v", size, err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// The error of opening a damaged file names it, and contains no text of a
// panic.
func TestDamageIsSaidOfTheFileThatHasIt(t *testing.T) {
	t.Parallel()
	testkit.NotShort(t, "hundreds of damaged copies of a directory are opened")
	for _, pattern := range []string{"store/*.sst", "store/MANIFEST", "journal/checkpoint", "checkpoint.json", "cantus.json"} {
		for _, at := range []int64{0, 9, 30, -1, -5, -13} {
			dir := founded(t)
			files, err := filepath.Glob(filepath.Join(dir, pattern))
			if err != nil || len(files) == 0 {
				t.Fatal(err, pattern)
			}
			info, err := os.Stat(files[0])
			if err != nil {
				t.Fatal(err)
			}
			if at < 0 {
				at += info.Size()
			}
			if err := flip("", min(at, info.Size()-1), 4).do(files[0]); err != nil {
				t.Fatal(err)
			}
			s, err := wal.Open(dir, small())
			if err == nil {
				_ = s.Close()
				continue // not every byte matters
			}
			if errors.Is(err, wal.ErrFormat) {
				continue
			}
			if text := err.Error(); !strings.Contains(text, files[0]) || strings.Contains(text, "nil pointer") || strings.Contains(text, "runtime error") {
				t.Errorf("%s, byte %d: %v", pattern, at, err)
			}
		}
	}
}

// The error for an entry that can't be read names its value log.
func TestAnUnreadableEntryNamesItsValueLog(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	opts := small()
	opts.TailBytes = 1
	s, err := wal.Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	big := wal.Entry{Index: 1, Term: 1, Data: batch(1, 1, strings.Repeat("x", 5000))}
	if err := errors.Join(s.Log(0).Append(big), s.Log(0).Append(wal.Entry{Index: 2, Term: 1, Data: batch(2, 1, strings.Repeat("y", 5000))}),
		s.Log(0).Append(wal.Entry{Index: 3, Term: 1, Data: batch(3, 1, strings.Repeat("z", 5000))}), s.Close()); err != nil {
		t.Fatal(err)
	}
	logs, _ := filepath.Glob(filepath.Join(dir, "store", "*.vlog"))
	file := logs[0]
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	at := strings.Index(string(b), "yyyy") // neither end, which opening reads
	s, err = wal.Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := flip("", int64(at), 1).do(file); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Log(0).Entry(2); !errors.Is(err, wal.ErrDamaged) || !strings.Contains(err.Error(), file) {
		t.Errorf("a damaged entry: %v", err)
	}
}

// Errors of the operating system keep their meaning.
func TestWhatTheSystemRefusesIsNotCalledDamage(t *testing.T) {
	t.Parallel()
	dir := founded(t)
	opts := small()
	opts.FreeSpace = func(string) (int64, error) { return 1 << 20, nil }
	_, err := wal.Open(dir, opts)
	if !errors.Is(err, wal.ErrNoSpace) || errors.Is(err, wal.ErrDamaged) || !strings.Contains(err.Error(), "1.0 MiB are free") {
		t.Errorf("on a full disk: %v", err)
	}
	openStore(t, dir, small())

	// There is space, but no inode left: a file can't be created.
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT} {
		fs := journaltest.New(1)
		fs.Hook(func(c journaltest.Call) error {
			if c.Kind == journaltest.Create {
				return &os.PathError{Op: "open", Path: "it", Err: errno}
			}
			return nil
		})
		_, err := wal.Open(filepath.Join(t.TempDir(), "data"), faulty(fs))
		if !errors.Is(err, wal.ErrNoSpace) || strings.Contains(err.Error(), "damaged") || !strings.Contains(err.Error(), map[syscall.Errno]string{
			syscall.ENOSPC: "or some files", syscall.EDQUOT: "quota"}[errno]) {
			t.Errorf("when no file can be created: %v", err)
		}
	}
}
