package wal_test

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/cantuslog/cantus/wal"
)

// TestWriteOutEnd: of a log that is allocated in advance and was read to its
// end, what was not written is not written out, nor what is being filled.
func TestWriteOutEnd(t *testing.T) {
	const MiB = 1 << 20
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, make([]byte, 5*MiB), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(16 * MiB); err != nil {
		t.Fatal(err)
	}
	if err := wal.Allocate(path, 16*MiB); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, io.NewSectionReader(f, 0, 16*MiB)); err != nil {
		t.Fatal(err)
	}
	if end := wal.WriteOutEnd(f, 5*MiB); end != 4*MiB {
		t.Errorf("written out up to %d", end)
	}
	if end := wal.WriteOutEnd(f, MiB); end != 0 {
		t.Errorf("of 1 MiB, written out up to %d", end)
	}
}

// TestMostWritten: the store knows how much it wrote to Badger's newest value
// log, and knows nothing of other files.
func TestMostWritten(t *testing.T) {
	s := openStore(t, t.TempDir(), wal.Options{})
	const size = 1 << 20
	for i := range uint64(3) {
		if err := s.Log(1).Append(wal.Entry{Index: i + 1, Term: 1, Data: make([]byte, size)}); err != nil {
			t.Fatal(err)
		}
	}
	if !s.WaitApplied() {
		t.Fatal(s.Failed())
	}
	if n := s.MostWritten("000001.vlog"); n < 3*size || n > 3*size+size/8 {
		t.Errorf("at most %d bytes were written of 3 entries of %d", n, size)
	}
	if n := s.MostWritten("000000.vlog"); n < 1<<40 {
		t.Errorf("at most %d bytes were written to a file that is not there", n)
	}
}
