package broker

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/wal"
)

// protocolVersion is what nodes speak among themselves: hellos, facts, and
// what they ask of each other. Nodes of different versions don't form a
// cluster: see docs/adr/0008.
const protocolVersion = 1

// hello is what a node says of itself to the others, again and again.
type hello struct {
	Name     string    `json:"name"`
	NodeID   string    `json:"node_id"`
	Instance string    `json:"instance"` // new at each start
	Started  time.Time `json:"started"`
	Version  string    `json:"version"`
	Protocol int       `json:"protocol"`

	Cluster    string            `json:"cluster"`
	ClusterID  string            `json:"cluster_id,omitempty"` // empty until it is founded or has joined
	Partitions int               `json:"partitions,omitempty"`
	Replicas   int               `json:"replicas,omitempty"`
	Bootstrap  []string          `json:"bootstrap,omitempty"` // while it waits for the other founders
	Founders   map[string]string `json:"founders,omitempty"`
	Founded    time.Time         `json:"founded,omitzero"`

	Raft    string   `json:"raft"`
	Standby bool     `json:"standby,omitempty"`
	Ready   bool     `json:"ready,omitempty"`
	Unready string   `json:"unready,omitempty"` // why not
	Leaving bool     `json:"leaving,omitempty"` // it is being stopped
	Full    bool     `json:"full,omitempty"`    // its disk has no room for transactions
	Facts   uint64   `json:"facts,omitempty"`   // the version that it has applied
	Members []string `json:"members,omitempty"`

	Meta   *groupReport  `json:"meta,omitempty"`
	Groups []groupReport `json:"groups,omitempty"`
}

// groupReport is what a node says of one of its replicas.
type groupReport struct {
	Partition int             `json:"partition"`
	State     string          `json:"state"`
	Serves    bool            `json:"serves,omitempty"` // it leads, and takes requests
	Term      uint64          `json:"term"`
	Applied   uint64          `json:"applied"` // index
	Commit    uint64          `json:"commit"`  // index, as far as it knows
	Txid      uint64          `json:"txid"`
	First     uint64          `json:"first"`
	Digests   []wal.Base      `json:"digests,omitempty"`
	Fenced    string          `json:"fenced,omitempty"`
	Voters    map[string]bool `json:"voters,omitempty"` // the group's members, by a leader

	behind uint64 // how many entries more this node's replica had applied when it came
}

// leads tells whether the report is a leader's.
func (r groupReport) leads() bool { return r.State == "leader" }

const (
	helloInterval = 500 * time.Millisecond
	// aliveTime is how long a node counts as alive after its last hello.
	aliveTime = 5 * helloInterval
)

// peers are the other nodes, as they say of themselves.
type peers struct {
	self string // this node's name

	mu      sync.Mutex
	heard   map[string]peer
	changed chan struct{} // closed at the next hello, then replaced
}

// peer is another node.
type peer struct {
	hello
	at    time.Time // of the last hello
	since time.Time // when it was first heard without a pause after
}

func newPeers(self string) *peers {
	return &peers{self: self, heard: map[string]peer{}, changed: make(chan struct{})}
}

// hear takes a hello; fresh is true for a node that has begun anew.
func (p *peers) hear(h hello, now time.Time) (fresh bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	last, known := p.heard[h.Name]
	if known && last.Instance != h.Instance && last.Started.After(h.Started) && now.Sub(last.at) < aliveTime {
		return false // two go by this name: the later one is listened to until it goes
	}
	fresh = !known || last.Instance != h.Instance
	since := last.since
	if fresh || now.Sub(last.at) > aliveTime {
		since = now
	}
	p.heard[h.Name] = peer{hello: h, at: now, since: since}
	close(p.changed)
	p.changed = make(chan struct{})
	return fresh
}

// get gives what a node last said, if anything.
func (p *peers) get(name string) (peer, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	q, ok := p.heard[name]
	return q, ok
}

// all gives every node that was heard lately, in order of names.
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

// alive tells whether a node was heard lately and is not stopping.
func (p *peers) alive(name string, now time.Time) bool {
	q, ok := p.get(name)
	return ok && now.Sub(q.at) < aliveTime && !q.Leaving
}

// steady tells whether a node has been alive for at least a time.
func (p *peers) steady(name string, for_ time.Duration, now time.Time) bool {
	q, ok := p.get(name)
	return ok && p.alive(name, now) && now.Sub(q.since) >= for_
}

