package raftstore

import (
	"testing"
	"time"
)

func TestTimeoutsFollowLateness(t *testing.T) {
	const base = 500 * time.Millisecond
	var s starvation
	at := time.Now()
	want := func(want time.Duration, when string) {
		t.Helper()
		if got := s.timeout(base, at); got != want {
			t.Errorf("%s: a timeout of %v, want %v", when, got, want)
		}
	}
	want(base, "nothing is measured yet")
	s.recordTick(at, at.Add(starvationTick))
	at = at.Add(starvationTick + time.Millisecond)
	s.recordTick(at, at.Add(starvationTick))
	want(base, "a millisecond late")
	at = at.Add(starvationTick + 200*time.Millisecond)
	want(lateFactor*200*time.Millisecond, "overdue by 200 ms, and the ticker has not run yet")
	s.recordTick(at, at.Add(starvationTick))
	at = at.Add(starvationTick)
	want(lateFactor*200*time.Millisecond, "200 ms late a moment ago")
	for range int(starvationWindow/starvationTick) / 2 {
		s.recordTick(at, at.Add(starvationTick))
		at = at.Add(starvationTick)
	}
	want(lateFactor*200*time.Millisecond, "200 ms late in the window")
	for range 2 * int(starvationWindow/starvationTick) {
		s.recordTick(at, at.Add(starvationTick))
		at = at.Add(starvationTick)
	}
	want(base, "in time for two windows")
	at = at.Add(time.Hour)
	want(maxTimeout, "an hour overdue")
}

func TestTimeoutsFollowGapsBetweenHeartbeats(t *testing.T) {
	const base = 500 * time.Millisecond
	var s starvation
	at := time.Now()
	hear := func(peer string, gap time.Duration) {
		at = at.Add(gap)
		s.recordArrival(peer, at)
	}
	hear("n2", 0)
	hear("n2", 100*time.Millisecond)
	if got := s.timeout(base, at); got != base {
		t.Errorf("heartbeats in time: a timeout of %v", got)
	}
	hear("n2", 400*time.Millisecond)
	if got := s.timeout(base, at); got != gapFactor*400*time.Millisecond {
		t.Errorf("after a gap of 400 ms: a timeout of %v", got)
	}
	hear("n2", 1100*time.Millisecond)
	if got := s.timeout(base, at); got != gapFactor*1100*time.Millisecond {
		t.Errorf("after a gap of 1.1 s, which is shorter than the adapted timeout: a timeout of %v", got)
	}
	s.forgetPeer("n2")
	if got := s.timeout(base, at); got != base {
		t.Errorf("the peer is gone: a timeout of %v", got)
	}
	hear("n3", 0)
	hear("n3", time.Minute)
	if got := s.timeout(base, at); got != base {
		t.Errorf("a peer that led nothing for a minute: a timeout of %v", got)
	}
}

// A silent peer is presumed to follow, one that has rejected the term is not.
func TestOnlySilenceIsPresumed(t *testing.T) {
	tr := &transport{endpoint: &endpoint{network: &Network{}}, heartbeatTimeout: time.Second}
	tr.endpoint.network.starved.fixed = time.Minute
	p := &peer{}
	p.lastContact.Store(time.Now().UnixNano())
	if !tr.presumesFollowing(p, 5) {
		t.Error("a peer that has just replied is not presumed to follow")
	}
	p.rejectedTerm.Store(5)
	if tr.presumesFollowing(p, 5) {
		t.Error("a peer that has rejected term 5 is presumed to follow in it")
	}
	if !tr.presumesFollowing(p, 6) {
		t.Error("a peer that has rejected term 5 is not presumed to follow in term 6")
	}
}

// Starve sets the timeout of the node's groups, as if the node had been late.
func (n *Network) Starve(timeout time.Duration) {
	n.starved.mu.Lock()
	defer n.starved.mu.Unlock()
	n.starved.fixed = timeout
}

// SilentFor returns the time since a leader has last received a reply to a
// heartbeat.
func (g *Group) SilentFor() time.Duration {
	newest := int64(0)
	for _, r := range g.replicas() {
		newest = max(newest, g.lastContact(r.Name))
	}
	return time.Since(time.Unix(0, newest))
}
