package broker

import (
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	helloInterval = 500 * time.Millisecond
	// aliveTime is how long a node counts as alive after its last hello.
	aliveTime = 5 * helloInterval
)

// peers are the other members, as they say of themselves, and the candidates.
//
// A hello that was signed may be an old one that somebody sends again. So each
// node lists the instances that it hears, with the newest number of each. What an
// instance says first is believed when it lists this node's own instance with a
// number that this node had not sent when it last believed another instance of
// that name; from then on numbers rise. That needs no clock, nothing that is
// kept on disk, and no message of its own.
type peers struct {
	self       string // this node's instance
	said       func() uint64
	candidates *candidates

	mu       sync.Mutex
	heard    map[string]peer
	pending  map[string][]pending // by name: instances that are not believed yet, the newest first
	switched map[string]uint64    // by name: what this node had said when it last believed a new instance
	changed  chan struct{}        // closed at the next hello, then replaced
}

// seen is an instance of a node, and the number of the newest envelope of it.
type seen struct {
	Instance string `json:"instance"`
	Number   uint64 `json:"number"`
}

// pending is an instance that is not believed yet.
type pending struct {
	seen
	at time.Time
}

const (
	// pendingTime is how long an instance is remembered that is not believed.
	pendingTime = 10 * time.Second
	// maxPending bounds the instances of one name that are not believed yet.
	maxPending = 4
	// maxPeers bounds the names that are remembered of holders of the secret.
	maxPeers = 1024
)

// peer is another node.
type peer struct {
	hello
	number uint64
	at     time.Time // of the last hello
	since  time.Time // when it was first heard without a pause after
}

func newPeers(instance string, said func() uint64) *peers {
	return &peers{
		self: instance, said: said, candidates: newCandidates(), heard: map[string]peer{},
		pending: map[string][]pending{}, switched: map[string]uint64{}, changed: make(chan struct{}),
	}
}

// fresh reports whether a hello that was signed is no old one. unheard says that
// its instance was not known, so that this node is to say that it hears it.
func (p *peers) fresh(h hello, number uint64, now time.Time) (fresh, unheard bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if last, known := p.heard[h.Name]; known && last.Instance == h.Instance {
		return number > last.number, false
	}
	if p.heardUs(h) {
		return true, false
	}
	p.forget(now)
	if _, known := p.pending[h.Name]; !known && len(p.pending) >= maxPeers {
		return false, false
	}
	all := p.pending[h.Name]
	if i := slices.IndexFunc(all, func(q pending) bool { return q.Instance == h.Instance }); i >= 0 {
		all[i].Number = max(all[i].Number, number)
		return false, false
	}
	all = slices.Insert(all, 0, pending{seen{h.Instance, number}, now})
	p.pending[h.Name] = all[:min(len(all), maxPending)]
	return false, true
}

// heardUs reports whether a hello was said after this node had last believed a
// new instance of that name. mu is held.
func (p *peers) heardUs(h hello) bool {
	return slices.ContainsFunc(h.Heard, func(s seen) bool { return s.Instance == p.self && s.Number > p.switched[h.Name] })
}

// believe takes in a hello that is fresh; anew is true for a node that has begun
// anew.
func (p *peers) believe(h hello, number uint64, now time.Time) (anew bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	last, known := p.heard[h.Name]
	if known && last.Instance != h.Instance && last.Started.After(h.Started) && now.Sub(last.at) < aliveTime {
		return false // two go by this name: the later one is listened to until it goes
	}
	if !known && len(p.heard) >= maxPeers {
		return false
	}
	anew = !known || last.Instance != h.Instance
	since := last.since
	if anew || now.Sub(last.at) > aliveTime {
		since = now
	}
	if anew {
		p.switched[h.Name] = p.said()
		p.pending[h.Name] = slices.DeleteFunc(p.pending[h.Name], func(q pending) bool { return q.Instance == h.Instance })
	}
	p.heard[h.Name] = peer{hello: h, number: number, at: now, since: since}
	close(p.changed)
	p.changed = make(chan struct{})
	return anew
}

// heardNow lists the instances that are heard, believed or not.
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

// forget drops instances that were not believed for long. mu is held.
func (p *peers) forget(now time.Time) {
	for name, all := range p.pending {
		all = slices.DeleteFunc(all, func(q pending) bool { return now.Sub(q.at) > pendingTime })
		if p.pending[name] = all; len(all) == 0 {
			delete(p.pending, name)
		}
	}
}

// wake has those go on that wait for something to be heard.
func (p *peers) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.changed)
	p.changed = make(chan struct{})
}

// get returns what a node last said, if anything.
func (p *peers) get(name string) (peer, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	q, ok := p.heard[name]
	return q, ok
}

// setFull notes that a node is full, until its next hello says whether it is.
func (p *peers) setFull(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if q, ok := p.heard[name]; ok {
		q.Full = true
		p.heard[name] = q
	}
}

// all returns every node that was heard lately, in order of names.
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

// next is closed when anything is heard after the call.
func (p *peers) next() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

// alive reports whether a node was heard lately and is not stopping.
func (p *peers) alive(name string, now time.Time) bool {
	q, ok := p.get(name)
	return ok && now.Sub(q.at) < aliveTime && !q.Leaving
}

// steady reports whether a node has been alive for at least a time.
func (p *peers) steady(name string, for_ time.Duration, now time.Time) bool {
	q, ok := p.get(name)
	return ok && p.alive(name, now) && now.Sub(q.since) >= for_
}

// report returns what a living node says of its replica of a partition.
func (p *peers) report(name string, partition int, now time.Time) (groupReport, bool) {
	q, ok := p.get(name)
	if !ok || now.Sub(q.at) >= aliveTime {
		return groupReport{}, false
	}
	i, ok := slices.BinarySearchFunc(q.Groups, partition, func(r groupReport, p int) int { return r.Partition - p })
	if !ok {
		return groupReport{}, false
	}
	return q.Groups[i], true
}

// leader returns the newest leader's report of a partition, and its node.
func (p *peers) leader(partition int, now time.Time) (name string, r groupReport, ok bool) {
	for _, q := range p.all(now) {
		if g, has := p.report(q.Name, partition, now); has && g.leads() && (!ok || g.Term > r.Term) {
			name, r, ok = q.Name, g, true
		}
	}
	return name, r, ok
}
