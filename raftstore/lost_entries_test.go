package raftstore_test

import (
	"errors"
	"os"
	"testing"

	"github.com/cantuslog/cantus/internal/invariant"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/raftstore"
)

// down closes a node's replica and store; up opens them again.
func (n *node) down() {
	n.c.t.Helper()
	if err := n.group.CloseWithSnapshot(); err != nil {
		n.c.t.Fatal(err)
	}
	n.group = nil
	n.closeStore()
}

func (n *node) up(change func(*raftstore.Options)) {
	n.c.t.Helper()
	n.openStore()
	opts := n.options()
	if change != nil {
		change(&opts)
	}
	g, err := raftstore.Open(opts)
	if err != nil {
		n.c.t.Fatal(err)
	}
	n.group = g
}

// save copies a stopped node's directory. restore puts the copy back.
func (n *node) save() (restore func()) {
	n.c.t.Helper()
	saved := n.c.t.TempDir()
	if err := os.CopyFS(saved, os.DirFS(n.dir)); err != nil {
		n.c.t.Fatal(err)
	}
	return func() {
		n.c.t.Helper()
		if err := errors.Join(os.RemoveAll(n.dir), os.CopyFS(n.dir, os.DirFS(saved))); err != nil {
			n.c.t.Fatal(err)
		}
	}
}

// One replica has lost entries that it had acknowledged, and votes for a leader
// that never had them. The replica that still has them does not remove them.
func TestCommittedEntriesAreNotRemovedForALeaderThatLacksThem(t *testing.T) {
	testkit.Violates(t, invariant.CommittedKept)
	t.Parallel()
	c, _ := startCluster(t, "n1", "n2", "n3")
	c.put("a")
	leader := c.leader()
	forgetful, absent := c.others(leader)[0], c.others(leader)[1]
	applied(t, []string{"a"}, leader, forgetful, absent)
	forgetful.down()
	restore := forgetful.save()
	forgetful.up(nil)
	absent.down()
	for _, data := range []string{"b", "c", "d"} {
		c.put(data)
	}
	ends(t, []string{"b", "c", "d"}, leader, forgetful)
	leader.down()
	forgetful.down()
	restore()
	forgetful.up(nil)
	absent.up(nil)
	c.put("other")

	halted := make(chan error, 1)
	leader.up(func(o *raftstore.Options) { o.HaltedItself = func(err error) { halted <- err } })
	last := leader.log().LastIndex()
	until(t, "the replica halts itself", func() bool { return len(halted) > 0 })
	if err := <-halted; !errors.Is(err, raftstore.ErrCommittedCut) {
		t.Errorf("HaltedItself is called with %v", err)
	}
	if err := leader.group.Halted(); !errors.Is(err, raftstore.ErrHalted) || !errors.Is(err, raftstore.ErrCommittedCut) {
		t.Errorf("Halted returns %v", err)
	}
	c.put("more")
	if now := leader.log().LastIndex(); now != last {
		t.Errorf("the log of the halted replica ended at entry %d, now at %d", last, now)
	}
	found := false
	for e, err := range leader.log().Entries(1, last) {
		if err != nil {
			t.Fatal(err)
		}
		found = found || string(e.Data) == "d"
	}
	if !found {
		t.Error("an acknowledged entry is lost")
	}
	if _, err := leader.group.Propose([]byte("mine")).Wait(); err == nil {
		t.Error("the halted replica acknowledges a proposal")
	}
}

