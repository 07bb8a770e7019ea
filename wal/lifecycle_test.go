package wal_test

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/wal"
	"github.com/cantuslog/cantus/wal/journal/journaltest"
)

func openFiles(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0 // not on this system
	}
	return len(names)
}

// mustNotLeak runs fn, and checks that no goroutines and open files are left.
func mustNotLeak(t *testing.T, fn func()) {
	t.Helper()
	running, files := goleak.IgnoreCurrent(), openFiles(t)
	fn()
	goleak.VerifyNone(t, running)
	if now := openFiles(t); now > files {
		t.Errorf("%d files are open, %d were", now, files)
	}
}

func TestNothingIsLeftAfterClose(t *testing.T) {
	mustNotLeak(t, func() {
		s, err := wal.Open(t.TempDir(), small())
		if err != nil {
			t.Fatal(err)
		}
		var acked tally
		if err := errors.Join(acked.run(s.Log(0), 30), s.Close(), s.Close()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestNothingIsLeftAfterAFailure(t *testing.T) {
	fs := journaltest.New(1)
	mustNotLeak(t, func() {
		s, err := wal.Open(filepath.Join(t.TempDir(), "data"), faulty(fs))
		if err != nil {
			t.Fatal(err)
		}
		fs.Fail(journaltest.Fault{At: fs.Ops() + 3})
		var acked tally
		_ = acked.run(s.Log(0), 30)
		<-s.Failure()
		if err := s.Close(); !errors.Is(err, wal.ErrFailed) {
			t.Fatalf("close: %v", err)
		}
	})
}

func TestNothingIsLeftAfterARefusedOpen(t *testing.T) {
	for name, spoil := range map[string]func(dir string) (wal.Options, error){
		"another node": func(string) (wal.Options, error) {
			return wal.Options{Identity: wal.Identity{Node: "n2"}}, nil
		},
		"no checkpoint": func(dir string) (wal.Options, error) {
			return small(), os.Remove(filepath.Join(dir, "checkpoint.json"))
		},
		"no segment": func(dir string) (wal.Options, error) {
			segments, _ := filepath.Glob(filepath.Join(dir, "journal", "*.seg"))
			return small(), os.Remove(segments[0])
		},
		"a table cut short": func(dir string) (wal.Options, error) {
			tables, _ := filepath.Glob(filepath.Join(dir, "store", "*.sst"))
			return small(), os.Truncate(tables[0], 20)
		},
		"a key registry cut short, and a table that says that it is encrypted": func(dir string) (wal.Options, error) {
			logs, _ := filepath.Glob(filepath.Join(dir, "store", "*.vlog"))
			return small(), errors.Join(os.Truncate(filepath.Join(dir, "store", "KEYREGISTRY"), 5),
				flip("", 7, 3).do(logs[0]))
		},
		"a flipped byte in the manifest": func(dir string) (wal.Options, error) {
			return small(), flip("", 20, 3).do(filepath.Join(dir, "store", "MANIFEST"))
		},
		"no table": func(dir string) (wal.Options, error) {
			tables, _ := filepath.Glob(filepath.Join(dir, "store", "*.sst"))
			return small(), os.Remove(tables[0])
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := founded(t)
			opts, err := spoil(dir)
			if err != nil {
				t.Fatal(err)
			}
			mustNotLeak(t, func() {
				if _, err := wal.Open(dir, opts); err == nil {
					t.Fatal("opened")
				}
			})
		})
	}
}

// TestCloseBesideWriters closes a store while everything runs: what was
// acknowledged is there afterwards, and all other writes returned ErrClosed.
func TestCloseBesideWriters(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for range testkit.Sized(2, 5, 5) {
		s, err := wal.Open(dir, small())
		if err != nil {
			t.Fatal(err)
		}
		var others sync.WaitGroup
		tallies := make([]tally, 2)
		busy := make(chan struct{}, len(tallies))
		for i := range tallies {
			l := s.Log(uint32(i))
			tallies[i].appended = l.LastIndex()
			others.Go(func() {
				for writes := 0; ; {
					err := tallies[i].run(l, 1)
					if writes++; writes == 15 {
						busy <- struct{}{}
					}
					if err == nil && tallies[i].appended%20 == 0 && l.LastIndex() > 10 {
						err = l.TrimHead(l.LastIndex() - 10)
					}
					if errors.Is(err, wal.ErrClosed) {
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
			others.Go(func() {
				for {
					for _, err := range l.Entries(l.FirstIndex(), l.LastIndex()) {
						if errors.Is(err, wal.ErrClosed) {
							return
						}
						if err != nil && !errors.Is(err, wal.ErrNotFound) {
							t.Error(err)
							return
						}
					}
					if err := l.SetMeta(wal.Meta{Name: "read"}); errors.Is(err, wal.ErrClosed) {
						return
					}
				}
			})
		}
		for range tallies {
			<-busy
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		others.Wait()
		s, err = wal.Open(dir, small())
		if err != nil {
			t.Fatal(err)
		}
		for i := range tallies {
			if last := s.Log(uint32(i)).LastIndex(); last < tallies[i].appended {
				t.Fatalf("log %d ends at %d, %d was acknowledged", i, last, tallies[i].appended)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
