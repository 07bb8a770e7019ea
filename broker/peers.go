package broker

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cantuslog/cantus/broker/cluster"
)

const (
	announceInterval = 500 * time.Millisecond
	// aliveTime is how long a node counts as alive after its last announcement.
	aliveTime = 5 * announceInterval
)

// peers holds the newest announcement of each other member, and the candidates.
//
// A signed announcement may be a replay. So each node lists, in its
// announcements, the instances that it hears, with the newest number of each.
// The first announcement of an instance is accepted only if it lists this
// node's own instance with a number that this node had not yet sent when it
// last accepted another instance of that name. From then on the numbers must
// rise. This needs no clock, nothing on disk, and no messages of its own.
type peers struct {
	self       string        // this node's instance
	sent       func() uint64 // the newest number that this node has sent
	candidates *candidates

	mu       sync.Mutex
	heard    map[string]peer
	pending  map[string][]pending // by name: instances that are not accepted yet, the newest first
	switched map[string]uint64    // by name: the newest number sent when an instance was last accepted
	changed  chan struct{}        // closed at the next announcement, then replaced
}

// seen is an instance of a node, and the number of its newest envelope.
type seen struct {
	Instance string `json:"instance"`
	Number   uint64 `json:"number"`
}

// pending is an instance that is not accepted yet.
type pending struct {
	seen
	at time.Time
}

const (
	// pendingTime is how long an instance is remembered that is not accepted.
	pendingTime = 10 * time.Second
	// maxPending bounds the instances of one name that are not accepted yet.
	maxPending = 4
	// maxPeers bounds the names of nodes with the secret that are remembered.
	maxPeers = 1024
)

// peer is another node.
type peer struct {
	announcement
	number uint64
	at     time.Time // of the last announcement
	since  time.Time // since when it has been heard without a pause
}

func newPeers(instance string, sent func() uint64) *peers {
	return &peers{
		self: instance, sent: sent, candidates: newCandidates(), heard: map[string]peer{},
		pending: map[string][]pending{}, switched: map[string]uint64{}, changed: make(chan struct{}),
	}
}

// fresh reports whether a signed announcement is not a replay. unheard says
// that its instance was unknown; this node should announce at once that it
// hears it. An instance is listed as heard even if its first announcement is
// fresh. This node may refuse it as a member, and must be able to tell it so:
// a node believes only those that hear it.
func (p *peers) fresh(a announcement, number uint64, now time.Time) (fresh, unheard bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if last, known := p.heard[a.Name]; known && last.Instance == a.Instance {
		return number > last.number, false
	}
	p.forget(now)
	return p.heardUs(a), p.hear(a, number, now)
}

// hear records an instance as pending. It reports whether the instance was
// unknown. If too many names are pending, it records nothing. mu is held.
func (p *peers) hear(a announcement, number uint64, now time.Time) (unheard bool) {
	all, known := p.pending[a.Name]
	if !known && len(p.pending) >= maxPeers {
		return false
	}
	if i := slices.IndexFunc(all, func(q pending) bool { return q.Instance == a.Instance }); i >= 0 {
		all[i].Number = max(all[i].Number, number)
		return false
	}
	all = slices.Insert(all, 0, pending{seen{a.Instance, number}, now})
	p.pending[a.Name] = all[:min(len(all), maxPending)]
	return true
}

// heardUs reports whether an announcement was sent after this node had last
// accepted an instance of that name. mu is held.
func (p *peers) heardUs(a announcement) bool {
	return slices.ContainsFunc(a.Heard, func(s seen) bool { return s.Instance == p.self && s.Number > p.switched[a.Name] })
}

// accept records an announcement that is fresh. It reports whether it is the
// first of its instance.
func (p *peers) accept(a announcement, number uint64, now time.Time) (first bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	last, known := p.heard[a.Name]
	if known && last.Instance != a.Instance && last.Started.After(a.Started) && now.Sub(last.at) < aliveTime {
		return false // of two running instances with one name, the later one counts
	}
	if !known && len(p.heard) >= maxPeers {
		return false
	}
	first = !known || last.Instance != a.Instance
	since := last.since
	if first || now.Sub(last.at) > aliveTime {
		since = now
	}
	if first {
		p.switched[a.Name] = p.sent()
		p.pending[a.Name] = slices.DeleteFunc(p.pending[a.Name], func(q pending) bool { return q.Instance == a.Instance })
	}
	p.heard[a.Name] = peer{announcement: a, number: number, at: now, since: since}
	close(p.changed)
	p.changed = make(chan struct{})
	return first
}

