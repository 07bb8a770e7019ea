//go:build netfaults

package e2e_test

import (
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/internal/workload"
)

// startSpaced starts three nodes, each in a network of its own, whose links
// have a delay if one is given.
func startSpaced(t *testing.T, delay string, common ...string) (*cluster, *spaces) {
	t.Helper()
	s := newSpaces(t, "n1", "n2", "n3")
	if delay != "" {
		s.delay(delay)
	}
	c := &cluster{tb: t, common: common, routes: map[string]string{}, spaces: s}
	c.found(3)
	c.startAll()
	c.awaitPlaced()
	return c, s
}

// unlinked is a node whose links to the others are down.
func (s *spaces) unlinked() fault {
	return fault{
		name:  "unlinked",
		begin: func(n *node) error { s.set(n.name, true); return nil },
		heal:  func(n *node) error { s.set(n.name, false); return nil },
	}
}

func TestNetCutOffLeader(t *testing.T) {
	c, s := startSpaced(t, "", "--partitions", "1")
	checkCutOff(t, c, s.unlinked())
}

// TestNetHistoryReplay replays the history while links go down.
func TestNetHistoryReplay(t *testing.T) {
	h, count := loadHistory(t), 12
	if !testkit.Long() {
		h, count = h.head(t, 2000), 3
	}
	c, s := startSpaced(t, "", "--partitions", "2", "--msg-id-window", "30m")
	replayFaults(t, c, newReplayOf(t, h, workload.Backoff{}, c.writers(), 0), count, s.unlinked().lasting(5*time.Second), killed, paused.lasting(5*time.Second))
}

// TestNetFarApart has 20 ms of delay on every link.
func TestNetFarApart(t *testing.T) {
	c, s := startSpaced(t, "20ms", "--partitions", "2", "--msg-id-window", "30m")
	replayFaults(t, c, newReplayOf(t, loadHistory(t).head(t, 300), workload.Backoff{}, c.writers(), 1), 2, s.unlinked().lasting(5*time.Second), killed)
}
