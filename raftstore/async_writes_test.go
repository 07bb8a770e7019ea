package raftstore_test

import (
	"errors"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/wal"
	"github.com/cantuslog/cantus/wal/journal/journaltest"
)

// asyncLeader is a group of three replicas. The leader's disk is blocked: the
// followers have an entry that the leader has not synced.
type asyncLeader struct {
	*cluster
	leader   *node
	index    uint64
	proposal raftstore.Proposal
	open     func(error) // unblocks the leader's disk
}

func newAsyncLeader(t *testing.T) asyncLeader {
	a := asyncLeader{cluster: newCluster(t, "n1", "n2", "n3")}
	a.heartbeat = 4 * time.Second // the leader must not step down on a busy machine
	disks := map[string]*journaltest.Gate{}
	for _, n := range a.nodes {
		if err := n.store.Close(); err != nil {
			t.Fatal(err)
		}
		disks[n.name] = journaltest.NewGate()
		n.fs, n.fails = disks[n.name], true
		n.openStore()
		n.open(a.names...)
	}
	a.leader = a.cluster.leader()
	a.put("first")
	for _, n := range a.nodes {
		until(t, n.name+" has caught up", func() bool { return len(n.fsm.all()) == 1 })
	}
	_, a.open = disks[a.leader.name].Hold()
	t.Cleanup(func() { a.open(nil) }) // if the test fails
	a.index = a.leader.group.Status().LastIndex + 1
	a.proposal = a.leader.group.Propose([]byte("second"))
	a.followersHave(t, a.index)
	if a.leader.log().LastIndex() >= a.index {
		t.Fatal("the leader has synced the entry: the test proves nothing")
	}
	return a
}

func (a asyncLeader) followersHave(t *testing.T, index uint64) {
	t.Helper()
	for _, n := range a.others(a.leader) {
		until(t, n.name+" has the entry", func() bool { return n.log().LastIndex() == index })
	}
}

// Followers receive entries while the leader is still writing them. No replica
// considers an entry committed before the leader has synced it.
func TestNothingIsCommittedThatTheLeaderHasNotSynced(t *testing.T) {
	t.Parallel()
	testkit.NotShort(t, "it waits for elections and time-outs")
	a := newAsyncLeader(t)
	outcome := make(chan error, 1)
	go func() { _, err := a.proposal.Wait(); outcome <- err }()
	// Raft considers the second entry committed, so its next requests would
	// contain that commit index. A follower that has the fourth entry has
	// handled the request with the third.
	until(t, "raft considers the entry committed", func() bool { return a.leader.group.RaftCommitIndex() >= a.index })
	third := a.leader.group.Propose([]byte("third"))
	a.followersHave(t, a.index+1)
	fourth := a.leader.group.Propose([]byte("fourth"))
	a.followersHave(t, a.index+2)
	for _, n := range a.nodes {
		if s := n.group.Status(); s.CommitIndex >= a.index || len(n.fsm.all()) != 1 {
			t.Errorf("%s considers entry %d committed: %+v", n.name, a.index, s)
		}
	}
	select {
	case err := <-outcome:
		t.Fatalf("the proposal has an outcome: %v", err)
	default:
	}
	a.open(nil)
	_, err3 := third.Wait()
	_, err4 := fourth.Wait()
	if err := errors.Join(<-outcome, err3, err4); err != nil {
		t.Fatal(err)
	}
	for _, n := range a.nodes {
		until(t, n.name+" has applied all", func() bool { return len(n.fsm.all()) == 4 })
	}
}

// The followers have an entry that the leader then fails to sync. The leader
// applies nothing more, and another replica is elected. The proposer gets
// ErrUnknown, and the other replicas agree on the outcome.
func TestAFailedSyncAfterReplication(t *testing.T) {
	t.Parallel()
	testkit.NotShort(t, "it waits for elections and time-outs")
	a := newAsyncLeader(t)
	a.open(errors.New("the disk is broken"))
	if _, err := a.proposal.Wait(); !errors.Is(err, raftstore.ErrUnknown) {
		t.Fatalf("outcome: %v", err)
	}
	until(t, "the leader has stepped down", func() bool { return !a.leader.group.Leading() })
	if _, err := a.leader.group.Propose([]byte("third")).Wait(); err == nil {
		t.Fatal("the old leader accepted a proposal")
	}
	if n := len(a.leader.fsm.all()); n != 1 {
		t.Fatalf("the old leader applied %d entries", n)
	}
	if !errors.Is(a.leader.store.Failed(), wal.ErrFailed) {
		t.Fatal("the old leader's store has not failed")
	}
	a.leader.closeGroup()
	a.put("fourth")
	for _, n := range a.others(a.leader) {
		until(t, n.name+" has applied all", func() bool { return len(n.fsm.all()) == 3 })
	}
}
