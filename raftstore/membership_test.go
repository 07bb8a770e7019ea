package raftstore_test

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/relay"
	"github.com/cantuslog/cantus/raftstore"
)

// members returns the names of the replicas that a node knows, voters with a
// star.
func members(n *node) (all []string) {
	for _, r := range n.group.Status().Replicas {
		if r.Voter {
			r.Name += "*"
		}
		all = append(all, r.Name)
	}
	slices.Sort(all)
	return all
}

func TestReplicasComeAndGo(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "n1", "n2", "n3", "n4")
	n1, n2, n3 := c.nodes["n1"], c.nodes["n2"], c.nodes["n3"]
	n1.open("n1")
	want := c.putMany(0, 20, 100)
	n2.open()
	n3.open()
	ctx := timeout(t)
	for _, step := range []struct {
		do   func(*raftstore.Group) error
		want string
	}{
		{func(g *raftstore.Group) error { return g.AddReplica(ctx, "n2") }, "n1* n2"},
		{func(g *raftstore.Group) error { return g.AddReplica(ctx, "n2") }, "n1* n2"},
		{func(g *raftstore.Group) error { return g.Promote(ctx, "n2") }, "n1* n2*"},
		{func(g *raftstore.Group) error { return g.Promote(ctx, "n2") }, "n1* n2*"},
		{func(g *raftstore.Group) error { return g.AddReplica(ctx, "n2") }, "n1* n2*"},
		{func(g *raftstore.Group) error { return g.AddReplica(ctx, "n3") }, "n1* n2* n3"},
		{func(g *raftstore.Group) error { return g.Promote(ctx, "n3") }, "n1* n2* n3*"},
		{func(g *raftstore.Group) error { return g.Demote(ctx, "n2") }, "n1* n2 n3*"},
		{func(g *raftstore.Group) error { return g.Demote(ctx, "n2") }, "n1* n2 n3*"},
		{func(g *raftstore.Group) error { return g.Remove(ctx, "n2") }, "n1* n3*"},
		{func(g *raftstore.Group) error { return g.Remove(ctx, "n2") }, "n1* n3*"},
		{func(g *raftstore.Group) error { return g.AddReplica(ctx, "n2") }, "n1* n2 n3*"},
	} {
		until(t, "members "+step.want, func() bool { // retried, since leaders may change on a busy machine
			leader := c.leader()
			err := step.do(leader.group)
			c.mayFail(err)
			return err == nil && strings.Join(members(leader), " ") == step.want
		})
	}
	applied(t, want, n2, n3)
	until(t, "a node that is not a member is not promoted", func() bool {
		err := c.leader().group.Promote(ctx, "n4")
		return err != nil && strings.Contains(err.Error(), "add it first")
	})
	for what, err := range map[string]error{ // n2 has no vote, so it follows
		"add": n2.group.AddReplica(ctx, "n4"), "promote": n2.group.Promote(ctx, "n2"),
		"demote": n2.group.Demote(ctx, "n1"), "remove": n2.group.Remove(ctx, "n2"), "transfer": n2.group.Transfer(ctx, ""),
	} {
		if !errors.Is(err, raftstore.ErrNotLeader) {
			t.Errorf("%s at a follower: %v", what, err)
		}
	}
	// A leader that removes itself steps down, and stays open.
	until(t, "n1 leads", func() bool { return n1.group.Leading() || c.leader().group.Transfer(ctx, "n1") == nil })
	until(t, "n1 is removed", func() bool {
		c.mayFail(c.leader().group.Remove(ctx, "n1"))
		return n3.group.Leading() && !n1.group.Leading()
	})
	if got := strings.Join(members(n3), " "); got != "n2 n3*" {
		t.Fatalf("members %s", got)
	}
	c.put("without n1")
	applied(t, append(want, "without n1"), n2, n3)
	if s := n1.group.Status().State; s != "follower" {
		t.Errorf("n1 is a %s", s)
	}
}

