//go:build powercut && linux

package wal_test

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

var rounds = flag.Int("rounds", 10, "how often the power fails")

// Of linux/fs/ext4/ext4.h: the file system stops where it stands, and what its
// own log has not written goes too.
const (
	ext4Shutdown   = 0x8004587d // EXT4_IOC_SHUTDOWN
	withoutLogSync = 2          // EXT4_GOING_FLAGS_NOLOGFLUSH
)

// TestNothingAcknowledgedIsLostWhenThePowerFails cuts the power of a file
// system of its own under load. It needs root and a loop device:
//
//	go test -tags powercut -run PowerFails ./wal -rounds 30
func TestNothingAcknowledgedIsLostWhenThePowerFails(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	mount := t.TempDir()
	sh(t, "truncate", "-s", "1G", disk)
	sh(t, "mkfs.ext4", "-q", "-F", disk)
	sh(t, "mount", "-o", "loop", disk, mount)
	t.Cleanup(func() { sh(t, "umount", mount) })
	dir := filepath.Join(mount, "data")
	r := chance(t)
	total := uint64(0)
	for round := range *rounds {
		cmd := child("append", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := 1 + r.IntN(4_000)
		if r.IntN(3) == 0 {
			lines = 1 + r.IntN(5) // just founded, or just opened
		}
		// A sync that meets the cut may return nil here, where a real one
		// would not return: only what was acknowledged before counts.
		acked, _ := acks(t, out, lines, func() { cutPower(t, mount) })
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		sh(t, "umount", mount)
		sh(t, "mount", "-o", "loop", disk, mount)
		mustHold(t, dir, acked)
		sum := uint64(0)
		for _, last := range acked {
			sum += last
		}
		t.Logf("round %d: %d acknowledged, %v", round, sum, acked)
		if total = max(total, sum); total > 60_000 || r.IntN(4) == 0 { // the disk is small
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			total = 0
		}
	}
}

func cutPower(t *testing.T, mount string) {
	f, err := os.Open(mount)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(f.Fd()), ext4Shutdown, withoutLogSync)
		_ = f.Close()
	}
	if err != nil {
		t.Fatalf("cut the power: %v", err)
	}
}

func sh(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}
