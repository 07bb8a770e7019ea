//go:build linux

// Package powercut creates file systems for tests that simulate a power
// failure. It needs root, a loop device, ext4 and util-linux.
package powercut

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// From linux/fs/ext4/ext4.h: the file system shuts down at once, without
// flushing its journal.
const (
	ext4Shutdown   = 0x8004587d // EXT4_IOC_SHUTDOWN
	withoutLogSync = 2          // EXT4_GOING_FLAGS_NOLOGFLUSH
)

// Disk is a mounted file system. A method that fails ends the test.
type Disk struct {
	tb    testing.TB
	image string
	// Mount is the mount point.
	Mount string
}

// New creates a disk of a size, such as "1G". It is removed after the test. No
// blocks are reserved for root: when nothing is free, root has no room either.
func New(tb testing.TB, size string) *Disk {
	tb.Helper()
	d := &Disk{tb: tb, image: filepath.Join(tb.TempDir(), "image"), Mount: tb.TempDir()}
	d.run("truncate", "-s", size, d.image)
	d.run("mkfs.ext4", "-q", "-F", "-m", "0", d.image)
	d.run("mount", "-o", "loop", d.image, d.Mount)
	tb.Cleanup(func() { d.run("umount", d.Mount) })
	return d
}

// Freeze blocks writes and syncs until Thaw.
func (d *Disk) Freeze() {
	d.tb.Helper()
	d.run("fsfreeze", "-f", d.Mount)
}

// Thaw ends Freeze.
func (d *Disk) Thaw() {
	d.tb.Helper()
	d.run("fsfreeze", "-u", d.Mount)
}

// Abort makes the file system read-only, as ext4 does after an error of its
// device. What was not synced is lost.
func (d *Disk) Abort() {
	d.tb.Helper()
	d.run("mount", "-o", "remount,abort", d.Mount)
}

// Cut simulates a power failure. A sync at that moment may return success
// without effect.
func (d *Disk) Cut() {
	d.tb.Helper()
	Cut(d.tb, d.Mount)
}

// Cut is [Disk.Cut] for any ext4 file system, by its mount point.
func Cut(tb testing.TB, mount string) {
	tb.Helper()
	f, err := os.Open(mount)
	if err == nil {
		err = errors.Join(unix.IoctlSetPointerInt(int(f.Fd()), ext4Shutdown, withoutLogSync), f.Close())
	}
	if err != nil {
		tb.Fatalf("cut the power: %v", err)
	}
}

// Return mounts the disk again, with the data that survived. No process may be
// using the disk.
func (d *Disk) Return() {
	d.tb.Helper()
	d.run("umount", d.Mount)
	d.run("mount", "-o", "loop", d.image, d.Mount)
}

func (d *Disk) run(name string, args ...string) {
	d.tb.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		d.tb.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}
