package raftstore

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// A node with more work than its processors can do is late with everything, its
// heartbeats included: Go's scheduler has no priorities. Raft would then elect
// another leader, which is as starved as the first, and the elections would add
// to the load. So the timeouts adapt, as in an accrual failure detector
// (Hayashibara et al., "The φ Accrual Failure Detector", 2004):
//
//   - Each node measures how late its own goroutines run, and how far apart the
//     heartbeats of each peer arrive.
//   - A follower waits a multiple of the measured time before it starts an
//     election.
//   - A leader on a late node does not take the silence of a follower for a
//     lost connection. It leads for as long as its followers wait.
//
// Only the speed of a failover depends on this. A leader whose process dies is
// still replaced at once, since its connections break (failover.go), and
// linearizable reads are confirmed by real replies ([Group.VerifyLeader]).
//
// One goroutine for each network, watchStarvation, measures and adapts the
// timeouts on every tick. The goroutines that receive heartbeats record their
// arrival, and those that send them read the current timeout. starvation.mu
// guards the measurements and is held only briefly; Network.mu may be held when
// it is locked, but not the other way round.
const (
	// starvationTick is the interval at which the node measures its lateness.
	starvationTick = 50 * time.Millisecond
	// starvationWindow is the minimum time for which a measurement counts.
	starvationWindow = 5 * time.Second
	// lateFactor is the timeout as a multiple of the node's own lateness. A
	// heartbeat and its reply wait for a processor about five times on each of
	// two nodes.
	lateFactor = 10
	// gapFactor is the timeout as a multiple of the longest gap between
	// heartbeats. The gaps of a leader that is on time are shorter than a third
	// of the heartbeat timeout.
	gapFactor = 3
	// minGapLimit is the minimum of the limit above which a gap does not count;
	// the limit is the timeout, if that is longer.
	minGapLimit = time.Second
	// maxTimeout bounds the adapted timeouts.
	maxTimeout = 10 * time.Second
)

// peak is a maximum over the last one to two windows.
type peak struct {
	current, previous time.Duration
	began             time.Time // of the current window
}

func (p *peak) add(d time.Duration, now time.Time) {
	p.rotate(now)
	p.current = max(p.current, d)
}

func (p *peak) max(now time.Time) time.Duration {
	p.rotate(now)
	return max(p.current, p.previous)
}

func (p *peak) rotate(now time.Time) {
	switch age := now.Sub(p.began); {
	case age > 2*starvationWindow:
		*p = peak{began: now}
	case age > starvationWindow:
		*p = peak{previous: p.current, began: now}
	}
}

// starvation holds a node's measurements of its own lateness and of its peers'
// heartbeats. It is safe for concurrent use.
type starvation struct {
	mu    sync.Mutex // guards all fields
	due   time.Time  // when the next tick is due
	late  peak
	fixed time.Duration // if not 0, the timeout; set by tests
	peers map[string]*arrivals
}

// arrivals measures the arrivals of a peer's heartbeats.
type arrivals struct {
	last time.Time
	gap  peak
}

// recordTick records a tick, and when the next is due.
func (s *starvation) recordTick(now, next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.due.IsZero() {
		s.late.add(now.Sub(s.due), now)
	}
	s.due = next
}

// recordArrival records the arrival of a peer's heartbeats. A gap that is
// longer than the timeout does not count: the peer led no group, or was
// unreachable.
func (s *starvation) recordArrival(peer string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.peers[peer]
	if a == nil {
		a = &arrivals{}
		if s.peers == nil {
			s.peers = map[string]*arrivals{}
		}
		s.peers[peer] = a
	}
	if gap := now.Sub(a.last); gap < max(minGapLimit, s.timeoutLocked(now)) {
		a.gap.add(gap, now)
	}
	a.last = now
}

// forgetPeer deletes the measurements of a peer whose last connection has
// closed.
func (s *starvation) forgetPeer(peer string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.peers, peer)
}

// latenessLocked returns the node's recent lateness, including that of a tick
// that is overdue now.
func (s *starvation) latenessLocked(now time.Time) time.Duration {
	late := s.late.max(now)
	if !s.due.IsZero() {
		late = max(late, now.Sub(s.due))
	}
	return late
}

// timeout returns the current timeout of a replica whose own timeout is base.
func (s *starvation) timeout(base time.Duration, now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(base, s.timeoutLocked(now))
}

func (s *starvation) timeoutLocked(now time.Time) time.Duration {
	if s.fixed != 0 {
		return s.fixed
	}
	want := lateFactor * s.latenessLocked(now)
	for _, a := range s.peers {
		want = max(want, gapFactor*a.gap.max(now))
	}
	return min(want, maxTimeout)
}

// watchStarvation measures the node's lateness and adapts the timeouts of its
// groups, until the network is closed.
func (n *Network) watchStarvation() {
	tick := time.NewTimer(starvationTick)
	defer tick.Stop()
	for {
		now := time.Now()
		n.starved.recordTick(now, now.Add(starvationTick))
		tick.Reset(starvationTick)
		n.adaptTimeouts(now)
		select {
		case <-n.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// recordTimeout lowers shortestTimeout to a group's heartbeat timeout.
func (n *Network) recordTimeout(timeout time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.shortestTimeout == 0 || timeout < n.shortestTimeout {
		n.shortestTimeout = timeout
	}
}

// adaptTimeouts sets the current timeouts of all groups. It does nothing while
// the node is on time.
func (n *Network) adaptTimeouts(now time.Time) {
	n.mu.Lock()
	late := n.starved.timeout(0, now) > n.shortestTimeout
	if !late && !n.adapted {
		n.mu.Unlock()
		return
	}
	n.adapted = late
	groups := make([]*Group, 0, len(n.groups))
	for _, e := range n.groups {
		if g := e.group.Load(); g != nil {
			groups = append(groups, g)
		}
	}
	n.mu.Unlock()
	for _, g := range groups {
		want := g.heartbeatTimeout
		if g.raft.State() != raft.Leader { // a longer timeout would make a leader send heartbeats less often
			want = n.starved.timeout(g.heartbeatTimeout, now)
		}
		g.setTimeout(want)
	}
}

// setTimeout changes raft's heartbeat timeout, if the difference is large
// enough to matter.
func (g *Group) setTimeout(want time.Duration) {
	config := g.raft.ReloadableConfig()
	if want != g.heartbeatTimeout && want < config.HeartbeatTimeout*5/4 && want > config.HeartbeatTimeout*3/5 ||
		want == config.HeartbeatTimeout {
		return
	}
	config.HeartbeatTimeout, config.ElectionTimeout = want, max(want, g.electionTimeout)
	if err := g.raft.ReloadConfig(config); err != nil {
		g.warn("the timeouts can't be adapted", "timeout", want, "err", err)
	}
}

// presumesFollowing reports whether a peer should be presumed to follow
// although it is silent, because this node is late itself. A peer that has
// rejected this term or a newer one of this replica's is not presumed to
// follow.
func (t *transport) presumesFollowing(p *peer, term uint64) bool {
	if p.rejectedTerm.Load() >= term {
		return false
	}
	now := time.Now()
	timeout := t.endpoint.network.starved.timeout(t.heartbeatTimeout, now)
	silent := now.Sub(time.Unix(0, p.lastContact.Load()))
	return timeout > t.heartbeatTimeout && silent < timeout*4/5
}
