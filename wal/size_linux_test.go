package wal_test

import (
	"io/fs"
	"path/filepath"
	"testing"

	"github.com/cantuslog/cantus/wal"
)

// sizes returns the blocks that the files below a directory take, and their
// lengths.
func sizes(t *testing.T, dir string) (blocks, lengths int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			blocks += allocated(path)
			lengths += int(info.Size())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return blocks, lengths
}

// An empty log takes little space, open and closed, and again after some
// starts.
func TestAnEmptyDirectoryIsSmall(t *testing.T) {
	t.Parallel()
	const most = 8 << 20
	dir := t.TempDir()
	for start := range 3 {
		s, err := wal.Open(dir, wal.Options{Identity: small().Identity})
		if err != nil {
			t.Fatal(err)
		}
		if blocks, _ := sizes(t, dir); blocks > most {
			t.Errorf("start %d: %d bytes of blocks while it is open", start, blocks)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if blocks, lengths := sizes(t, dir); blocks > most || lengths > most {
			t.Errorf("start %d: %d bytes of blocks, %d of length", start, blocks, lengths)
		}
	}
}
