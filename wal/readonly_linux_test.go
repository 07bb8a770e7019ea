package wal_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cantuslog/cantus/wal"
)

// asNobody runs fn without root's right to write everywhere, if the test has
// it.
func asNobody(t *testing.T, fn func()) {
	t.Helper()
	if os.Getuid() == 0 {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := unix.Setfsuid(65534); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := unix.Setfsuid(0); err != nil {
				t.Fatal(err)
			}
		}()
	}
	fn()
}

func TestReadOnlyDirectoryIsRefused(t *testing.T) {
	old, empty := founded(t), t.TempDir()
	for _, dir := range []string{old, empty} {
		for d := dir; d != os.TempDir(); d = filepath.Dir(d) {
			if err := os.Chmod(d, 0o555); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.Chmod(d, 0o755) }) // so that it can be removed
		}
	}
	if err := os.Chmod(filepath.Join(old, "lock"), 0o444); err != nil {
		t.Fatal(err)
	}
	asNobody(t, func() {
		for _, dir := range []string{old, empty, filepath.Join(empty, "new")} {
			if _, err := wal.Open(dir, small()); !errors.Is(err, wal.ErrReadOnly) {
				t.Errorf("open %s: %v", dir, err)
			}
		}
	})
}
