package wal_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/wal"
)

// founded returns a closed data directory with an entry in it.
func founded(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "a", "b") // made as well
	s, err := wal.Open(dir, small())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Log(0).Append(numbered(1)), s.Close()); err != nil {
		t.Fatal(err)
	}
	return dir
}

// mustRefuse opens dir and expects an error, after which the directory is
// unchanged.
func mustRefuse(t *testing.T, dir string, opts wal.Options, want error) {
	t.Helper()
	before := listing(t, dir)
	s, err := wal.Open(dir, opts)
	if err == nil {
		_ = s.Close()
	}
	if !errors.Is(err, want) {
		t.Fatalf("open: %v, want %v", err, want)
	}
	if after := listing(t, dir); !bytes.Equal(before, after) {
		t.Fatalf("refused, yet the directory changed from\n%q\nto\n%q", before, after)
	}
}

// listing lists the files in a directory, except the lock.
func listing(t *testing.T, dir string) []byte {
	t.Helper()
	var b bytes.Buffer
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || e.Name() == "lock" {
			return err
		}
		content, err := os.ReadFile(path)
		b.WriteString(path + " ")
		b.Write(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestOpenKeepsToTheIdentity(t *testing.T) {
	t.Parallel()
	dir := founded(t)
	id, err := wal.ReadIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	if id.Format != wal.Format || id.Cluster != "c" || id.Node != "n1" || id.Partitions != 2 || len(id.ID) != 32 || id.Founded.IsZero() {
		t.Fatalf("founded as %+v", id)
	}
	for name, other := range map[string]wal.Identity{
		"another cluster":              {Cluster: "d"},
		"another cluster's id":         {ID: "0123"},
		"another node":                 {Node: "n2"},
		"another number of partitions": {Partitions: 3},
	} {
		t.Run(name, func(t *testing.T) {
			mustRefuse(t, dir, wal.Options{Identity: other}, wal.ErrIdentity)
		})
	}
	_, err = wal.Open(dir, wal.Options{Identity: wal.Identity{Node: "n2"}})
	if err == nil || !strings.HasSuffix(err.Error(), " holds node n1, not n2: give what it holds, or another directory") {
		t.Errorf("another node: %v", err)
	}
	for _, same := range []wal.Identity{{}, id} {
		s := openStore(t, dir, wal.Options{Identity: same})
		if !reflect.DeepEqual(s.Identity(), id) {
			t.Fatalf("opened with %+v: %+v, want %+v", same, s.Identity(), id)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNewerFormatIsRefused(t *testing.T) {
	dir := founded(t)
	path := filepath.Join(dir, "cantus.json")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var id map[string]any
	if err := json.NewDecoder(bytes.NewReader(b)).Decode(&id); err != nil {
		t.Fatal(err)
	}
	id["format"], id["new"] = wal.Format+1, "unheard of"
	if b, err = wal.EncodeChecksummed(id); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	mustRefuse(t, dir, small(), wal.ErrFormat)
}

func TestDirectoryOfAnotherJournalIsRefused(t *testing.T) {
	dir, other := founded(t), founded(t)
	if err := os.RemoveAll(filepath.Join(dir, "journal")); err != nil {
		t.Fatal(err)
	}
	copyFiles(t, filepath.Join(other, "journal"), filepath.Join(dir, "journal"))
	if _, err := wal.Open(dir, small()); !errors.Is(err, wal.ErrIdentity) {
		t.Fatalf("open: %v", err)
	}
}

func TestDirectoryInUseIsRefused(t *testing.T) {
	dir := founded(t)
	s := openStore(t, dir, small())
	if _, err := wal.Open(dir, small()); !errors.Is(err, wal.ErrInUse) {
		t.Fatalf("opened twice by one process: %v", err)
	}
	if out, err := child("open", dir).Output(); err == nil || !bytes.Contains(out, []byte(wal.ErrInUse.Error())) {
		t.Fatalf("opened by another process: %s, %v", out, err)
	}
	if err := wal.Verify(dir, func(wal.PartitionReport) {}); !errors.Is(err, wal.ErrInUse) {
		t.Fatalf("verified while open: %v", err)
	}
	if err := s.Log(0).Append(numbered(2)); err != nil {
		t.Fatalf("the one that had it first: %v", err)
	}
}

func TestForeignFilesAreLeftAlone(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "thesis.txt")
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	mustRefuse(t, dir, small(), wal.ErrDamaged)
	if _, err := wal.Open(path, small()); err == nil {
		t.Fatal("opened a file")
	}
	if b, err := os.ReadFile(path); string(b) != "mine" {
		t.Fatalf("the file holds %q, %v", b, err)
	}
	if err := wal.Verify(dir, func(wal.PartitionReport) {}); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("verify: %v", err)
	}
}

// TestFoundingMayBeInterrupted creates the directory that a crash would leave
// between any two steps of its founding.
func TestFoundingMayBeInterrupted(t *testing.T) {
	t.Parallel()
	for n, left := range [][]string{
		{}, {"founding"}, {"founding", "store"}, {"founding", "store", "journal"},
		{"founding", "store", "journal", "checkpoint.json"},
		{"founding", "store", "journal", "checkpoint.json", "cantus.json.tmp"},
		{"founding", "store", "journal", "checkpoint.json", "cantus.json"},
	} {
		whole, dir := founded(t), t.TempDir()
		for _, name := range left {
			switch name {
			case "store", "journal":
				copyFiles(t, filepath.Join(whole, name), filepath.Join(dir, name))
			case "checkpoint.json", "cantus.json":
				if err := copyFile(filepath.Join(whole, name), filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			default:
				if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		s := openStore(t, dir, small())
		l := s.Log(0)
		if want := uint64(n / 6); l.LastIndex() != want {
			t.Fatalf("left %v: the log ends at %d, want %d", left, l.LastIndex(), want)
		}
		if err := errors.Join(l.Append(numbered(l.LastIndex()+1)), s.Close()); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(dir, "founding")); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("left %v: the mark is still there: %v", left, err)
		}
	}
}

func TestMissingPartsAreMissed(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"cantus.json", "checkpoint.json", "journal", "store", "store/MANIFEST", "journal/checkpoint"} {
		dir := founded(t)
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		t.Run(name, func(t *testing.T) { mustRefuse(t, dir, small(), wal.ErrDamaged) })
	}
}
