//go:build powercut && linux

package e2e_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Of linux/fs/ext4/ext4.h: the file system stops where it stands, and what its
// own log has not written goes too.
const (
	ext4Shutdown   = 0x8004587d // EXT4_IOC_SHUTDOWN
	withoutLogSync = 2          // EXT4_GOING_FLAGS_NOLOGFLUSH
)

// disk is a file system of its own, whose power can be cut.
type disk struct {
	t            *testing.T
	image, mount string
}

func newDisk(t *testing.T) *disk {
	d := &disk{t: t, image: filepath.Join(t.TempDir(), "image"), mount: t.TempDir()}
	d.sh("truncate", "-s", "2G", d.image)
	d.sh("mkfs.ext4", "-q", "-F", d.image)
	d.sh("mount", "-o", "loop", d.image, d.mount)
	t.Cleanup(func() { d.sh("umount", d.mount) })
	return d
}

func (d *disk) sh(name string, args ...string) {
	d.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		d.t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

func (d *disk) cut() {
	d.t.Helper()
	f, err := os.Open(d.mount)
	if err == nil {
		err = errors.Join(unix.IoctlSetPointerInt(int(f.Fd()), ext4Shutdown, withoutLogSync), f.Close())
	}
	if err != nil {
		d.t.Fatalf("cut the power: %v", err)
	}
}

func (d *disk) again() {
	d.t.Helper()
	d.sh("umount", d.mount)
	d.sh("mount", "-o", "loop", d.image, d.mount)
}

// TestClusterLeadersWhosePowerFails cuts a leader's power under load. Just before,
// its disk takes nothing for a moment, and one of its followers hears nothing: if
// anything is acknowledged then, the other follower alone has it. That one is
// killed when the power fails, so the leader, with what its disk has kept, and the
// follower that heard nothing go on by themselves. It needs root and loop devices.
func TestClusterLeadersWhosePowerFails(t *testing.T) {
	disks := map[string]*disk{}
	c := &cluster{
		tb: t, common: []string{"--partitions", "2", "--msg-id-window", "30m"}, routes: map[string]string{},
		disks: func(name string) string {
			disks[name] = newDisk(t)
			return filepath.Join(disks[name].mount, "data")
		},
	}
	c.found(3)
	c.startAll()
	c.settle()
	l := startLoad(c, 2)
	watcher := c.dial(c.nodes[0].name)
	rounds := 2
	if *long {
		rounds = 15
	}
	for range rounds {
		leader, err := c.leader(t.Context(), watcher, 0)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.N(200)) * time.Millisecond) // meet the load wherever it is
		others := c.others(leader)
		rand.Shuffle(len(others), func(i, k int) { others[i], others[k] = others[k], others[i] })
		killed, deaf := others[0], others[1]
		d := disks[leader.name]
		if err := deaf.pause(); err != nil {
			t.Fatal(err)
		}
		d.sh("fsfreeze", "-f", d.mount)
		time.Sleep(200 * time.Millisecond) // long for a sync, short for an election
		// What waits for the disk gets no further than it is.
		if err := leader.pause(); err != nil {
			t.Fatal(err)
		}
		d.sh("fsfreeze", "-u", d.mount)
		d.cut()
		leader.kill()
		killed.kill()
		d.again()
		if err := errors.Join(deaf.resume(), leader.launch()); err != nil {
			t.Fatal(err)
		}
		if err := c.until(t.Context(), "led by two", func(ctx context.Context) string {
			info, err := watcher.info(ctx, 0)
			switch {
			case err != nil:
				return err.Error()
			case info.Leader == killed.name:
				return "led by " + killed.name
			}
			return ""
		}); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(killed.start(), leader.awaitReady(), c.awaitReady(t.Context(), watcher)); err != nil {
			t.Fatal(err)
		}
	}
	l.stop(t)
	l.check(t)
}
