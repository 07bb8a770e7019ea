package wal_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cantuslog/cantus/wal"
)

// withDisk returns the options of a store for which the disk of dir has size
// bytes, and contains nothing else.
func withDisk(size int64, dir string) wal.Options {
	opts := small()
	opts.SegmentSize, opts.CheckpointBytes = 8<<20, 1<<30
	opts.FreeSpace = func(string) (int64, error) {
		used := int64(0)
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			used += int64(allocated(path))
			return nil // it is gone
		})
		return max(size-used, 0), err
	}
	return opts
}

// killedCopy copies a directory with the space that is allocated ahead in its
// files, as a killed process leaves it.
func killedCopy(t *testing.T, s *wal.Store, to string) {
	t.Helper()
	from := s.Dir()
	copyOpen(t, s, to)
	err := filepath.WalkDir(to, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		was := allocated(from + strings.TrimPrefix(path, to))
		if was <= allocated(path) {
			return nil
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, int64(was))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A store that has filled its disk by itself starts again on it, after a kill
// and after a stop, and once more after that.
func TestAFullDiskHasRoomForTheNextStart(t *testing.T) {
	t.Parallel()
	const bytesEach, disk = 20_000, 48 << 20
	dir := filepath.Join(t.TempDir(), "0")
	data := bytes.Repeat([]byte("x"), bytesEach)
	last := uint64(0)
	for round := range 2 {
		s, err := wal.Open(dir, withDisk(disk, dir))
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		l := s.Log(0)
		if l.LastIndex() != last {
			t.Fatalf("round %d: it ends at %d, %d were acknowledged", round, l.LastIndex(), last)
		}
		for s.CheckRoom(); !s.Tight(); {
			if last*bytesEach > disk {
				t.Fatal("the disk does not fill")
			}
			var some []wal.Entry
			for range 10 {
				last++
				some = append(some, wal.Entry{Index: last, Term: 1, Data: batch(last, 1, string(data))})
			}
			if err := l.Append(some...); err != nil {
				t.Fatal(err)
			}
		}
		if round == 0 && last*bytesEach < disk/16 {
			t.Errorf("it is full after %d bytes", last*bytesEach)
		}
		// The store still takes what was proposed before, whatever the journal
		// has left, and small state after that.
		for range 10 { // 5 MB
			if !s.TakesProposed(500_000) {
				t.Fatalf("round %d: it does not take what was proposed", round)
			}
			last++
			if err := l.Append(wal.Entry{Index: last, Term: 1, Data: batch(last, 1, strings.Repeat("x", 500_000))}); err != nil {
				t.Fatalf("round %d: what was proposed: %v", round, err)
			}
		}
		for range 100 {
			if err := l.SetMeta(wal.Meta{Name: "vote", Value: make([]byte, 100)}); err != nil {
				t.Fatal(err)
			}
		}
		killed := filepath.Join(t.TempDir(), "killed")
		killedCopy(t, s, killed)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			k, err := wal.Open(killed, withDisk(disk, killed))
			if err != nil {
				t.Fatalf("round %d, after a kill: %v", round, err)
			}
			if k.Log(0).LastIndex() != last {
				t.Fatalf("round %d, after a kill: it ends at %d, %d were acknowledged", round, k.Log(0).LastIndex(), last)
			}
			if err := k.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A start that has no space to write the journal to Badger does not use up what
// there is: the next start, with more space, finds it.
func TestStartsWithoutSpaceUseNone(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "0")
	opts := small()
	opts.SegmentSize, opts.CheckpointBytes = 8<<20, 1<<30
	s, err := wal.Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	const count = 600 // 12 MB
	data := strings.Repeat("x", 20_000)
	for i := range uint64(count) {
		if err := s.Log(0).Append(wal.Entry{Index: i + 1, Term: 1, Data: batch(i+1, 1, data)}); err != nil {
			t.Fatal(err)
		}
	}
	killed := filepath.Join(t.TempDir(), "killed")
	killedCopy(t, s, killed)
	floor := s.Floor()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	used := func() (bytes int64) {
		err := filepath.WalkDir(killed, func(path string, _ fs.DirEntry, err error) error {
			bytes += int64(allocated(path))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return bytes
	}
	before := used()
	for range 3 {
		k, err := wal.Open(killed, withDisk(before+floor+8<<20, killed))
		if !errors.Is(err, wal.ErrNoSpace) {
			if err == nil {
				err = k.Close()
			}
			t.Fatalf("with too little space: %v", err)
		}
	}
	if now := used(); now > before+1<<20 {
		t.Errorf("three starts without space have used %d bytes", now-before)
	}
	k, err := wal.Open(killed, withDisk(before+floor+64<<20, killed))
	if err != nil {
		t.Fatal(err)
	}
	if last := k.Log(0).LastIndex(); last != count {
		t.Errorf("it ends at %d, %d were acknowledged", last, count)
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
}
