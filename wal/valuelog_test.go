package wal_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/wal"
)

// If Badger is killed between creating a file and setting its size, the file is
// empty.
func TestEmptyBadgerFilesAreNoDamage(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, small())
	if err := s.Log(0).Append(wal.Entry{Index: 1, Term: 1, Data: batch(1, 3, "p")}); err != nil {
		t.Fatal(err)
	}
	crashed := t.TempDir()
	copyOpen(t, s, crashed)
	for _, name := range []string{"000099.vlog", "00099.mem"} {
		if err := os.WriteFile(filepath.Join(crashed, "store", name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	again := openStore(t, crashed, small())
	checkWhole(t, again, 3)
}

// The same, if the last checkpoint described an earlier file of that name, and
// if it was an old value log that Badger was about to remove.
func TestEmptyBadgerFilesOfOldNamesAreNoDamage(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, small())
	for i := uint64(1); i <= 3; i++ { // each time a value log of a higher number
		err := s.Log(0).Append(wal.Entry{Index: i, Term: 1, Data: batch(i, 1, "p")})
		if err := errors.Join(err, s.Close()); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, dir, small())
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"000001.vlog", "00001.mem"} {
		if err := os.WriteFile(filepath.Join(dir, "store", name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	checkWhole(t, openStore(t, dir, small()), 3)
}

// Badger would truncate the file at the flipped byte, together with the intact
// entries after it.
func TestFlippedByteInValueLogIsNotCutAway(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, small())
	for i := uint64(1); i <= 50; i++ {
		if err := s.Log(0).Append(wal.Entry{Index: i, Term: 1, Data: batch(i, 1, string(bytes.Repeat([]byte("x"), 2000)))}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	logs, err := filepath.Glob(filepath.Join(dir, "store", "*.vlog"))
	if err != nil || len(logs) == 0 {
		t.Fatal(logs, err)
	}
	path := logs[len(logs)-1]
	content, err := os.ReadFile(path)
	if err != nil || len(content) < 100_000 {
		t.Fatalf("%s has %d bytes: %v", path, len(content), err)
	}
	content[1000] ^= 1
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := wal.Open(dir, small()); !errors.Is(err, wal.ErrDamaged) {
		if err == nil {
			_ = s.Close()
		}
		t.Errorf("open: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, content) {
		t.Errorf("the file has %d bytes and had %d: %v", len(after), len(content), err)
	}
}

// Badger does not read its older value logs when it opens, and trusts the
// lengths that it reads there.
func TestFlippedHeaderInOldValueLogIsSaid(t *testing.T) {
	t.Parallel()
	whole := t.TempDir()
	for range 2 { // the second begins another value log
		s := openStore(t, whole, small())
		l := s.Log(0)
		index := l.LastIndex() + 1
		err := l.Append(wal.Entry{Index: index, Data: batch(index, 1, string(bytes.Repeat([]byte("x"), 2000)))})
		if err := errors.Join(err, s.Close()); err != nil {
			t.Fatal(err)
		}

	}
	for bit := 0; bit < 6*8; bit += testkit.Sized(7, 1, 1) {
		dir := t.TempDir()
		for _, part := range []string{".", "store", "journal"} {
			copyFiles(t, filepath.Join(whole, part), filepath.Join(dir, part))
		}
		if err := flip("", 20+int64(bit/8), bit%8).do(filepath.Join(dir, "store", "000001.vlog")); err != nil {
			t.Fatal(err)
		}
		s, err := wal.Open(dir, small())
		if err == nil {
			_, err = s.Log(0).Entry(1)
			_ = s.Close() // and it comes back
		}
		if !errors.Is(err, wal.ErrDamaged) {
			t.Fatalf("bit %d flipped: %v", bit, err)
		}
	}
}

// FuzzBadgerLog reads arbitrary bytes as one of Badger's logs: the complete
// entries end within the file, no complete one follows, and the result does not
// depend on what comes after it.
func FuzzBadgerLog(f *testing.F) {
	header := make([]byte, 20)
	entry := []byte{0, 0, 1, 2, 0, 'k', 'v', 'w'} // meta, user meta, lengths, expiry, key, value
	entry = binary.BigEndian.AppendUint32(entry, crc32.Checksum(entry, crc32.MakeTable(crc32.Castagnoli)))
	f.Add(slices.Concat(header, entry, entry))
	f.Add(slices.Concat(header, entry, entry[:9]))
	f.Add(slices.Concat(header, entry, []byte{0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f, 0xff, 0xff, 0xff, 0xff, 0x03, 0}))
	f.Add(slices.Concat(header, make([]byte, 64)))
	f.Add(header[:7])
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "000001.vlog")
		end := func(b []byte) int64 {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			end, err := wal.WalkBadgerLog(path)
			if err != nil {
				t.Fatal(err)
			}
			return end
		}
		at := end(b)
		if at < int64(len(header)) || at > int64(max(len(b), len(header))) {
			t.Fatalf("entries end at %d of %d bytes", at, len(b))
		}
		if len(b) < len(header) {
			return
		}
		if again := end(b[:at]); again != at {
			t.Errorf("entries end at %d, and cut there at %d", at, again)
		}
		if more := end(slices.Concat(b[:at], entry)); more != at+int64(len(entry)) {
			t.Errorf("with one entry more, entries that ended at %d end at %d", at, more)
		}
	})
}
