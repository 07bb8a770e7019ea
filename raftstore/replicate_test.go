package raftstore_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/relay"
	"github.com/cantuslog/cantus/raftstore"
)

func TestThreeReplicasApplyTheSame(t *testing.T) {
	t.Parallel()
	c := startSlowCluster(t, time.Second, "n1", "n2", "n3") // a slow machine must not cause an election
	c.leader()
	var want []string
	for i := range 50 {
		want = append(want, fmt.Sprint(i, strings.Repeat("x", i*i*120))) // up to a few frames
	}
	c.putAll(want)
	applied(t, want, c.nodes["n1"], c.nodes["n2"], c.nodes["n3"])
	leader := c.leader()
	if err := leader.group.VerifyLeader(timeout(t), leader.group.Term()); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.nodes {
		until(t, n.name+" has all", func() bool {
			s := n.group.Status()
			return s.Leader == leader.name && len(s.Replicas) == 3 && s.CommitIndex == s.LastIndex && s.AppliedIndex == s.LastIndex
		})
	}
	for _, n := range c.others(leader) {
		if _, err := n.group.Propose([]byte("x")).Wait(); !errors.Is(err, raftstore.ErrNotLeader) {
			t.Errorf("a follower's proposal: %v", err)
		}
	}
}

func TestAnotherLeadsWithAllThatWasAcknowledged(t *testing.T) {
	t.Parallel()
	c, leader := startCluster(t, "n1", "n2", "n3")
	var want []string
	for i := range 20 {
		want = append(want, fmt.Sprint(i))
		c.put(want[i])
	}
	leader.closeGroup()
	for i := range 20 {
		want = append(want, fmt.Sprint("then ", i))
		c.put(want[20+i])
	}
	applied(t, want, c.others(leader)...)
	leader.open()
	applied(t, want, leader)
}

// The proposals of a leader that is cut off get an outcome: nobody waits for
// ever, and the entries that did not reach the others are gone when it is back.
func TestALeaderThatIsCutOff(t *testing.T) {
	t.Parallel()
	c, leader := startCluster(t, "n1", "n2", "n3")
	want := c.putMany(0, 10, 10)
	applied(t, want, c.others(leader)...)
	c.cut(leader.name)
	failed := 0
	for i := range 5 {
		_, err := leader.group.Propose(fmt.Append(nil, "lost ", i)).Wait()
		if !errors.Is(err, raftstore.ErrUnknown) && !errors.Is(err, raftstore.ErrNotLeader) {
			t.Fatalf("a proposal to a leader that is cut off: %v", err)
		}
		failed++
	}
	if err := leader.group.Barrier(timeout(t)); !errors.Is(err, raftstore.ErrNotLeader) {
		t.Fatalf("barrier: %v", err)
	}
	if err := leader.group.VerifyLeader(timeout(t), leader.group.Term()); !errors.Is(err, raftstore.ErrNotLeader) {
		t.Fatalf("verify: %v", err)
	}
	stale := leader.log().LastIndex()
	for i := range 10 {
		want = append(want, fmt.Sprint("kept ", i))
		c.put(want[len(want)-1])
	}
	c.heal(leader.name)
	applied(t, want, c.nodes["n1"], c.nodes["n2"], c.nodes["n3"])
	t.Logf("%d proposals failed; the log ended at %d", failed, stale)
	sameLog(t, c.nodes["n1"].log(), c.nodes["n2"].log())
	sameLog(t, c.nodes["n1"].log(), c.nodes["n3"].log())
}

