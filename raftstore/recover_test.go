package raftstore_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/cantuslog/cantus/raftstore"
)

// One of three replicas is left. It is made the only voter, leads alone, and
// has all that it had, then the record, then what is new.
func TestASoleVoterLeadsAloneWithAllThatItHas(t *testing.T) {
	c, leader := startCluster(t, "n1", "n2", "n3")
	want := c.putSome(30)
	applied(t, want, leader)
	left := c.others(leader)[0]
	applied(t, want, left)
	for _, n := range c.nodes {
		n.closeGroup()
	}
	last, err := left.log().Entry(left.log().LastIndex())
	if err != nil {
		t.Fatal(err)
	}
	if err := raftstore.SoleVoter(left.log(), left.name, []byte("record")); err != nil {
		t.Fatal(err)
	}
	left.open()
	lead(t, left.group)
	if _, err := left.group.Propose([]byte("new")).Wait(); err != nil {
		t.Fatal(err)
	}
	ends(t, append(want, "record", "new"), left)
	if s := left.group.Status(); len(s.Replicas) != 1 || !s.Replicas[0].Voter || s.Term <= last.Term {
		t.Errorf("the group is %+v, the last entry was of term %d", s, last.Term)
	}
}

// A log that is incomplete is no replica to go on with. It can begin empty.
func TestASoleVoterOfAnIncompleteLogIsRefused(t *testing.T) {
	c, leader := startCluster(t, "n1", "n2", "n3")
	applied(t, c.putSome(5), leader)
	n := c.others(leader)[0]
	for _, n := range c.nodes {
		n.closeGroup()
	}
	if err := raftstore.Reset(n.log()); err != nil {
		t.Fatal(err)
	}
	if err := raftstore.SoleVoter(n.log(), n.name, nil); !errors.Is(err, raftstore.ErrFetching) {
		t.Errorf("got %v", err)
	}
	for range 2 { // again after a crash
		if err := raftstore.BeginEmpty(n.log(), n.name); err != nil {
			t.Fatal(err)
		}
	}
	n.open()
	lead(t, n.group)
	if _, err := n.group.Propose([]byte("new")).Wait(); err != nil {
		t.Fatal(err)
	}
	if got := n.fsm.all(); !slices.Equal(got, []string{"new"}) {
		t.Errorf("applied %q", got)
	}
}

// putSome puts count entries and returns them.
func (c *cluster) putSome(count int) []string { return c.putMany(0, count, 10) }
