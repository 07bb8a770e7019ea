//go:build powercut && linux

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/cantuslog/cantus/internal/powercut"
	"github.com/cantuslog/cantus/internal/testkit"
)

// TestClusterLeadersWhosePowerFails cuts a leader's power under load. Just
// before, its disk syncs nothing for a moment, and one of its followers is
// paused: if anything is acknowledged then, only the other follower has it.
// That one is killed when the power fails, so the leader, with what its disk
// has kept, and the follower that was paused continue by themselves. It needs
// root and loop devices.
func TestClusterLeadersWhosePowerFails(t *testing.T) {
	disks := map[string]*powercut.Disk{}
	c := &cluster{
		tb: t, common: []string{"--partitions", "1", "--msg-id-window", "30m"}, routes: map[string]string{},
		disks: func(name string) string {
			disks[name] = powercut.New(t, "2G")
			return filepath.Join(disks[name].Mount, "data")
		},
	}
	c.found(3)
	c.startAll()
	c.awaitPlaced()
	l := startLoad(c, 1)
	watcher := c.dial(c.nodes[0].name)
	rounds := 2
	if testkit.Long() {
		rounds = 15
	}
	for range rounds {
		if err := l.reach(t.Context(), 0, 1+rand.N(200)); err != nil {
			t.Fatal(err)
		}
		// A leader that came back leads again after a while: wait until it
		// does.
		if err := c.until(t.Context(), "led by its preferred node", func(ctx context.Context) string {
			s, err := statusOf(ctx, watcher)
			if err != nil || len(s.Partitions) == 0 {
				return fmt.Sprint(err)
			}
			if p := s.Partitions[0]; len(p.Placement) == 0 || p.Leader != p.Placement[0] {
				return fmt.Sprintf("%s leads, %v", p.Leader, p.Placement)
			}
			return ""
		}); err != nil {
			t.Fatal(err)
		}
		leader, err := c.leader(t.Context(), watcher, 0)
		if err != nil {
			t.Fatal(err)
		}
		others := c.others(leader)
		rand.Shuffle(len(others), func(i, k int) { others[i], others[k] = others[k], others[i] })
		c.failPower(t, leader, disks[leader.name], others[0], others[1])
		if err := errors.Join(others[1].resume(), leader.launch()); err != nil {
			t.Fatal(err)
		}
		if err := c.awaitOther(t.Context(), watcher, others[0]); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(others[0].start(), leader.awaitReady(), c.awaitReady(t.Context(), watcher)); err != nil {
			t.Fatal(err)
		}
	}
	l.stop(t)
	l.check(t)
}

// reach waits until more appends to a partition are acknowledged.
func (l *load) reach(ctx context.Context, partition, more int) error {
	count := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.acked[partition])
	}
	want := count() + more
	return l.cluster.until(ctx, fmt.Sprintf("at %d appends", want), func(context.Context) string {
		if n := count(); n < want {
			return fmt.Sprint(n)
		}
		return ""
	})
}

// failPower freezes the leader's disk d until the follower that will be killed
// has synced an entry that the leader has not; then both end.
func (c *cluster) failPower(t *testing.T, leader *node, d *powercut.Disk, killed, paused *node) {
	t.Helper()
	near := c.dialOnly(killed)
	defer near.Conn.Close()
	if err := paused.pause(); err != nil {
		t.Fatal(err)
	}
	before := killed.frames(t)
	d.Freeze()
	defer func() {
		// Paused, the leader acknowledges nothing that waits for the disk.
		if err := leader.pause(); err != nil {
			t.Error(err)
		}
		d.Thaw()
		d.Cut()
		leader.kill()
		killed.kill()
		d.Return()
	}()
	// Nothing can be acknowledged, so the load waits for what is in flight: the
	// follower syncs that, and then has nothing more to sync.
	last := before
	if err := c.until(t.Context(), "with a follower ahead", func(context.Context) string {
		n := killed.frames(t)
		quiet := n == last
		if last = n; n <= before || !quiet {
			return fmt.Sprintf("%d frames, %d before", n, before)
		}
		return ""
	}); err != nil {
		t.Error(err)
	}
	// When the leader has answered this, it knows that the follower has the
	// entry, and so do clients if it has acknowledged it.
	for range 3 {
		if info, err := near.Info(t.Context(), 0); err != nil || info.Leader != leader.name {
			t.Errorf("%s leads, %v", info.Leader, err)
		}
	}
}
