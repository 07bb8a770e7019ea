package raftstore_test

import (
	"net"
	"testing"
	"time"
)

// closedPort returns an address on which nothing listens.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	return l.Addr().String()
}

// The leader's port is closed for a follower, while the leader is running and
// the third replica follows it. The follower is elected at once. After a
// heartbeat timeout it would not be, since the third replica would not vote for
// it.
func TestADeadProcessIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	c, leader := startCluster(t, "n1", "n2", "n3")
	c.put("before")
	follower := c.others(leader)[0]
	until(t, "the leader has sent heartbeats", func() bool { return follower.network.HasHeartbeatConn(leader.name) })
	c.mu.Lock()
	c.reroutes = map[[2]string]string{
		{follower.name, leader.name}: closedPort(t),
		{leader.name, follower.name}: closedPort(t),
	}
	c.mu.Unlock()
	follower.proxy.Cut()
	until(t, "the follower leads", follower.group.Leading)
	until(t, "the old leader follows", func() bool { return !leader.group.Leading() })
	c.put("after")
}

// The connections between a leader and its followers break repeatedly. The
// leader is still running, so it stays the leader.
func TestBrokenConnectionsCauseNoElection(t *testing.T) {
	t.Parallel()
	c := startSlowCluster(t, 4*time.Second, "n1", "n2", "n3") // the leader must not step down on a busy machine
	c.put("before")
	leader := c.leader()
	term := leader.group.Status().Term
	for range 10 {
		for _, n := range c.others(leader) {
			n.proxy.Cut()
		}
		if err := leader.group.VerifyLeader(timeout(t), leader.group.Term()); err != nil {
			t.Fatal(err)
		}
	}
	c.put("after")
	if s := leader.group.Status(); s.Term != term || s.State != "leader" {
		t.Errorf("the leader of term %d is %s in term %d", term, s.State, s.Term)
	}
}