func TestTransfer(t *testing.T) {
	t.Parallel()
	c, leader := startCluster(t, "n1", "n2", "n3")
	for range 3 {
		to := c.others(leader)[0]
		// A peer only counts as reachable once it has replied to a heartbeat.
		until(t, "leadership is transferred to "+to.name, func() bool { return leader.group.Transfer(timeout(t), to.name) == nil })
		if leader.group.Leading() {
			t.Fatal("the old leader still leads")
		}
		leader = c.leader()
	}
	until(t, "leadership is transferred to any replica", func() bool { return leader.group.Transfer(timeout(t), "") == nil })
	previous := leader
	if leader = c.leader(); leader == previous {
		t.Log("the old leader was elected again at once")
	}
	for to, want := range map[string]string{leader.name: "it is the leader", "n9": "not a voter"} {
		if err := leader.group.Transfer(timeout(t), to); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("to %s: %v, want %q", to, err, want)
		}
	}
	// However often it is tried, a transfer to a node that is down fails, and
	// proposals still succeed.
	closed := c.others(leader)[0]
	closed.closeGroup()
	c.put("a")
	until(t, "the leader knows that "+closed.name+" is down", func() bool {
		err := leader.group.Transfer(timeout(t), closed.name)
		return err != nil && strings.Contains(err.Error(), "can't be reached")
	})
	c.put("b")
	until(t, "leadership is transferred to the other replica", func() bool {
		return !leader.group.Leading() || leader.group.Transfer(timeout(t), "") == nil
	})
	c.put("c")
}

// A leader is closed while it transfers leadership to a replica that no longer
// replies, as when all nodes of a cluster are stopped at once. The next start
// knows what the leader had applied, although no other replica is running.
func TestALastSnapshotInTheMiddleOfATransfer(t *testing.T) {
	t.Parallel()
	c := startSlowCluster(t, 4*time.Second, "n1", "n2", "n3") // the leader must not step down while no replica replies
	c.put("last")
	var leader *node
	var transfers sync.WaitGroup
	until(t, "a leadership transfer is in progress", func() bool {
		leader = c.leader()
		for _, n := range c.others(leader) {
			until(t, n.name+" has caught up", func() bool { return len(n.fsm.all()) == len(leader.fsm.all()) })
		}
		if leader.group.VerifyLeader(timeout(t), leader.group.Term()) != nil { // the peers have replied to heartbeats
			return false
		}
		for _, n := range c.nodes {
			n.proxy.Stall(relay.Requests, relay.Replies)
		}
		g, ctx := leader.group, timeout(t)
		transfers.Go(func() {
			for g.Leading() && g.Transfer(ctx, "") != nil {
				runtime.Gosched()
			}
		})
		for g.Leading() {
			if transferring(t, g) {
				return true
			}
		}
		transfers.Wait()
		for _, n := range c.nodes { // the leader has stepped down, on a busy machine: try again
			n.proxy.Resume(relay.Requests, relay.Replies)
		}
		return false
	})
	if err := leader.group.CloseWithSnapshot(); err != nil {
		t.Fatal(err)
	}
	transfers.Wait()
	applied := len(leader.fsm.all())
	leader.closeNetwork()
	leader.openNetwork()
	leader.open()
	if leader.fsm.restored != applied || applied == 0 {
		t.Errorf("restored %d entries, %d were applied", leader.fsm.restored, applied)
	}
}

// transferring reports whether a leadership transfer is in progress.
func transferring(t *testing.T, g *raftstore.Group) bool {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := g.Barrier(ctx)
	return err != nil && strings.Contains(err.Error(), "transfer in progress")
}

func TestAMembershipChangeWithoutAMajority(t *testing.T) {
	t.Parallel()
	c, leader := startCluster(t, "n1", "n2", "n3")
	for _, n := range c.others(leader) {
		n.closeGroup()
	}
	err := leader.group.AddReplica(timeout(t), "n4")
	if !errors.Is(err, raftstore.ErrUnknown) && !errors.Is(err, raftstore.ErrNotLeader) {
		t.Fatalf("add: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := leader.group.AddReplica(ctx, "n4"); err == nil {
		t.Fatal("the replica was added")
	}
	leader.closeGroup()
}

// Leadership is transferred to a node that was started again, although the
// connections that are kept are to its earlier process.
func TestTransferToANodeThatWasStartedAgain(t *testing.T) {
	t.Parallel()
	c := startSlowCluster(t, 2*time.Second, "n1", "n2", "n3")
	transfer := func(from, to *node) (err error) {
		until(t, to.name+" can be reached", func() bool { return from.group.Reachable(to.name) || !from.group.Leading() })
		return from.group.Transfer(timeout(t), to.name)
	}
	for range 5 { // again if leaders change by themselves
		leader := c.leader()
		n := c.others(leader)[0]
		if transfer(leader, n) != nil || c.leader() != n || transfer(n, leader) != nil || c.leader() != leader {
			continue
		}
		n.closeGroup()
		n.closeNetwork()
		n.openNetwork()
		n.open()
		c.put("x")
		until(t, "it has caught up", func() bool { return n.log().LastIndex() == leader.log().LastIndex() })
		if err := transfer(leader, n); err != nil {
			if errors.Is(err, raftstore.ErrNotLeader) {
				continue
			}
			t.Error(err)
		}
		return
	}
	t.Error("the leaders change all the time")
}
