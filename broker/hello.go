package broker

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
)

// protocolVersion is what nodes speak among themselves: hellos, facts, and
// what they ask of each other. Nodes of different versions don't form a
// cluster: see docs/adr/0008.
const protocolVersion = 2

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

	// Heard are the instances of members that this node hears: to those it
	// proves that this hello is not an old one.
	Heard []seen `json:"heard,omitempty"`
	// Key is the public key of a node that has no cluster secret yet, and Keys
	// is the secret, sealed for each founder that showed one.
	Key  []byte            `json:"key,omitempty"`
	Keys map[string][]byte `json:"keys,omitempty"`

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
	Digests   []chainPoint    `json:"digests,omitempty"`
	Fenced    string          `json:"fenced,omitempty"`
	Full      string          `json:"full,omitempty"`   // why it takes no transactions, by a leader
	Voters    map[string]bool `json:"voters,omitempty"` // the group's members, by a leader
	// Forgot says, by a leader, of members that have lost what they acknowledged
	// to it.
	Forgot map[string]string `json:"forgot,omitempty"`

	behind uint64 // how many entries more this node's replica had applied when it came
}

// leads tells whether the report is a leader's.
func (r groupReport) leads() bool { return r.State == "leader" }

// onHello takes another node's hello in. Whatever does not prove to be from a
// holder of the cluster's secret counts for nothing but founding and joining.
func (n *Node) onHello(m *natslink.Message) {
	e, err := openEnvelope(m.Payload)
	switch {
	case err != nil:
		n.distrust("malformed", "", err)
	case e.instance == n.instance:
	case n.proved(e, m.Subject):
		n.onSigned(e)
	default:
		n.onUnsigned(e)
	}
}

// decodeHello reads the hello in an envelope, which it must agree with.
func decodeHello(e envelope) (h hello, err error) {
	if err := json.Unmarshal(e.body, &h); err != nil {
		return h, err
	}
	if h.Name != e.name || h.NodeID != e.id || h.Instance != e.instance || h.ClusterID != e.cluster || h.Protocol != e.protocol {
		return h, errors.New("the hello is another node's than the envelope")
	}
	return h, subjects.CheckKind(h.Name)
}

// onSigned takes the hello of a holder of the cluster's secret in.
func (n *Node) onSigned(e envelope) {
	h, err := decodeHello(e)
	if err != nil {
		n.distrust("malformed", e.name, err)
		return
	}
	own := n.clusterID()
	if e.cluster == "" || own == "" { // one of the two belongs to no cluster yet
		n.onCandidate(h, true)
		return
	}
	fresh, unheard := n.peers.fresh(h, e.number, time.Now())
	if unheard {
		n.helloSoon() // which is what it has to repeat
	}
	if !fresh {
		return
	}
	if err := n.checkPeer(h); err != nil {
		n.meet(h, err)
		return
	}
	if h.Name == n.opts.Name {
		return
	}
	if err := n.checkMember(h.Name, h.NodeID); err != nil {
		n.complainOf(h, err)
		return
	}
	n.takeIn(h, e.number)
	n.clear()
}

// takeIn acts on what a member says.
func (n *Node) takeIn(h hello, number uint64) {
	n.measure(&h)
	if n.peers.believe(h, number, time.Now()) {
		n.helloSoon() // it does not know of us yet
	}
	n.compareDigests(h)
	n.checkMembership(h)
}

// onUnsigned looks at what nobody vouches for: a node that is being founded, or
// waits to be added, has no secret to sign with.
func (n *Node) onUnsigned(e envelope) {
	own := n.clusterID()
	n.mu.Lock()
	secret := n.secret
	n.mu.Unlock()
	switch {
	case own != "" && e.cluster != "":
		n.distrust("signature", e.name, nil)
		if e.cluster != own {
			n.foreign(e)
		}
		return
	case secret.Token || n.opts.ClusterSecret != "" || len(e.body) > maxUnsigned:
		n.distrust("signature", e.name, nil)
		return
	}
	h, err := decodeHello(e)
	if err != nil {
		n.distrust("malformed", e.name, err)
		return
	}
	n.onCandidate(h, false)
}

// onCandidate takes in what a node says that belongs to no cluster yet, or that
// this one hears while it does not.
func (n *Node) onCandidate(h hello, proved bool) {
	joins := n.clusterID() == "" && len(n.opts.Bootstrap) == 0 // it asks, and hears what is wrong
	if err := n.checkPeer(h); err != nil && !joins {
		n.complainOf(h, err)
		return
	}
	if n.namesake(h) {
		n.complainOf(h, fmt.Errorf("%w: it has the name of a member and another data directory", ErrNameTaken))
		return
	}
	if n.peers.candidates.hear(h, proved, time.Now()) {
		n.helloSoon()
	}
	n.peers.wake()
}

// clusterID is the id of the cluster that this node belongs to, "" if to none yet.
func (n *Node) clusterID() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.store == nil {
		return ""
	}
	return n.store.Identity().ID
}

// checkMember refuses a holder of the secret that is no member. While this node
// can't tell who is, since it follows no leader of the facts, it takes any: those
// that were added while it was away must be able to bring it up to date.
func (n *Node) checkMember(name, id string) error {
	n.mu.Lock()
	meta := n.meta
	n.mu.Unlock()
	if meta == nil {
		return nil
	}
	facts, _ := meta.current()
	member, known := facts.Nodes[name]
	self, is := facts.Nodes[n.opts.Name]
	switch {
	case known && member.ID == id:
		return nil
	case !is || self.ID != n.store.Identity().NodeID || meta.group.Status().Leader == "":
		return nil
	case known:
		return fmt.Errorf("node %s has another data directory than the member of that name: remove that one and add this one", name)
	}
	return fmt.Errorf("node %s is no member of this cluster: it was removed, or never added", name)
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

// sayHello says what this node is until n.hellos is stopped.
func (n *Node) sayHello() {
	tick := time.NewTicker(helloInterval)
	defer tick.Stop()
	for {
		if n.Err() == nil { // who has failed is away
			subject := n.names.Admin("hello")
			n.sender.Send(natslink.AppendPub(nil, subject, n.envelope(subject, n.hello())))
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
	h.Heard = n.peers.heardNow(time.Now())
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