// A leader is confirmed only by replies to what it sends after the question. A
// reply that was sent before may arrive late, as late as a stopped process
// reads it: another replica may lead by then.
func TestALeaderIsNotConfirmedByAnswersOnTheirWay(t *testing.T) {
	t.Parallel()
	c := startSlowCluster(t, 2*time.Second, "n1", "n2", "n3") // it goes on leading for this long
	leader := c.leader()
	term := leader.group.Term()
	c.put("x")
	if err := leader.group.VerifyLeader(timeout(t), term); err != nil {
		t.Fatal(err)
	}
	if err := leader.group.VerifyLeader(timeout(t), term-1); !errors.Is(err, raftstore.ErrNotLeader) {
		t.Errorf("it leads in an earlier term: %v", err)
	}
	for _, n := range c.others(leader) {
		n.proxy.Stall(relay.Replies)
	}
	for _, n := range c.others(leader) {
		until(t, "an answer of "+n.name+" is on its way", func() bool { return n.proxy.Held() > 0 })
		n.proxy.Stall(relay.Requests)
	}
	verified := make(chan error, 1)
	go func() { verified <- leader.group.VerifyLeader(timeout(t), term) }()
	until(t, "the leader has been asked", leader.group.Urgent)
	for i := range 10 { // once raft has handled these, it has handled the question too
		last := leader.log().LastIndex()
		leader.group.Propose(fmt.Append(nil, i))
		until(t, "a proposal is in the log", func() bool { return leader.log().LastIndex() > last })
	}
	for _, n := range c.others(leader) {
		n.proxy.Resume(relay.Replies)
	}
	if err := <-verified; !errors.Is(err, raftstore.ErrNotLeader) {
		t.Errorf("confirmed by answers of before: %v", err)
	}
}

// A leader that is closed while its followers store nothing must end, and so
// must every call that waits for it.
func TestCloseWithoutAMajority(t *testing.T) {
	t.Parallel()
	c, leader := startCluster(t, "n1", "n2", "n3")
	for _, n := range c.others(leader) {
		n.closeGroup()
	}
	var ps []raftstore.Proposal
	for range 100 {
		ps = append(ps, leader.group.Propose([]byte("x")))
	}
	leader.closeGroup()
	for _, p := range ps {
		if _, err := p.Wait(); err == nil {
			t.Fatal("it was committed without a majority")
		}
	}
}

// failedAppends counts what raft logs when a request with entries has failed. Raft
// backs off from a peer after each.
type failedAppends struct {
	slog.Handler
	count atomic.Int64
}

func (f *failedAppends) Enabled(context.Context, slog.Level) bool { return true }

func (f *failedAppends) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "failed to appendEntries") {
		f.count.Add(1)
	}
	return nil
}

// A follower that was away gets new entries soon after it is back, however long
// it was away: the transport retries for raft, which hears of no failure and so
// does not back off from the follower.
func TestAFollowerThatWasAwayIsBackSoon(t *testing.T) {
	t.Parallel()
	c := startSlowCluster(t, 2*time.Second, "n1", "n2", "n3") // a slow machine must not cause an election
	failed := &failedAppends{Handler: slog.DiscardHandler}
	for _, n := range c.nodes {
		n.down()
		n.up(func(o *raftstore.Options) { o.Logger = slog.New(failed) })
	}
	var want []string
	put := func() {
		t.Helper()
		want = append(want, fmt.Sprint(len(want)))
		c.put(want[len(want)-1])
	}
	put()
	for range 5 { // again if another leads in between
		leader := c.leader()
		term, n := leader.group.Term(), c.others(leader)[0]
		applied(t, want, c.nodes["n1"], c.nodes["n2"], c.nodes["n3"])
		before := failed.count.Load()
		n.closeGroup()
		n.closeNetwork()
		put()
		until(t, "the leader misses the follower", func() bool {
			return leader.group.Retries(n.name) || leader.group.Term() != term || failed.count.Load() > before
		})
		for range 10 {
			put()
		}
		count := failed.count.Load() - before
		n.openNetwork()
		n.open()
		applied(t, want, n)
		if leader.group.Term() != term {
			continue
		}
		if count > 0 {
			t.Errorf("raft was told of %d failures, and backs off", count)
		}
		return
	}
	t.Error("the leaders change all the time")
}

// A follower that restarts must learn what is committed although nothing new
// is: its leader has told it before.
func TestAFollowerThatWasStartedAnewLearnsWhatIsCommitted(t *testing.T) {
	t.Parallel()
	c, leader := startCluster(t, "n1", "n2", "n3")
	want := c.putMany(0, 10, 10)
	n := c.others(leader)[0]
	for range 3 {
		applied(t, want, n)
		n.closeGroup()
		n.open()
	}
	applied(t, want, n)
}
