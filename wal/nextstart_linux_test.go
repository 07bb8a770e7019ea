package wal_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"path/filepath"
	"testing"

	"github.com/cantuslog/cantus/wal"
)

// onDisk has a store in dir find what a disk of so many bytes has left beside the
// directory.
func onDisk(size int64, dir string) wal.Options {
	opts := small()
	opts.SegmentSize, opts.CheckpointBytes = 16<<20, 1<<30
	opts.FreeSpace = func(string) (int64, error) {
		used := int64(0)
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			used += int64(allocated(path))
			return nil //nolint:nilerr // it is gone
		})
		return max(size-used, 0), err
	}
	return opts
}

// A store that has filled its disk by itself starts again on it, after a kill and
// after a stop, and once more after that.
func TestAFullDiskHasRoomForTheNextStart(t *testing.T) {
	t.Parallel()
	for _, bytesEach := range []int{200, 20_000} {
		t.Run(fmt.Sprint(bytesEach), func(t *testing.T) {
			t.Parallel()
			const disk = 48 << 20
			dir := filepath.Join(t.TempDir(), "0")
			data := bytes.Repeat([]byte("x"), bytesEach)
			last := uint64(0)
			for round := range 3 {
				s, err := wal.Open(dir, onDisk(disk, dir))
				if err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
				l := s.Log(0)
				if l.LastIndex() != last {
					t.Fatalf("round %d: it ends at %d, %d were acknowledged", round, l.LastIndex(), last)
				}
				for s.CheckRoom(); !s.Tight(); {
					var some []wal.Entry
					for range max(1, 20_000/bytesEach) {
						last++
						some = append(some, wal.Entry{Index: last, Term: 1, Data: batch(last, 1, string(data))})
					}
					if err := l.Append(some...); err != nil {
						t.Fatal(err)
					}
				}
				if round == 0 && last*uint64(bytesEach) < disk/8 {
					t.Errorf("it is full after %d bytes", last*uint64(bytesEach))
				}
				s.WaitApplied()
				killed := filepath.Join(t.TempDir(), "killed")
				s.WithoutCheckpoint(func() { copyDir(t, dir, killed) })
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				for range 2 {
					k, err := wal.Open(killed, onDisk(disk, killed))
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
		})
	}
}