// heardNow returns the instances that are heard, accepted or not.
func (p *peers) heardNow(now time.Time) []seen {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []seen
	for _, name := range slices.Sorted(maps.Keys(p.heard)) {
		if q := p.heard[name]; now.Sub(q.at) < aliveTime {
			all = append(all, seen{q.Instance, q.number})
		}
	}
	p.forget(now)
	for _, name := range slices.Sorted(maps.Keys(p.pending)) {
		for _, q := range p.pending[name] {
			all = append(all, q.seen)
		}
	}
	return all
}

// forget forgets instances that have not been accepted within pendingTime. mu
// is held.
func (p *peers) forget(now time.Time) {
	for name, all := range p.pending {
		all = slices.DeleteFunc(all, func(q pending) bool { return now.Sub(q.at) > pendingTime })
		if p.pending[name] = all; len(all) == 0 {
			delete(p.pending, name)
		}
	}
}

// wake closes the channel that next has returned.
func (p *peers) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.changed)
	p.changed = make(chan struct{})
}

// get returns a node's last announcement, if there is one.
func (p *peers) get(name string) (peer, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	q, ok := p.heard[name]
	return q, ok
}

// notReading returns a member that was heard and does not read records of a
// version, "" for none.
func (p *peers) notReading(version int, members map[string]cluster.Member) (name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for member := range members {
		if q, ok := p.heard[member]; ok && q.Records < version && (name == "" || member < name) {
			name = member
		}
	}
	return name
}

// setFull records that a node is full, until its next announcement.
func (p *peers) setFull(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if q, ok := p.heard[name]; ok {
		q.Full = true
		p.heard[name] = q
	}
}

// all returns the nodes that were heard within aliveTime, in order of names.
func (p *peers) all(now time.Time) []peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	var alive []peer
	for _, name := range slices.Sorted(maps.Keys(p.heard)) {
		if q := p.heard[name]; now.Sub(q.at) < aliveTime {
			alive = append(alive, q)
		}
	}
	return alive
}

// leading returns the partitions of which a living node says that it leads
// them, with the time of its last announcement.
func (p *peers) leading(now time.Time) map[int]time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	led := map[int]time.Time{}
	for _, q := range p.heard {
		if now.Sub(q.at) >= aliveTime {
			continue
		}
		for _, r := range q.Groups {
			if r.leads() && q.at.After(led[r.Partition]) {
				led[r.Partition] = q.at
			}
		}
	}
	return led
}

// clocks returns what the clocks of the nodes show that were heard within
// aliveTime, as far as that is known.
func (p *peers) clocks(now time.Time) (all []time.Time) {
	for _, q := range p.all(now) {
		if !q.Clock.IsZero() {
			all = append(all, q.Clock.Add(now.Sub(q.at)))
		}
	}
	return all
}

// next returns a channel that is closed when the next announcement is heard.
func (p *peers) next() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

// alive reports whether a node was heard within aliveTime and is not stopping.
func (p *peers) alive(name string, now time.Time) bool {
	q, ok := p.get(name)
	return ok && now.Sub(q.at) < aliveTime && !q.Leaving
}

// steady reports whether a node has been alive for at least a time.
func (p *peers) steady(name string, least time.Duration, now time.Time) bool {
	q, ok := p.get(name)
	return ok && p.alive(name, now) && now.Sub(q.since) >= least
}

// report returns a living node's report of its replica of a partition.
func (p *peers) report(name string, partition int, now time.Time) (groupReport, bool) {
	q, ok := p.get(name)
	if !ok || now.Sub(q.at) >= aliveTime {
		return groupReport{}, false
	}
	return q.group(partition)
}

// leader returns the leader of a partition and its report. If several nodes
// report that they lead, it returns the one with the highest term.
func (p *peers) leader(partition int, now time.Time) (name string, r groupReport, ok bool) {
	for _, q := range p.all(now) {
		if g, has := p.report(q.Name, partition, now); has && g.leads() && (!ok || g.Term > r.Term) {
			name, r, ok = q.Name, g, true
		}
	}
	return name, r, ok
}
