package raftstore_test

import (
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/relay"
)

// Heartbeats are held up for several timeouts, on nodes that know that they are
// late themselves. They go on in the same term.
func TestAStarvedNodeHoldsNoElection(t *testing.T) {
	t.Parallel()
	const heartbeat = 300 * time.Millisecond
	c := startSlowCluster(t, heartbeat, "n1", "n2", "n3")
	leader := c.leader()
	c.put("before")
	term := leader.group.Term()
	until(t, "the leader's heartbeats are answered", func() bool { return leader.group.SilentFor() < heartbeat })
	for _, n := range c.nodes {
		n.network.Starve(time.Minute)
	}
	for _, n := range c.nodes {
		n.proxy.Stall(relay.Requests, relay.Replies)
	}
	until(t, "nothing is heard for four timeouts", func() bool { return leader.group.SilentFor() > 4*heartbeat })
	if s := leader.group.Status(); s.State != "leader" || s.Term != term {
		t.Errorf("it is %s of term %d, and was the leader of term %d", s.State, s.Term, term)
	}
	for _, n := range c.nodes {
		n.proxy.Resume(relay.Requests, relay.Replies)
	}
	c.put("after")
	if now := leader.group.Term(); now != term {
		t.Errorf("term %d at the end, and %d at the beginning", now, term)
	}
}
