package raftstore_test

import (
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/relay"
)

// Heartbeats are delayed by several timeouts between nodes that have measured
// that they are late themselves. The leader stays the leader, in the same term.
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
	until(t, "no reply arrives for four timeouts", func() bool { return leader.group.SilentFor() > 4*heartbeat })
	if s := leader.group.Status(); s.State != "leader" || s.Term != term {
		t.Errorf("the leader of term %d is %s in term %d", term, s.State, s.Term)
	}
	for _, n := range c.nodes {
		n.proxy.Resume(relay.Requests, relay.Replies)
	}
	c.put("after")
	if now := leader.group.Term(); now != term {
		t.Errorf("the term is %d, was %d", now, term)
	}
}
