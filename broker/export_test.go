package broker

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/wal"
)

// Mark is the high-water mark of a node's replica, 0 if it has none.
func Mark(n *Node, partition int) uint64 {
	if p := n.replicas.get(partition).current(); p != nil {
		return p.replica.position().mark
	}
	return 0
}

// Holds reports whether a node's replica is open.
func Holds(n *Node, partition int) bool { return n.replicas.get(partition).current() != nil }

// Contents reads a node's replica whole: the payloads, and the digest.
func Contents(n *Node, partition int) (payloads []string, digest string, err error) {
	p := n.replicas.get(partition).current()
	at := p.replica.position()
	var t wal.Transaction
	for _, b := range p.store.Batches(at.first, at.index) {
		if at.mark == 0 {
			break
		}
		if b.Err != nil {
			return nil, "", b.Err
		}
		records := b.Batch.Read()
		for records.Next(&t) {
			payloads = append(payloads, string(t.Payload))
		}
	}
	p.replica.mu.Lock()
	defer p.replica.mu.Unlock()
	return payloads, hex.EncodeToString(p.replica.digest[:]), nil
}

// Diverge makes a node's replica believe in another log.
func Diverge(n *Node, partition int) {
	p := n.replicas.get(partition).current()
	p.replica.mu.Lock()
	defer p.replica.mu.Unlock()
	p.replica.digest[0] ^= 1
}

// Fed is how many messages the node has published for the feed, -1 if it
// can't be told.
func Fed(n *Node) int64 {
	if n.conns.feeds.Flush(context.Background()) != nil {
		return -1
	}
	all, err := n.nats.Connz(&server.ConnzOptions{})
	if err != nil {
		return -1
	}
	for _, c := range all.Conns {
		if c.Name == "cantus feed" {
			return c.InMsgs
		}
	}
	return -1
}

// SpeakProtocol has a node speak another protocol of nodes.
func SpeakProtocol(version int) func(*Options) {
	return func(o *Options) { o.protocol = version }
}

// Reroute has a node dial others where the function says.
func Reroute(o *Options, to func(node, address string) string) { o.reroute = to }

// FirstEntryTxid is the first txid in a node's stored log.
func FirstEntryTxid(n *Node, partition int) uint64 {
	p := n.replicas.get(partition).current()
	if p == nil {
		return 0
	}
	for e, err := range p.store.Entries(p.store.FirstIndex(), p.store.LastIndex()) {
		if err != nil {
			return 0
		}
		if b, err := wal.ParseBatch(e.Data); e.Type == 0 && err == nil && b.Kind == wal.Transactions {
			return b.First
		}
	}
	return 0
}

// HoldFeed keeps the feed from being sent until release.
func HoldFeed(n *Node) (release func()) {
	return n.conns.feeds.Pause()
}

// AnnouncementOf is what a node says to the others.
func AnnouncementOf(n *Node) []byte { return mustJSON(n.gossip.status()) }

// Hear has a node hear that, as from a member that proves itself.
func Hear(n *Node, said []byte) {
	var h announcement
	if err := json.Unmarshal(said, &h); err != nil {
		panic(err)
	}
	q, _ := n.peers.get(h.Name)
	n.gossip.accept(h, q.number)
}

// CaughtUp reports whether a node takes another's replica for level, and whether it
// has heard of it lately.
func CaughtUp(n *Node, other string, partition int) (level, heard bool) {
	r, heard := n.peers.report(other, partition, time.Now())
	return caughtUp(r), heard
}

// Derive is the key that a node derives for a purpose.
func Derive(n *Node, purpose string) [32]byte { return [32]byte(n.identity.derive(purpose)) }

// FreeSpace has the node take what free says for the free bytes of its disk.
func FreeSpace(o *Options, free func() int64) {
	o.freeSpace = func(string) (int64, error) { return free(), nil }
}

// Full reports whether the node takes no more transactions.
func Full(n *Node) bool { return n.space.isFull() }

// Reading is how many reads a node serves.
func Reading(n *Node) int { return int(n.limits.readsNow.Load()) }

// LastIndex is the newest entry in a replica's log.
func LastIndex(n *Node, partition int) uint64 { return n.replicas.get(partition).data.LastIndex() }

// Remembered is how many nodes a node remembers.
func Remembered(n *Node) int {
	p := n.peers
	p.mu.Lock()
	defer p.mu.Unlock()
	p.candidates.mu.Lock()
	defer p.candidates.mu.Unlock()
	return len(p.heard) + len(p.pending) + len(p.candidates.all)
}

// Remembers reports whether a node has heard of one that belongs to no cluster.
func Remembers(n *Node, name string) bool {
	c := n.peers.candidates
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, q := range c.all {
		if q.Name == name {
			return true
		}
	}
	return false
}

// LookForAway has a node check which nodes are away, as it does periodically.
func LookForAway(n *Node) { n.absences.look(time.Now()) }

// InDoubt reports whether a node asks whether it is still a member.
func InDoubt(n *Node) bool { return n.membership.doubted() }

// Generation is the number of the newest generation of a node's data directory,
// and Witnessed that of the newest which another node has seen of it.
func Generation(n *Node) uint64 {
	n.generations.state.Lock()
	defer n.generations.state.Unlock()
	if len(n.generations.own) == 0 {
		return 0
	}
	return n.generations.own[len(n.generations.own)-1].Number
}

// Witnessed: see Generation.
func Witnessed(n, of *Node) uint64 {
	seen, _ := n.generations.witness.Get(of.store.Identity().NodeID)
	return seen.Newest.Number
}

// Fenced is why a node's replica is fenced, "" if it is not.
func Fenced(n *Node, partition int) string {
	if p := n.replicas.get(partition).current(); p != nil {
		if why := p.fenced.Load(); why != nil {
			return *why
		}
	}
	return ""
}

// NodeConn connects to a node as it does itself.
func NodeConn(n *Node) (*nats.Conn, error) { return connect(n.nats, n.nats.NodeUser()) }

// HoldScans has no read go through a log until release is called. It waits for
// those that do.
func HoldScans(ctx context.Context, n *Node) (release func(), err error) {
	most := scansAtOnce()
	return func() { n.limits.scans.Release(most) }, n.limits.scans.Acquire(ctx, most)
}

// WrapSecret and UnwrapSecret are what a node that is added gets the secret by.
var WrapSecret, UnwrapSecret = wrapSecret, unwrapSecret

// QueueSizes are how many bytes may wait in front of a partition: of appends, of
// cursors, and of either in a partition that is opened next.
func QueueSizes(n *Node, partition int) [3]int {
	p := n.replicas.get(partition).current()
	most := func(q *queue) int {
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.most
	}
	return [3]int{most(p.queue), most(p.cursors), int(n.limits.queueBytes.Load())}
}

// RaftAddr returns the host:port at which other nodes reach this one for
// replication, "" if it is alone.
func (n *Node) RaftAddr() string { return n.identity.raftAddr }

// Denied is how it is said that nodes deny that this one is a member.
func Denied(by ...string) string { return votes{deny: by}.String() }

// StoreSpace has the node's store take what free says for the free bytes of its disk.
func StoreSpace(o *Options, free func() int64) {
	o.store.FreeSpace = func(string) (int64, error) { return free(), nil }
}
