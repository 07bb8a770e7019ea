package backup

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gocloud.dev/blob/memblob"
)

// TestBuckets checks that every kind of bucket does what Bucket says.
func TestBuckets(t *testing.T) {
	d, err := openDir(filepath.Join(t.TempDir(), "new", "backup"))
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]Bucket{"directory": d, "object store": &cloud{bucket: memblob.OpenBucket(nil)}} {
		t.Run(name, func(t *testing.T) { CheckBucket(t, b) })
	}
}

// CheckBucket checks an empty bucket against the contract of Bucket.
func CheckBucket(t *testing.T, b Bucket) {
	ctx := t.Context()
	if all, err := b.List(ctx, "manifest/"); err != nil || len(all) != 0 {
		t.Errorf("of nothing: %v, %v", all, err)
	}
	if _, err := b.Get(ctx, "manifest/1", 10); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	if err := b.Delete(ctx, "manifest/1"); err != nil {
		t.Errorf("delete what is missing: %v", err)
	}
	put := func(name, data string, mustBeNew bool) error { return b.Put(ctx, name, []byte(data), mustBeNew) }
	if err := errors.Join(put("manifest/1", "one", true), put("p0/b", "b", false), put("p0/a", "", false), put("p0/b", "bb", false)); err != nil {
		t.Fatal(err)
	}
	if err := put("manifest/1", "two", true); !errors.Is(err, fs.ErrExist) {
		t.Errorf("not new: %v", err)
	}
	for name, want := range map[string]string{"manifest/1": "one", "p0/a": "", "p0/b": "bb"} {
		if got, err := b.Get(ctx, name, 3); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := b.Get(ctx, "p0/b", 1); !errors.Is(err, errTooLarge) {
		t.Errorf("too large: %v", err)
	}
	for prefix, want := range map[string][]string{"": {"manifest/1", "p0/a", "p0/b"}, "p0/": {"p0/a", "p0/b"}, "p1/": nil} {
		all, err := b.List(ctx, prefix)
		var names []string
		for _, o := range all {
			names = append(names, o.Name)
			if o.Name == "p0/b" && (o.Size != 2 || time.Since(o.Written).Abs() > time.Hour) {
				t.Errorf("%+v", o)
			}
		}
		if err != nil || !slices.Equal(names, want) {
			t.Errorf("%q: %v, %v", prefix, names, err)
		}
	}
	if err := b.Delete(ctx, "p0/a"); err != nil {
		t.Error(err)
	}
	if _, err := b.Get(ctx, "p0/a", 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("deleted: %v", err)
	}
	oneWins(t, b)
}

// oneWins checks that of several that put one new object at once, one succeeds.
func oneWins(t *testing.T, b Bucket) {
	t.Helper()
	for round := range byte(10) {
		name := "manifest/new" + string('a'+round)
		var won atomic.Int32
		var all sync.WaitGroup
		for i := range byte(4) {
			all.Go(func() {
				switch err := b.Put(context.Background(), name, bytes.Repeat([]byte{i}, 10_000), true); {
				case err == nil:
					won.Add(1)
				case !errors.Is(err, fs.ErrExist):
					t.Error(err)
				}
			})
		}
		all.Wait()
		if got, err := b.Get(context.Background(), name, 10_000); won.Load() != 1 || err != nil || len(got) != 10_000 || bytes.Count(got, got[:1]) != len(got) {
			t.Errorf("%d have won, %d bytes, %v", won.Load(), len(got), err)
		}
	}
}

// What a killed process has left in a directory is no object.
func TestALeftFileIsNoObject(t *testing.T) {
	root := t.TempDir()
	d, err := openDir(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Put(t.Context(), "p0/a", []byte("a"), false); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "p0", tempPrefix+"1"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if all, err := d.List(t.Context(), ""); err != nil || len(all) != 1 {
		t.Errorf("%v, %v", all, err)
	}
}

// A directory is listed through symbolic links: it may be one, and a folder may
// have been moved to another disk. Other folders are none of its business.
func TestAListedDirectory(t *testing.T) {
	root := t.TempDir()
	there, place := filepath.Join(root, "there"), filepath.Join(root, "place")
	if err := errors.Join(os.Mkdir(there, 0o700), os.Symlink(there, place)); err != nil {
		t.Fatal(err)
	}
	d, err := openDir(place)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"manifest/1", "p0/a", "p1/b"}
	for _, name := range append([]string{"lost+found/c"}, want...) {
		if err := d.Put(t.Context(), name, []byte(name), true); err != nil {
			t.Fatal(err)
		}
	}
	for _, folder := range []string{"manifest", "p1"} {
		moved := filepath.Join(root, folder)
		if err := errors.Join(os.Rename(filepath.Join(there, folder), moved), os.Symlink(moved, filepath.Join(there, folder))); err != nil {
			t.Fatal(err)
		}
	}
	for prefix, want := range map[string][]string{"": want, "manifest/": want[:1], "p1/": want[2:]} {
		all, err := d.List(t.Context(), prefix)
		var names []string
		for _, o := range all {
			if names = append(names, o.Name); o.Size != int64(len(o.Name)) {
				t.Errorf("%+v", o)
			}
		}
		if err != nil || !slices.Equal(names, want) {
			t.Errorf("%q: %q, %v", prefix, names, err)
		}
	}
}

// What a killed process has left is deleted after a day, and not before: it may
// be what another process is writing.
func TestALeftFileIsDeleted(t *testing.T) {
	root := t.TempDir()
	d, err := openDir(root)
	if err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(root, "p0", tempPrefix+"1")
	if err := errors.Join(d.Put(t.Context(), "p0/a", []byte("a"), false), os.WriteFile(left, []byte("half"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, hours := range []int{23, 25} {
		r := New(d, Options{Now: func() time.Time { return time.Now().Add(time.Duration(hours) * time.Hour) }})
		if err := r.prune(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(left); errors.Is(err, fs.ErrNotExist) != (hours > 24) {
			t.Errorf("after %d hours: %v", hours, err)
		}
	}
	if _, err := d.Get(t.Context(), "p0/a", 1); err != nil {
		t.Error(err)
	}
}