// A follower restarts with an older copy of its directory. Its leader is still
// the one to which it had acknowledged more entries.
func TestALeaderNoticesThatAFollowerHasLostEntries(t *testing.T) {
	testkit.MayViolate(t, invariant.CommittedKept) // a follower loses entries
	t.Parallel()
	c, _ := startCluster(t, "n1", "n2", "n3")
	type lost struct {
		peer     string
		has, had uint64
	}
	reported := make(chan lost, 10)
	for _, n := range c.nodes { // open again with the callback set
		n.down()
		n.up(func(o *raftstore.Options) {
			o.PeerLostEntries = func(peer string, has, had uint64) { reported <- lost{peer, has, had} }
		})
	}
	c.put("a")
	var forgetful *node
	for forgot, tries := false, 0; !forgot; tries++ { // repeat if another leader is elected in between
		if tries == 20 {
			t.Fatal("the leaders change all the time")
		}
		leader := c.leader()
		forgetful = c.others(leader)[0]
		forgetful.down()
		restore := forgetful.save()
		forgetful.up(nil)
		for _, data := range []string{"b", "c", "d"} {
			c.put(data)
		}
		leader = c.leader()
		term := leader.group.Term()
		had := forgetful.log().LastIndex()
		until(t, "the follower has all entries", func() bool {
			had = forgetful.log().LastIndex()
			return had == leader.log().LastIndex()
		})
		if forgetful == leader {
			continue
		}
		c.put("e") // sent after the earlier entries were acknowledged
		forgetful.down()
		restore()
		forgetful.up(nil)
		until(t, "the leader reports the loss", func() bool { return len(reported) > 0 || c.leader().group.Term() != term })
		if leader.group.Term() != term {
			for len(reported) > 0 {
				<-reported
			}
			continue
		}
		forgot = true
		if l := <-reported; l.peer != forgetful.name || l.has >= l.had {
			t.Errorf("the leader reports %+v", l)
		}
		if f := leader.group.PeersThatLostEntries(); len(f) != 1 || f[forgetful.name] == "" {
			t.Errorf("PeersThatLostEntries returns %v", f)
		}
	}
	// The follower receives no entries and does not count for a majority. A new
	// replica in its place does both.
	last := forgetful.log().LastIndex()
	c.put("f")
	if now := forgetful.log().LastIndex(); now != last {
		t.Errorf("the follower received entries %d to %d", last+1, now)
	}
	leader := c.leader()
	if err := leader.group.Remove(t.Context(), forgetful.name); err != nil {
		t.Fatal(err)
	}
	forgetful.closeGroup()
	forgetful.closeStore()
	forgetful.dir = t.TempDir()
	forgetful.up(nil)
	if err := leader.group.AddReplica(t.Context(), forgetful.name); err != nil {
		t.Fatal(err)
	}
	if err := leader.group.Promote(t.Context(), forgetful.name); err != nil {
		t.Fatal(err)
	}
	if f := leader.group.PeersThatLostEntries(); len(f) != 0 {
		t.Errorf("PeersThatLostEntries returns %v", f)
	}
	ends(t, []string{"f"}, forgetful)
}

// A leader is replaced and elected again. It does not report a follower for the
// lack of entries that the follower never acknowledged.
func TestALeaderOfANewTermReportsNoLoss(t *testing.T) {
	testkit.MayViolate(t, invariant.CommittedKept) // a follower loses entries
	t.Parallel()
	c, _ := startCluster(t, "n1", "n2", "n3")
	reported := make(chan string, 10)
	for _, n := range c.nodes {
		n.down()
		n.up(func(o *raftstore.Options) {
			o.PeerLostEntries = func(peer string, _, _ uint64) { reported <- peer }
		})
	}
	c.put("a")
	leader := c.leader()
	next, behind := c.others(leader)[0], c.others(leader)[1]
	applied(t, []string{"a"}, leader, next, behind)
	c.put("b") // through the pipelines
	applied(t, []string{"a", "b"}, leader, next, behind)
	transfer := func(to *node) {
		until(t, to.name+" leads", func() bool {
			_ = c.leader().group.Transfer(t.Context(), to.name) // it may not be reachable yet
			return to.group.Leading()
		})
	}
	transfer(next)
	behind.down()
	c.put("c")
	ends(t, []string{"c"}, leader, next)
	transfer(leader)
	behind.up(nil)
	c.put("d")
	ends(t, []string{"c", "d"}, behind)
	if len(reported) > 0 {
		t.Errorf("%s is reported to have lost entries that it never had", <-reported)
	}
}
