package broker

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/cantuslog/cantus/broker/cluster"
)

// absences tracks the members that are away, and the partitions without a
// leader.
type absences struct {
	self     string
	log      *slog.Logger
	started  time.Time // of this node
	peers    *peers
	replicas *replicaSet
	facts    func() (facts cluster.Facts, changed <-chan struct{})

	mu   sync.Mutex
	away map[string]time.Time // by member: since when it is away
	said map[string]said      // by member
	led  map[int]time.Time    // by partition: when this node last heard of its leader
}

// run logs when a member goes away and when it comes back, until ctx ends.
func (a *absences) run(ctx context.Context) {
	tick := time.NewTicker(announceInterval)
	defer tick.Stop()
	for {
		facts, changed := a.facts()
		a.look(time.Now())
		look := tick.C
		if len(facts.Nodes) < 2 {
			look = nil // there is no other node
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-look:
		}
	}
}

// look updates away and led, and logs what changes in away.
func (a *absences) look(now time.Time) {
	facts, _ := a.facts()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lookForLeaders(now)
	for name := range facts.Nodes {
		if name == a.self {
			continue
		}
		q, heard := a.peers.get(name)
		since, was := a.away[name]
		switch alive := heard && now.Sub(q.at) < aliveTime; {
		case alive && was:
			delete(a.away, name)
			a.say(name, false, now, "node is back", "after", now.Sub(since).Round(time.Second/10))
		case alive:
			a.say(name, false, now, "node is back")
		case was:
			a.say(name, true, now, "node is away", "since", since.UTC().Format(time.RFC3339))
		case heard:
			a.away[name] = q.at
			a.say(name, true, now, "node is away", "since", q.at.UTC().Format(time.RFC3339))
		case now.Sub(a.started) > aliveTime:
			a.away[name] = a.started.Local()
			a.say(name, true, now, "node is away", "since", "this node started")
		}
	}
	for name := range a.away {
		if _, member := facts.Nodes[name]; !member {
			delete(a.away, name)
			delete(a.said, name)
		}
	}
}

// said is what was last logged of a member.
type said struct {
	away   bool
	recent []time.Time // when that was logged, and what was logged before it
}

// maxSaid is how many lines a minute are logged of one member: a node that
// comes and goes all the time must not fill the log.
const maxSaid = 4

// say logs whether a member is away, unless that was logged last, or too much
// was logged lately. In that case it is logged by a later call, if it is still
// so. mu is held.
func (a *absences) say(name string, away bool, now time.Time, msg string, args ...any) {
	s := a.said[name]
	if s.away == away {
		return
	}
	s.recent = slices.DeleteFunc(s.recent, func(at time.Time) bool { return now.Sub(at) >= time.Minute })
	if len(s.recent) >= maxSaid {
		return
	}
	s.away, s.recent = away, append(s.recent, now)
	a.said[name] = s
	level := slog.LevelInfo
	if away {
		level = slog.LevelWarn
	}
	a.log.Log(context.Background(), level, msg, append([]any{"node", name}, args...)...)
}

// lookForLeaders updates led. mu is held.
func (a *absences) lookForLeaders(now time.Time) {
	for partition, at := range a.peers.leading(now) {
		a.led[partition] = at
	}
	for p := range a.replicas.open() {
		if p.group.Leading() {
			a.led[p.id] = now
		}
	}
}

// leaderlessSince returns when this node last heard of a partition's leader. It
// is zero if it has heard of none since it started, and on a node that has no
// others, which does not look again and again.
func (a *absences) leaderlessSince(partition int) time.Time {
	facts, _ := a.facts()
	a.mu.Lock()
	defer a.mu.Unlock()
	if at, heard := a.led[partition]; heard && len(facts.Nodes) > 1 {
		return at.UTC()
	}
	return time.Time{}
}

// since returns when a member that is away was last heard, zero if it is not
// away, or was away when this node started.
func (a *absences) since(name string) time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	if at := a.away[name]; !at.Equal(a.started) {
		return at.UTC()
	}
	return time.Time{}
}
