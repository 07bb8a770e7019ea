//go:build (fulldisk || alertslive) && linux

package e2e_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cantuslog/cantus/internal/powercut"
)

// disk is a file system that not only the node fills.
type disk struct {
	tb   testing.TB
	path string
}

// newDisk mounts one, in memory, perhaps with few files, or on a loop device;
// it needs root.
func newDisk(tb testing.TB, kind, size string) disk {
	tb.Helper()
	if kind == "ext4" {
		return disk{tb, powercut.New(tb, size).Mount}
	}
	d := disk{tb, tb.TempDir()}
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size="+size, "cantus-fulldisk", d.path).CombinedOutput(); err != nil {
		tb.Fatalf("mount: %v\n%s", err, out)
	}
	tb.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", d.path).CombinedOutput(); err != nil {
			tb.Errorf("umount: %v\n%s", err, out)
		}
	})
	return d
}

func (d disk) free() int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(d.path, &st); err != nil {
		d.tb.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// fill takes all of the space but leave bytes.
func (d disk) fill(leave int64) {
	f, err := os.OpenFile(filepath.Join(d.path, "somebody-elses"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		d.tb.Fatal(err)
	}
	defer f.Close()
	for d.free() > leave {
		info, err := f.Stat()
		if err != nil {
			d.tb.Fatal(err)
		}
		for n := d.free() - leave; n > 0; n /= 2 { // the node takes some meanwhile
			if err = unix.Fallocate(int(f.Fd()), 0, info.Size(), n); !errors.Is(err, unix.ENOSPC) {
				break
			}
		}
		if err != nil && !errors.Is(err, unix.ENOSPC) {
			d.tb.Fatal(err)
		}
	}
}

func (d disk) empty() {
	if err := os.Remove(filepath.Join(d.path, "somebody-elses")); err != nil {
		d.tb.Fatal(err)
	}
}
