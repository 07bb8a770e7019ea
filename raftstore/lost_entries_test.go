package raftstore_test

import (
	"errors"
	"os"
	"testing"

	"github.com/cantuslog/cantus/raftstore"
)

// down stops a node's replica and store; up starts them again.
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

// One replica has lost what it acknowledged, and votes for a leader that never
// had it. The replica that has it does not give it up.
func TestCommittedEntriesAreNotGivenUpForALeaderThatLacksThem(t *testing.T) {
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

	told := make(chan error, 1)
	leader.up(func(o *raftstore.Options) { o.HaltedItself = func(err error) { told <- err } })
	last := leader.log().LastIndex()
	until(t, "it is told", func() bool { return len(told) > 0 })
	if err := <-told; !errors.Is(err, raftstore.ErrCommittedCut) {
		t.Errorf("it is told %v", err)
	}
	if err := leader.group.Halted(); !errors.Is(err, raftstore.ErrHalted) || !errors.Is(err, raftstore.ErrCommittedCut) {
		t.Errorf("it takes part: %v", err)
	}
	c.put("more")
	if now := leader.log().LastIndex(); now != last {
		t.Errorf("its log ended at %d, and ends at %d", last, now)
	}
	found := false
	for e, err := range leader.log().Entries(1, last) {
		if err != nil {
			t.Fatal(err)
		}
		found = found || string(e.Data) == "d"
	}
	if !found {
		t.Error("what was acknowledged is gone")
	}
	if _, err := leader.group.Propose([]byte("mine")).Wait(); err == nil {
		t.Error("it acknowledges")
	}
}

// A follower restarts with an older copy of its directory, and its leader is
// the one to which it had acknowledged more.
func TestALeaderNoticesThatAFollowerHasLostEntries(t *testing.T) {
	t.Parallel()
	c, _ := startCluster(t, "n1", "n2", "n3")
	type lost struct {
		peer     string
		has, had uint64
	}
	told := make(chan lost, 10)
	for _, n := range c.nodes { // with the callback set
		n.down()
		n.up(func(o *raftstore.Options) {
			o.PeerLostEntries = func(peer string, has, had uint64) { told <- lost{peer, has, had} }
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
		until(t, "it has all", func() bool {
			had = forgetful.log().LastIndex()
			return had == leader.log().LastIndex()
		})
		if forgetful == leader {
			continue
		}
		c.put("e") // is sent after those before were acknowledged
		forgetful.down()
		restore()
		forgetful.up(nil)
		until(t, "it is noticed", func() bool { return len(told) > 0 || c.leader().group.Term() != term })
		if leader.group.Term() != term {
			for len(told) > 0 {
				<-told
			}
			continue
		}
		forgot = true
		if l := <-told; l.peer != forgetful.name || l.has >= l.had {
			t.Errorf("the leader is told %+v", l)
		}
		if f := leader.group.PeersThatLostEntries(); len(f) != 1 || f[forgetful.name] == "" {
			t.Errorf("it says that %v have forgotten", f)
		}
	}
	// The follower gets nothing and counts for nothing; a new replica in its place
	// does both.
	last := forgetful.log().LastIndex()
	c.put("f")
	if now := forgetful.log().LastIndex(); now != last {
		t.Errorf("it got entries %d to %d", last+1, now)
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
		t.Errorf("%v have forgotten", f)
	}
	ends(t, []string{"f"}, forgetful)
}

// A leader that led before and was replaced meanwhile does not expect a
// follower to have what the follower acknowledged to nobody.
func TestALeaderOfANewTermBlamesNobody(t *testing.T) {
	t.Parallel()
	c, _ := startCluster(t, "n1", "n2", "n3")
	told := make(chan string, 10)
	for _, n := range c.nodes {
		n.down()
		n.up(func(o *raftstore.Options) {
			o.PeerLostEntries = func(peer string, _, _ uint64) { told <- peer }
		})
	}
	c.put("a")
	leader := c.leader()
	next, behind := c.others(leader)[0], c.others(leader)[1]
	applied(t, []string{"a"}, leader, next, behind)
	c.put("b") // through the pipelines
	applied(t, []string{"a", "b"}, leader, next, behind)
	handOver := func(to *node) {
		until(t, to.name+" leads", func() bool {
			_ = c.leader().group.Transfer(t.Context(), to.name) // it may not be reachable yet
			return to.group.Leading()
		})
	}
	handOver(next)
	behind.down()
	c.put("c")
	ends(t, []string{"c"}, leader, next)
	handOver(leader)
	behind.up(nil)
	c.put("d")
	ends(t, []string{"c", "d"}, behind)
	if len(told) > 0 {
		t.Errorf("%s is said to have lost entries that it never had", <-told)
	}
}
