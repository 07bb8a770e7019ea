package raftstore_test

import (
	"net"
	"testing"
	"time"
)

// closedPort returns an address where nothing listens.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	return l.Addr().String()
}

// A follower finds nothing where its leader was, while the leader lives and the
// third replica follows it. By timeouts the follower would never be elected,
// since the third would not vote for it.
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

// The connections between a leader and its followers break, again and again.
// The leader is where it was, and goes on leading.
func TestALeaderThatIsThereIsFollowed(t *testing.T) {
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
		t.Errorf("it is %s in term %d, was leader in %d", s.State, s.Term, term)
	}
}
