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
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/raftstore"
)

func TestThreeReplicasApplyTheSame(t *testing.T) {
	t.Parallel()
	c := startSlowCluster(t, time.Second, "n1", "n2", "n3") // no election on a slow machine
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
		until(t, n.name+" has applied all", func() bool {
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

func TestANewLeaderHasAllAcknowledgedEntries(t *testing.T) {
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

// The proposals of a leader that is disconnected get an outcome. Their entries
// are removed when the leader is connected again.
func TestADisconnectedLeader(t *testing.T) {
	t.Parallel()
	c, leader := startCluster(t, "n1", "n2", "n3")
	want := c.putMany(0, 10, 10)
	applied(t, want, c.others(leader)...)
	c.disconnect(leader.name)
	failed := 0
	for i := range 5 {
		_, err := leader.group.Propose(fmt.Append(nil, "lost ", i)).Wait()
		if !errors.Is(err, raftstore.ErrUnknown) && !errors.Is(err, raftstore.ErrNotLeader) {
			t.Fatalf("a proposal to a disconnected leader: %v", err)
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
	c.reconnect(leader.name)
	applied(t, want, c.nodes["n1"], c.nodes["n2"], c.nodes["n3"])
	t.Logf("%d proposals failed; the log ended at %d", failed, stale)
	sameLog(t, c.nodes["n1"].log(), c.nodes["n2"].log())
	sameLog(t, c.nodes["n1"].log(), c.nodes["n3"].log())
}

// Only replies to heartbeats that are sent after the call of VerifyLeader
// confirm a leader. An earlier reply may arrive late, for example because the
// process was suspended, and another replica may lead by then.
func TestAnEarlierReplyDoesNotConfirmALeader(t *testing.T) {
	t.Parallel()
	c := startSlowCluster(t, 2*time.Second, "n1", "n2", "n3") // it leads for this long without replies
	leader := c.leader()
	term := leader.group.Term()
	c.put("x")
	if err := leader.group.VerifyLeader(timeout(t), term); err != nil {
		t.Fatal(err)
	}
	if err := leader.group.VerifyLeader(timeout(t), term-1); !errors.Is(err, raftstore.ErrNotLeader) {
		t.Errorf("confirmed for an earlier term: %v", err)
	}
	for _, n := range c.others(leader) {
		n.proxy.Stall(relay.Replies)
	}
	for _, n := range c.others(leader) {
		until(t, "a reply of "+n.name+" is held back", func() bool { return n.proxy.Held() > 0 })
		n.proxy.Stall(relay.Requests)
	}
	verified := make(chan error, 1)
	go func() { verified <- leader.group.VerifyLeader(timeout(t), term) }()
	until(t, "VerifyLeader is waiting", leader.group.Urgent)
	for i := range 10 { // once raft has handled these, it has handled the request of VerifyLeader too
		last := leader.log().LastIndex()
		leader.group.Propose(fmt.Append(nil, i))
		until(t, "a proposal is in the log", func() bool { return leader.log().LastIndex() > last })
	}
	for _, n := range c.others(leader) {
		n.proxy.Resume(relay.Replies)
	}
	if err := <-verified; !errors.Is(err, raftstore.ErrNotLeader) {
		t.Errorf("confirmed by earlier replies: %v", err)
	}
}

// The followers of a leader on a starved node are presumed to follow while they
// are silent. VerifyLeader does not take that for a confirmation, and does not
// flood the network with heartbeats while it waits for one.
func TestAPresumedReplyDoesNotConfirmALeader(t *testing.T) {
	t.Parallel()
	c, leader := startCluster(t, "n1", "n2", "n3")
	if err := leader.group.VerifyLeader(timeout(t), leader.group.Term()); err != nil { // the peers have replied
		t.Fatal(err)
	}
	for _, n := range c.nodes {
		n.network.Starve(time.Minute)
	}
	for _, n := range c.nodes {
		n.proxy.Stall(relay.Requests, relay.Replies)
	}
	heartbeats := func() (sent int) {
		for _, n := range c.others(leader) {
			sent += leader.network.HeartbeatsTo(n.name)
		}
		return sent
	}
	// A heartbeat that was under way when the links stalled holds up those
	// after it, until it times out.
	sent, all := 0, timeout(t)
	for sent == 0 && all.Err() == nil {
		before := heartbeats()
		ctx, cancel := context.WithTimeout(all, time.Second)
		err := leader.group.VerifyLeader(ctx, leader.group.Term())
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("confirmed without a reply: %v", err)
		}
		sent = heartbeats() - before
	}
	if sent == 0 || sent > 200 {
		t.Errorf("%d heartbeats to two peers within a second", sent)
	}
	for _, n := range c.nodes {
		n.proxy.Resume(relay.Requests, relay.Replies)
	}
	if err := leader.group.VerifyLeader(timeout(t), leader.group.Term()); err != nil {
		t.Error(err)
	}
}

// A leader can be closed while its followers are down, and every proposal gets
// an outcome.
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

// A replica that led, and whose FSM has not applied all that was committed, can
// be closed, and every proposal gets an outcome.
func TestCloseWhileTheFSMIsBehind(t *testing.T) {
	t.Parallel()
	c, leader := startCluster(t, "n1", "n2", "n3")
	leader.fsm.held, leader.fsm.hold = make(chan struct{}, 1), make(chan struct{})
	var ps []raftstore.Proposal
	for range 20 { // each is a batch of its own
		last := leader.log().LastIndex()
		ps = append(ps, leader.group.Propose([]byte("x")))
		until(t, "the entry is committed", func() bool {
			return leader.log().LastIndex() > last && leader.group.RaftCommitIndex() > last
		})
	}
	<-leader.fsm.held
	for _, n := range c.others(leader) {
		n.closeGroup()
	}
	until(t, "the leader has stepped down", func() bool { return !leader.group.Leading() })
	closed := make(chan error, 1)
	go func() { closed <- leader.group.Close() }()
	for range 100 { // raft must not shut down before the FSM has caught up
		if leader.group.Status().State == "shutdown" {
			break
		}
		time.Sleep(time.Millisecond)
	}
	close(leader.fsm.hold)
	if err := <-closed; err != nil {
		t.Error(err)
	}
	outcomes := make(chan error, len(ps))
	for _, p := range ps {
		go func() { _, err := p.Wait(); outcomes <- err }()
	}
	for range ps {
		select {
		case <-outcomes:
		case <-testkit.Soon(t).Done():
			t.Fatal("a proposal has no outcome")
		}
	}
}

// failedAppends is a log handler that counts raft's failed requests with
// entries. Raft backs off from a peer after each.
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

// A follower that was down receives new entries soon after it is up again,
// however long it was down: the transport retries on raft's behalf, so raft
// sees no failed request and does not back off.
func TestRaftDoesNotBackOffFromAFollower(t *testing.T) {
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
		until(t, "the leader retries", func() bool {
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
			t.Errorf("raft saw %d failed requests, and backs off", count)
		}
		return
	}
	t.Error("the leaders change all the time")
}

// A follower that restarts learns the commit index again, although its leader
// has sent it before and there are no new entries.
func TestARestartedFollowerLearnsTheCommitIndex(t *testing.T) {
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
