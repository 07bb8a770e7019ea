package raftstore

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// A node with more work than its processors can do is late with everything, its
// heartbeats included: Go has no priorities. Raft would then elect another
// leader, which has as little time, and the work of elections would add to the
// load. So the timeouts adapt, as in an accrual failure detector (Hayashibara
// et al., "The φ Accrual Failure Detector", 2004), in three steps:
//
//   - Each node measures how late its own goroutines run, and how far apart the
//     heartbeats of each peer arrive.
//   - A follower waits several times as long as what it measured before it
//     stands for election.
//   - A leader that is late itself does not take the silence of a follower for
//     a lost connection. It leads for as long as its followers wait.
//
// Only the speed of a failover depends on this. A leader whose process dies is
// still replaced at once, since its connections break (failover.go), and reads
// that must be current are confirmed by real replies ([Group.VerifyLeader]).
const (
	// starvationTick is how often the node measures how late it runs.
	starvationTick = 50 * time.Millisecond
	// starvationWindow is how long a measurement counts, at least.
	starvationWindow = 5 * time.Second
	// lateFactor is the timeout as a multiple of the node's own lateness: a
	// heartbeat and its reply wait for a processor about five times, on two
	// nodes.
	lateFactor = 10
	// gapFactor is the timeout as a multiple of the longest gap between
	// heartbeats. A leader that is on time leaves gaps of less than a third of
	// the heartbeat timeout.
	gapFactor = 3
	// longGap is the length up to which a gap counts while the timeouts are
	// shorter.
	longGap = time.Second
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

// starvation is what a node measures of its own lateness and of its peers. It
// is safe for concurrent use.
type starvation struct {
	mu    sync.Mutex
	due   time.Time // when the ticker should run next
	late  peak
	fixed time.Duration // for tests: the timeout, if it is not 0
	peers map[string]*arrivals
}

// arrivals are the arrivals of a peer's heartbeats.
type arrivals struct {
	last time.Time
	gap  peak
}

// recordTick records that the ticker ran, and when it is due next.
func (s *starvation) recordTick(now, next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.due.IsZero() {
		s.late.add(now.Sub(s.due), now)
	}
	s.due = next
}

// recordArrival records heartbeats of a peer. A gap so long that followers have
// given the peer up does not count: it did not lead, or was away.
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
	if gap := now.Sub(a.last); gap < max(longGap, s.timeoutLocked(now)) {
		a.gap.add(gap, now)
	}
	a.last = now
}

// forgetPeer forgets a peer's arrivals: its connection is gone.
func (s *starvation) forgetPeer(peer string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.peers, peer)
}

// latenessLocked returns how late the node has been lately, including a tick
// that is overdue now. mu is held.
func (s *starvation) latenessLocked(now time.Time) time.Duration {
	late := s.late.max(now)
	if !s.due.IsZero() {
		late = max(late, now.Sub(s.due))
	}
	return late
}

// timeout returns how long a replica whose timeout is base waits at present.
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

// watchStarvation measures how late the node is and adapts the timeouts of its
// groups, until the network is closed.
func (n *Network) watchStarvation() {
	tick := time.NewTimer(starvationTick)
	defer tick.Stop()
	for {
		now := time.Now()
		n.starved.recordTick(now, now.Add(starvationTick))
		tick.Reset(starvationTick)
		n.adapt(now)
		select {
		case <-n.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// recordTimeout records a group's heartbeat timeout, if it is the shortest.
func (n *Network) recordTimeout(timeout time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.shortest == 0 || timeout < n.shortest {
		n.shortest = timeout
	}
}

// adapt sets the timeouts that all groups need now. It does nothing while the
// node is on time.
func (n *Network) adapt(now time.Time) {
	n.mu.Lock()
	late := n.starved.timeout(0, now) > n.shortest
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
		if g.raft.State() != raft.Leader { // a leader would send heartbeats less often
			want = n.starved.timeout(g.heartbeatTimeout, now)
		}
		g.setTimeout(want)
	}
}

// setTimeout changes how long raft waits for its leader, if the difference is
// large enough to matter.
func (g *Group) setTimeout(want time.Duration) {
	have := g.raft.ReloadableConfig()
	if want != g.heartbeatTimeout && want < have.HeartbeatTimeout*5/4 && want > have.HeartbeatTimeout*3/5 ||
		want == have.HeartbeatTimeout {
		return
	}
	have.HeartbeatTimeout, have.ElectionTimeout = want, max(want, g.electionTimeout)
	if err := g.raft.ReloadConfig(have); err != nil {
		g.warn("the timeouts can't be adapted", "timeout", want, "err", err)
	}
}

// presumesFollowing reports whether this node is so late that the silence of a
// peer says nothing of the peer yet. A peer that has rejected a leader of this
// term is not silent.
func (t *transport) presumesFollowing(p *peer, term uint64) bool {
	if p.rejectedTerm.Load() >= term {
		return false
	}
	now := time.Now()
	timeout := t.end.network.starved.timeout(t.heartbeatTimeout, now)
	silent := now.Sub(time.Unix(0, p.lastContact.Load()))
	return timeout > t.heartbeatTimeout && silent < timeout*4/5
}
