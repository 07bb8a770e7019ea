package broker

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/broker/internal/natsserver"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// Mark returns the high-water mark of a node's replica, 0 if it has none.
func Mark(n *Node, partition int) uint64 {
	if r := n.replicas.get(partition).current(); r != nil {
		return r.state.position().mark
	}
	return 0
}

// Holds reports whether a node's replica is open.
func Holds(n *Node, partition int) bool { return n.replicas.get(partition).current() != nil }

// JoinedAt returns the oldest version of the facts that a node believes about
// its own membership.
func JoinedAt(n *Node) uint64 { return n.membership.joinedAt() }

// FactsCurrent reports whether a node has caught up with the leader of the
// facts.
func FactsCurrent(n *Node) bool { return n.currentMeta().isCurrent() }

// Contents reads a node's whole replica: the payloads, and the digest.
func Contents(n *Node, partition int) (payloads []string, digest string, err error) {
	r := n.replicas.get(partition).current()
	at := r.state.position()
	var t wal.Transaction
	for _, b := range r.store.Batches(at.first, at.index) {
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
	r.state.mu.Lock()
	defer r.state.mu.Unlock()
	return payloads, hex.EncodeToString(r.state.digest[:]), nil
}

// ClusterID returns the id of a node's cluster.
func ClusterID(n *Node) string { return n.identity.clusterID() }

// Batches returns the batches in a node's log.
func Batches(n *Node, partition int) (all [][]byte, err error) {
	r := n.replicas.get(partition).current()
	at := r.state.position()
	for index, b := range r.store.Batches(at.first, at.index) {
		if at.mark == 0 {
			break
		}
		if b.Err != nil {
			return nil, b.Err
		}
		e, err := r.store.Entry(index)
		if err != nil {
			return nil, err
		}
		all = append(all, e.Data)
	}
	return all, nil
}

// ProposeRestored proposes the batch of another log, like a step of a restore
// that comes late, and reports whether it is void.
func ProposeRestored(n *Node, partition int, batch []byte) (void bool, err error) {
	result, err := n.replicas.get(partition).current().group.ProposeRestored(batch).Wait()
	if err != nil {
		return false, err
	}
	return result.(applied).void, nil
}

// Diverge changes the digest of a node's replica.
func Diverge(n *Node, partition int) {
	r := n.replicas.get(partition).current()
	r.state.mu.Lock()
	defer r.state.mu.Unlock()
	r.state.digest[0] ^= 1
}

// Damage has a node count a partition's log as damaged.
func Damage(n *Node, partition int) {
	s := n.scrubber
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = append(s.current, unrepaired{label(partition), "damaged"})
	s.metrics.setDamaged(len(s.current))
}

// Scrub has a node that does not scrub by itself scrub once, and returns how
// long it would wait then. isSecond is that of pause.
func Scrub(ctx context.Context, n *Node, isSecond *bool) (pause time.Duration, err error) {
	s := n.scrubber
	s.rate = 1 << 40
	s.restored.Store(false)
	err = s.scrub(ctx)
	return s.pause(time.Now(), isSecond), err
}

// Fed returns how many messages the node has published for the feed, -1 if that
// is not known.
func Fed(n *Node) int64 {
	if n.conns.feeds.Flush(context.Background()) != nil {
		return -1
	}
	all, err := n.nats.(*natsserver.Server).Connz(&server.ConnzOptions{})
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

// SpeakProtocol returns a change of options that sets the version of the
// protocol between nodes.
func SpeakProtocol(version int) func(*Options) {
	return func(o *Options) { o.protocol = version }
}

// Reroute has a node dial the others at the addresses that the function
// returns.
func Reroute(o *Options, to func(node, address string) string) { o.reroute = to }

// FirstEntryTxid returns the first txid in a node's stored log.
func FirstEntryTxid(n *Node, partition int) uint64 {
	r := n.replicas.get(partition).current()
	if r == nil {
		return 0
	}
	for e, err := range r.store.Entries(r.store.FirstIndex(), r.store.LastIndex()) {
		if err != nil {
			return 0
		}
		if b, err := wal.ParseBatch(e.Data); e.Type == 0 && err == nil && b.Kind == wal.Transactions {
			return b.First
		}
	}
	return 0
}

// HoldFeed stops the feed until release is called.
func HoldFeed(n *Node) (release func()) {
	return n.conns.feeds.Pause()
}

// AnnouncementOf returns a node's announcement.
func AnnouncementOf(n *Node) []byte { return mustJSON(n.gossip.status()) }

// Hear passes an announcement to a node, as from a member with a valid
// signature.
func Hear(n *Node, said []byte) {
	var a announcement
	if err := json.Unmarshal(said, &a); err != nil {
		panic(err)
	}
	q, _ := n.peers.get(a.Name)
	n.gossip.accept(a, q.number)
}

// CaughtUp reports whether a node considers another's replica caught up, and
// whether it has heard of it lately.
func CaughtUp(n *Node, other string, partition int) (level, heard bool) {
	r, heard := n.peers.report(other, partition, time.Now())
	return caughtUp(r), heard
}

// Derive returns the key that a node derives for a purpose.
func Derive(n *Node, purpose string) [32]byte { return [32]byte(n.identity.derive(purpose)) }

// FreeSpace sets the function that returns the free bytes of a node's disk.
func FreeSpace(o *Options, free func() int64) {
	o.freeSpace = func(string) (int64, error) { return free(), nil }
}

// Full reports whether a node accepts no more transactions.
func Full(n *Node) bool { return n.space.isFull() }

// Leads reports whether a node leads a partition.
func Leads(n *Node, partition int) bool {
	r := n.replicas.get(partition).current()
	return r != nil && r.report().leads()
}

// Reading returns how many reads a node serves.
func Reading(n *Node) int { return int(n.limits.readsNow.Load()) }

// LastIndex returns the index of the newest entry in a replica's log.
func LastIndex(n *Node, partition int) uint64 { return n.replicas.get(partition).data.LastIndex() }

// Remembered returns how many nodes a node remembers.
func Remembered(n *Node) int {
	p := n.peers
	p.mu.Lock()
	defer p.mu.Unlock()
	p.candidates.mu.Lock()
	defer p.candidates.mu.Unlock()
	return len(p.heard) + len(p.pending) + len(p.candidates.all)
}

// Remembers reports whether a node has heard of a candidate.
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

// SuspectsRemoval reports whether a node is asking the others whether it is
// still a member.
func SuspectsRemoval(n *Node) bool { return n.membership.removalSuspected() }

// Generation returns the number of the newest generation of a node's data
// directory, and Witnessed that of the newest one that another node has seen.
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
	seen, _ := n.generations.peerRecord.Get(of.store.Identity().NodeID)
	return seen.Newest.Number
}

// Fenced returns why a node's replica is fenced, "" if it is not.
func Fenced(n *Node, partition int) string {
	if r := n.replicas.get(partition).current(); r != nil {
		if why := r.fencing.fenced.Load(); why != nil {
			return *why
		}
	}
	return ""
}

// NodeConn connects to a node like the node itself.
func NodeConn(n *Node) (*nats.Conn, error) { return connect(n.nats, n.nats.NodeUser()) }

// HoldScans waits until no read scans a log, and lets none begin until release
// is called.
func HoldScans(ctx context.Context, n *Node) (release func(), err error) {
	most := scansAtOnce()
	return func() { n.limits.scans.Release(most) }, n.limits.scans.Acquire(ctx, most)
}

// WrapSecret and UnwrapSecret wrap and unwrap the secret for a node that is
// added.
var WrapSecret, UnwrapSecret = wrapSecret, unwrapSecret

// QueueSizes returns how many bytes may wait in front of a partition: of
// appends, of cursors, and of either in a partition that is opened next.
func QueueSizes(n *Node, partition int) [3]int {
	r := n.replicas.get(partition).current()
	most := func(q *queue) int {
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.most
	}
	return [3]int{most(r.queue), most(r.cursors.queue), int(n.limits.queueBytes.Load())}
}

// RaftAddr returns the host:port at which other nodes reach this one for
// replication, "" if it is alone.
func (n *Node) RaftAddr() string { return n.identity.raftAddr }

// Denied returns how a node reports that others deny its membership.
func Denied(by ...string) string { return votes{deny: by}.String() }

// StoreSpace sets the function that returns the free bytes of the disk of a
// node's store.
func StoreSpace(o *Options, free func() int64) {
	o.store.FreeSpace = func(string) (int64, error) { return free(), nil }
}

// Metric returns the sum of a metric's values, of those that have some labels'
// values.
func Metric(t testing.TB, n *Node, name string, values ...string) (sum float64) {
	t.Helper()
	families, err := n.metrics.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			left := len(values)
			for _, l := range m.GetLabel() {
				if slices.Contains(values, l.GetValue()) {
					left--
				}
			}
			if left == 0 {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// FailToTransfer has the leader of a partition transfer its leadership to a
// node that does not exist.
func FailToTransfer(n *Node, partition int) {
	n.replicas.get(partition).current().tenure.end(transferError{"nobody"})
}

// AfterRecoverySteps has done called after each durable step of a recovery.
func AfterRecoverySteps(r *Recovery, done func(step string) error) { r.done = done }

// BootstrapVoters returns the voters with which a node begins a group.
var BootstrapVoters = bootstrapVoters

// Survey returns what a recovery would find of a partition in a node's
// directory.
func Survey(n *Node, partition int) (Surviving, error) {
	return survey(partition, n.store.Log(uint32(partition)))
}

// CheckLog looks in the log for what conflicts with a transaction, and returns
// how far it has looked.
func CheckLog(t *testing.T, n *Node, partition int, header []byte) (through uint64) {
	t.Helper()
	m := &natslink.Message{Header: header}
	if err := n.replicas.get(partition).current().logChecker.check(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	f := m.Note.(*logNote).of(0)
	if f == nil {
		t.Fatal("nothing was to be looked for")
	}
	return f.through
}

// EndLogChecks has a partition's node search the log for no message any more:
// one that needs it is refused as unavailable.
func EndLogChecks(n *Node, partition int) {
	n.replicas.get(partition).current().logChecker.queue.close()
}

// CheckBatch looks in the log for what conflicts with the transactions of a
// batch message, as long as it has not searched a number of bytes, and returns
// for how many of them it has found nothing.
func CheckBatch(t *testing.T, n *Node, partition int, body []byte, most int) (clear int) {
	t.Helper()
	c := &n.replicas.get(partition).current().logChecker
	limited := logChecker{
		batchSubject: c.batchSubject, refusals: c.refusals, certifier: c.certifier, reader: c.reader, limits: c.limits, most: most,
	}
	m := &natslink.Message{Subject: c.batchSubject, Payload: body}
	if err := limited.check(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	for _, f := range m.Note.(*logNote).findings {
		if !f.decides() {
			clear++
		}
	}
	return clear
}

// LargestWindow returns the bytes of the transactions that a search of a log,
// from its end to its beginning, has in memory at most.
func LargestWindow(t *testing.T, n *Node, partition int) (largest int) {
	t.Helper()
	r := &n.replicas.get(partition).current().reader
	at := r.position()
	d := descent{reader: r, at: at, q: &query{}, low: 1, next: at.mark, scanned: new(scanned), walker: r.walker(at)}
	d.each = func(*wal.Transaction) (done bool, err error) {
		sum := 0
		for i := range d.window {
			sum += recordBytes(&d.window[i])
		}
		largest = max(largest, sum)
		return false, nil
	}
	defer d.walker.close()
	for d.next > 0 {
		if err := d.part(); err != nil {
			t.Fatal(err)
		}
	}
	return largest
}

// OldRecords makes a node announce that it reads no atomic batches.
func OldRecords(o *Options) { o.records = -1 }

// CheckID looks in the log for what a message asks, as a checker that may
// search most bytes for a message and has looked checks times before. It
// returns why it can't.
func CheckID(t *testing.T, n *Node, partition int, header []byte, most, checks int) error {
	t.Helper()
	limited := n.replicas.get(partition).current().logChecker
	limited.most = most
	m := &natslink.Message{Header: header, Note: &logNote{checks: checks, findings: []*logFinding{nil}}}
	return limited.check(t.Context(), m)
}

// HideIndex has searches of a partition's log do without its index.
func HideIndex(n *Node, partition int) { n.replicas.get(partition).current().indexer.index.Store(nil) }

// CheckBetween checks a message as the log checker does, and calls between once
// that has read the position. Then it queues the message again.
func CheckBetween(t *testing.T, n *Node, partition int, m *nats.Msg, between func()) {
	t.Helper()
	r := n.replicas.get(partition).current()
	c, read := r.logChecker, *r.logChecker.reader
	now := read.position
	read.position = func() position {
		at := now()
		between()
		return at
	}
	c.reader = &read
	block := subjects.AppendBlockStart(nil)
	for key := range m.Header {
		block = subjects.AppendField(block, key, m.Header.Get(key))
	}
	parked := &natslink.Message{Subject: m.Subject, Reply: m.Reply, Header: subjects.AppendBlockEnd(block), Payload: m.Data, Received: time.Now()}
	if err := c.check(t.Context(), parked); err != nil {
		t.Fatal(err)
	}
	if r.queue.put(parked) != putQueued {
		t.Fatal("the message is not queued again")
	}
}