// report gives what a living node says of its replica of a partition.
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

// leader gives the newest leader's report of a partition, and its node.
func (p *peers) leader(partition int, now time.Time) (name string, r groupReport, ok bool) {
	for _, q := range p.all(now) {
		if g, has := p.report(q.Name, partition, now); has && g.leads() && (!ok || g.Term > r.Term) {
			name, r, ok = q.Name, g, true
		}
	}
	return name, r, ok
}

// onHello takes another node's hello in.
func (n *Node) onHello(m *message) {
	var h hello
	if err := json.Unmarshal(m.payload, &h); err != nil || h.Name == "" {
		n.log.Warn("a node says what can't be read", "err", err)
		return
	}
	if h.Instance == n.instance {
		return
	}
	if err := n.checkPeer(h); err != nil {
		n.meet(h, err)
		return
	}
	if h.Name == n.opts.Name {
		return
	}
	if n.namesake(h) {
		n.complainOf(h, fmt.Errorf("%w: it has the name of a member and another data directory", ErrNameTaken))
		return
	}
	n.clear()
	n.measure(&h)
	if n.peers.hear(h, time.Now()) {
		n.helloSoon() // it does not know of us yet
	}
	n.compareDigests(h)
	n.checkMembership(h)
}

// measure notes how far behind this node's replicas those of a hello are. By the
// time somebody asks, these have more.
func (n *Node) measure(h *hello) {
	behind := func(own *raftstore.Group, r *groupReport) {
		if applied := own.Applied(); applied > r.Applied {
			r.behind = applied - r.Applied
		}
	}
	n.mu.Lock()
	meta, slots := n.meta, n.slots
	n.mu.Unlock()
	for i := range h.Groups {
		r := &h.Groups[i]
		if r.Partition < 0 || r.Partition >= len(slots) {
			continue
		}
		if p := slots[r.Partition].current(); p != nil {
			behind(p.group, r)
		}
	}
	if h.Meta != nil && meta != nil {
		behind(meta.group, h.Meta)
	}
}

// namesake tells whether a node that belongs to no cluster yet goes by the name
// of a member of this one: it must not be taken for that one while it is being
// refused.
func (n *Node) namesake(h hello) bool {
	n.mu.Lock()
	meta := n.meta
	n.mu.Unlock()
	if meta == nil || h.ClusterID != "" {
		return false
	}
	facts, _ := meta.current()
	member, is := facts.Nodes[h.Name]
	return is && member.ID != h.NodeID
}

// checkMembership stops the node when those that know more say that it is no
// member any more: it may have been removed while it was away.
func (n *Node) checkMembership(h hello) {
	n.mu.Lock()
	meta := n.meta
	n.mu.Unlock()
	if meta == nil || len(h.Members) == 0 { // a node that is starting knows of nobody yet
		return
	}
	facts, _ := meta.current()
	if h.Facts >= max(facts.Version, n.joinedAt) && !slices.Contains(h.Members, n.opts.Name) {
		n.fail(fmt.Errorf("%w: %s says so", ErrRemoved, h.Name))
	}
}

// sayHello says what this node is until n.hellos is stopped.
func (n *Node) sayHello() {
	tick := time.NewTicker(helloInterval)
	defer tick.Stop()
	for {
		if n.Err() == nil { // who has failed is away
			n.sender.send(appendPub(nil, n.names.Admin("hello"), mustJSON(n.hello())))
		}
		select {
		case <-n.helloStop:
			return
		case <-tick.C:
		case <-n.helloNow:
		}
	}
}

// helloSoon has the others hear of this node now.
func (n *Node) helloSoon() {
	select {
	case n.helloNow <- struct{}{}:
	default: // it is about to
	}
}

// hello describes this node.
func (n *Node) hello() hello {
	h := n.identityHello()
	n.mu.Lock()
	meta, slots := n.meta, n.slots
	n.mu.Unlock()
	if meta == nil {
		return h
	}
	facts, _ := meta.current()
	h.Facts, h.Members = facts.Version, facts.Names()
	r := meta.report()
	h.Meta = &r
	for _, s := range slots {
		if p := s.current(); p != nil {
			h.Groups = append(h.Groups, p.report())
		}
	}
	h.Full = n.isFull()
	h.Unready = n.unready()
	h.Ready = h.Unready == ""
	return h
}
