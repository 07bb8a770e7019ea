//go:build !race

package broker

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/broker/internal/loglimit"
	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/internal/sim"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/lockmgr"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// The simulation of the data path runs one partition on three nodes in virtual
// time: queue, sequencer, certifier, responder and publisher, over the
// replicas, disks and network of package sim. Clients send the messages of the
// protocol, with locks and message ids, and send them again with the same id
// while they know no outcome. Messages and replies get lost.
//
// The judge keeps every committed transaction. It checks that all replicas
// apply the same, that what was acknowledged is there once, that no committed
// transaction had a conflict at its mark, and that every refusal names a
// transaction that justifies it.
//
// Environment variables choose the seeds: see [sim.Run].
const (
	dataSimLength  = 8 * time.Second
	dataSimSpacing = 500 * time.Millisecond
	dataSimClients = 6
	dataSimPause   = 30 * time.Millisecond   // of a client between two messages, at most
	dataSimQuiet   = 700 * time.Millisecond  // the same in a quiet run
	dataSimWindow  = 6 * time.Second         // of message ids
	dataSimGiveUp  = 2500 * time.Millisecond // after this long a message is not sent again
)

func TestSimulationOfTheDataPath(t *testing.T) {
	sim.Run(t, sim.Config{
		Runs: testkit.Sized[uint64](1, 4, 100), Length: dataSimLength, Spacing: dataSimSpacing, Weights: sim.ReplicaWeights, Package: "broker",
		Nodes: func(uint64) int { return 3 },
		New:   func(o sim.Options) sim.Simulation { return newDataSim(o) },
	})
}

// dataSim is one run. It is also the cluster's App.
type dataSim struct {
	sim.Replicas
	cluster *sim.Cluster
	judge   *dataJudge
	seed    uint64
	// consuming reports whether there are consumers, whose cursors move.
	consuming bool
	began     time.Time

	mu      sync.Mutex // guards the fields below
	nodes   map[string]*dataSimNode
	waiting map[string]chan []byte // clients that wait for a reply, by its subject
	rng     *rand.Rand             // which replies are lost
}

// dataSimNode is a running replica of the partition.
type dataSimNode struct {
	s       *dataSim
	p       *replica
	cancel  context.CancelFunc
	running sync.WaitGroup
}

func newDataSim(opts sim.Options) *dataSim {
	s := &dataSim{
		seed: opts.Seed, nodes: map[string]*dataSimNode{}, waiting: map[string]chan []byte{},
		rng: rand.New(rand.NewPCG(opts.Seed, 7)),
	}
	s.cluster = sim.New(opts, s)
	s.Replicas = sim.Replicas{Cluster: s.cluster, Replica: s}
	s.judge = &dataJudge{cluster: s.cluster, requests: map[string]*dataRequest{}}
	return s
}

func (s *dataSim) Cluster() *sim.Cluster { return s.cluster }

func (s *dataSim) Summary() string {
	j := s.judge
	return fmt.Sprintf("%d messages; %d acknowledged, %d of them as duplicates; %d conflicts; %d without an outcome; %d transactions, the oldest kept is %d",
		j.sent, j.acked, j.duplicates, j.conflicts, j.abandoned, len(j.log), j.trimmed())
}

// quiet reports whether little is sent in this run: a leader that was replaced
// has nothing in flight then, and decides at once on what still reaches it.
func (s *dataSim) quiet() bool { return s.seed%3 == 0 }

// conditional reports whether transactions have conditions in this run, and
// marks that are older than what a leader remembers.
func (s *dataSim) conditional() bool { return s.seed%9 == 8 }

func (s *dataSim) Run(ctx context.Context, schedule sim.Schedule) {
	s.began = time.Now()
	s.cluster.Start(ctx)
	clients, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	few := 2 + s.seed%(dataSimClients-1) // few leave room for what is decided at once
	pause := dataSimPause
	if s.quiet() {
		few, pause = 2, dataSimQuiet
	}
	for i := range few {
		c := &dataClient{s: s, id: int(i), rng: rand.New(rand.NewPCG(s.seed, 2000+i))}
		running.Go(func() { c.run(clients, pause) })
	}
	for i := range s.cluster.Nodes {
		c := &dataClient{s: s, id: dataSimClients + i, node: i, rng: rand.New(rand.NewPCG(s.seed, 3000+uint64(i)))}
		running.Go(func() { c.runLate(clients) })
	}
	running.Go(func() { s.trim(clients) })
	s.consume(clients, &running)
	s.cluster.Run(ctx, schedule)
	time.Sleep(time.Second)
	s.cluster.Heal()
	s.judge.healed()
	time.Sleep(4 * time.Second)
	stop()
	running.Wait()
	s.moveAll(ctx)
	same := false
	for deadline := time.Now().Add(time.Minute); !same && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		same = s.Converged() || len(s.cluster.Failures()) > 0
	}
	if !same {
		s.cluster.Fail("the replicas are not the same a minute after the last fault: %s", s.Positions())
	}
	s.compareDigests()
	s.cluster.Stop()
	s.judge.verdict()
	if s.consuming {
		s.judge.judgeCursors()
	}
}

// trim trims the partition now and then, as an operator's request does.
func (s *dataSim) trim(ctx context.Context) {
	rng := rand.New(rand.NewPCG(s.seed, 8))
	for ctx.Err() == nil {
		time.Sleep(time.Duration(rng.Int64N(int64(time.Second))))
		if leader := s.Leader(); leader != nil {
			s.Trim(leader)
		}
	}
}

// Trim implements sim.Replica. It trims the older half of the partition, if the
// node serves it: only a leader knows which message ids still count.
func (s *dataSim) Trim(n *sim.Node) {
	if n := s.node(n.Name); n != nil && n.p.readTerm.Load() == n.p.group.Term() {
		through := n.p.state.mark.Load() / 2
		batch, _, err := n.p.trimmer.batch(func(p trimPoint) bool { return p.Txid <= through })
		if err == nil && batch != nil {
			_, _ = n.p.group.Propose(batch).Wait()
		}
	}
}

// compareDigests compares the digests of all replicas.
func (s *dataSim) compareDigests() {
	s.mu.Lock()
	defer s.mu.Unlock()
	var want wal.Digest
	compared, mark := "", uint64(0)
	for name, n := range s.nodes {
		r := n.p.state
		r.mu.Lock()
		digest, first := r.digest, r.first
		r.mu.Unlock()
		s.judge.setFirst(first)
		if compared != "" && digest != want {
			s.cluster.Fail("the digests of %s and %s differ, at transactions %d and %d", compared, name, mark, r.mark.Load())
		}
		want, compared, mark = digest, name, r.mark.Load()
	}
}

func (s *dataSim) node(name string) *dataSimNode {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nodes[name]
}

// Start implements sim.Replica.
func (s *dataSim) Start(n *sim.Node) (*raftstore.Group, error) {
	names := subjects.Names{Prefix: "cantus"}
	replies := &dataReplies{s: s}
	log := slog.New(slog.DiscardHandler)
	if l := n.Logger(); l != nil {
		log = l
	}
	locks := 200
	if s.conditional() {
		locks = 5
	}
	h := host{
		leaderships: &loglimit.Burst{},
		name:        n.Name, names: names, partitions: 1, log: log, now: n.Now, queueBytes: 8 << 20,
		state:   stateOptions{locks: lockmgr.Options{Locks: locks, IDs: 10_000, IDWindow: dataSimWindow}, pointEvery: 16},
		metrics: newMetrics(), stats: newServiceStats(),
		messaging: messaging{
			nats: fakeNATS{}, appends: replies, reads: replies, feeds: replies, outbox: dataOutbox{replies}, readOutbox: dataOutbox{replies},
			feedKey: make([]byte, 64), encodeAdvisory: func(subjects.Names, string, map[string]any) []byte { return nil },
		},
		clusterView:  clusterView{peers: newPeers("", nil), facts: func() (cluster.Facts, <-chan struct{}) { return cluster.Facts{}, nil }},
		sharedLimits: sharedLimits{inflight: newInflightLimit(batchesInFlight), scans: semaphore.NewWeighted(1), space: roomy{}},
		services:     services{advise: func(string, map[string]any) {}},
	}
	p := &replica{host: h, log: log, store: n.Log(), queue: newQueue(h.queueBytes), metrics: h.metrics.partition(0, h.stats)}
	damage := func(err error) {
		if n.Whole() {
			s.cluster.Fail("%s: %v", n.Name, err)
		}
	}
	p.state = newPartitionState(n.Log(), h.state, h.now, damage, &p.digests)
	p.wire()
	group, err := raftstore.Open(raftstore.Options{
		Node: n.Name, Voters: n.Voters, Log: n.Log(), FSM: &dataFSM{p.state, s.judge, n}, Network: n.Network(), ID: sim.GroupID,
		SnapshotInterval: 100 * time.Millisecond, SnapshotEntries: 20, Logger: n.Logger(),
		HaltedItself: func(err error) { s.cluster.Fail("%s has halted itself: %v", n.Name, err) },
	})
	if err != nil {
		return nil, err
	}
	p.setGroup(group)
	ctx, cancel := context.WithCancel(context.Background())
	r := &dataSimNode{s: s, p: p, cancel: cancel}
	r.running.Go(func() { r.lead(ctx) })
	r.running.Go(func() { p.trimmer.run(ctx.Done()) })
	s.mu.Lock()
	s.nodes[n.Name] = r
	s.mu.Unlock()
	return group, nil
}

// Stop implements sim.Replica.
func (s *dataSim) Stop(n *sim.Node) {
	s.mu.Lock()
	r := s.nodes[n.Name]
	delete(s.nodes, n.Name)
	s.mu.Unlock()
	r.cancel()
	if err := r.p.group.Close(); err != nil && n.Whole() {
		s.cluster.Fail("close the replica of %s: %v", n.Name, err)
	}
	r.running.Wait()
}

// lead serves the partition whenever its replica leads.
func (r *dataSimNode) lead(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.p.group.Leadership():
		}
		for r.p.group.Leading() && ctx.Err() == nil {
			r.serve(ctx)
			select {
			case <-ctx.Done():
			case <-time.After(leadPause):
			}
		}
	}
}

// serve is what replica.runLeader is, without subscriptions and reconciliation.
func (r *dataSimNode) serve(ctx context.Context) {
	p := r.p
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	term, err := p.beginTerm(ctx)
	if err != nil {
		return
	}
	var background sync.WaitGroup
	background.Go(func() { p.endWithTerm(ctx, term, cancel) })
	p.queue.open()
	p.logChecker.queue.open()
	background.Go(func() { p.logChecker.run(ctx) })
	c := p.tenureConfig(term, cancel)
	c.rejected, c.countRefused = func() error { return nil }, func(*subjects.Error, int) {}
	c.propose = func(data []byte) proposal {
		if r.stumble(term) {
			return refusedProposal{}
		}
		proposed := p.group.Propose(data)
		r.linger()
		return proposed
	}
	p.cursors.propose = c.propose
	p.cursors.queue.open()
	background.Go(func() { p.cursors.run(ctx, term) })
	newTenure(c).start(ctx, &background)
	<-ctx.Done()
	p.refusals.rejectUnavailable(p.queue.close())
	p.refusals.rejectUnavailable(p.cursors.queue.close())
	p.refusals.rejectUnavailable(p.logChecker.queue.close())
	background.Wait()
}

// stumble lets a goroutine go on late, as one that gets no processor: what it
// proposes then may be of a term that is over. Sometimes that is when the node
// leads again. And sometimes stumble reports that raft refuses the proposal: it
// does so during a transfer of leadership, and takes later ones in the same
// term if the transfer fails.
func (r *dataSimNode) stumble(term uint64) (refused bool) {
	s, g := r.s, r.p.group
	s.mu.Lock()
	kind := s.rng.IntN(300)
	late := time.Duration(s.rng.Int64N(int64(2 * time.Second)))
	s.mu.Unlock()
	switch kind {
	case 0:
		time.Sleep(late)
	case 1:
		for began := time.Now(); time.Since(began) < late && (g.Term() == term || !g.Leading()); {
			time.Sleep(time.Millisecond)
		}
	}
	return kind == 2
}

// linger lets a goroutine that has proposed go on late, now and then.
func (r *dataSimNode) linger() {
	s := r.s
	if !s.consuming {
		return
	}
	s.mu.Lock()
	kind := s.rng.IntN(100)
	late := time.Duration(s.rng.Int64N(int64(500 * time.Millisecond)))
	s.mu.Unlock()
	if kind == 0 {
		time.Sleep(late)
	}
}

// refusedProposal is one that raft refuses once it gets to it.
type refusedProposal struct{}

func (refusedProposal) Wait() (any, error) {
	time.Sleep(10 * time.Millisecond)
	return nil, raftstore.ErrNotLeader
}

// dataFSM shows the judge what a replica applies.
type dataFSM struct {
	*partitionState
	judge *dataJudge
	node  *sim.Node
}

func (f *dataFSM) Apply(entries []raftstore.Committed) []any {
	results := f.partitionState.Apply(entries)
	for i, e := range entries {
		b, err := wal.ParseBatch(e.Data)
		if a, ok := results[i].(applied); err == nil && ok && !a.void && !a.failed && b.Kind == wal.Transactions {
			if b.OutOfTerm(e.Term) {
				f.judge.cluster.Fail("%s applies entry %d of term %d, which was certified in another term", f.node.Name, e.Index, e.Term)
			}
			f.judge.applied(f.node.Name, e.Index, b)
		}
	}
	f.judge.appliedCursors(f.node.Name, f.partitionState, entries, results)
	return results
}

// dataReplies is a node's connection: it brings replies to the clients.
type dataReplies struct {
	connection
	s *dataSim
}

// Send delivers replies after a while. Some get lost.
func (d *dataReplies) Send(commands []byte) error {
	var all fakeConnection
	_ = all.Send(commands)
	for _, m := range all.take() {
		subject, payload, _ := strings.Cut(m, " ")
		d.s.mu.Lock()
		to := d.s.waiting[subject]
		lost := d.s.rng.IntN(30) == 0
		after := time.Duration(d.s.rng.Int64N(int64(2 * time.Millisecond)))
		d.s.mu.Unlock()
		if to != nil && !lost {
			time.AfterFunc(after, func() {
				select {
				case to <- []byte(payload):
				default:
				}
			})
		}
	}
	return nil
}

// dataOutbox is dataReplies as an outbox.
type dataOutbox struct{ *dataReplies }

func (p dataOutbox) Enqueue(commands []byte) { _ = p.dataReplies.Send(commands) }

// dataClient sends one message after the other.
type dataClient struct {
	s     *dataSim
	id    int
	rng   *rand.Rand
	seq   int
	tries int
	mark  uint64 // what it has applied
	node  int    // that answered last
}

// dataRequest is a message and what its client knows of it. The judge's mu
// guards it.
type dataRequest struct {
	first   bool // it expects to be the first transaction
	id      string
	begun   int
	ended   int
	payload string
	mark    uint64
	locks   []dataLock
	kind    string
	unless  []queryItem
	parts   []dataPart // of an atomic batch, with the locks
	session string     // "" for none; then seq is its number, and the id stands for both
	seq     uint64
	moves   subjects.Move   // the cursor that moves with it
	isOurs  bool            // the cursor was taken over for the session
	until   time.Time       // the reply came
	reply   *subjects.Reply // the last one that is final; nil if the client gave up
	found   uint64          // the transaction
}

type dataLock struct {
	mode wal.LockMode
	name string
}

func (c *dataClient) run(ctx context.Context, pause time.Duration) {
	for ctx.Err() == nil {
		if c.s.sessions() && c.rng.IntN(2) == 0 {
			c.pipeline()
		} else {
			c.transact(c.request())
		}
		time.Sleep(time.Duration(c.rng.Int64N(int64(pause))))
	}
}

// runLate sends messages that come too late to a node while that believes that
// it leads: they expect an empty log, and their mark is the newest transaction
// that any client knows. So they are refused, and never in flight.
func (c *dataClient) runLate(ctx context.Context) {
	for ctx.Err() == nil {
		time.Sleep(time.Duration(c.rng.Int64N(int64(40 * time.Millisecond))))
		r := &dataRequest{first: true, mark: c.s.judge.newest()}
		if r.mark == 0 || !c.leads() {
			continue
		}
		c.seq++
		r.id = fmt.Sprintf("late%d-%d", c.node, c.seq)
		accepted := c.lateNumber(r)
		c.s.judge.begin(r)
		if reply, answered := c.send(r); answered && final(reply) {
			c.judgeNumber(r, reply, accepted)
			c.s.judge.end(r, reply)
		} else {
			c.s.judge.abandon()
		}
	}
}

// leads reports whether the client's node believes that it leads.
func (c *dataClient) leads() bool {
	n := c.s.node(c.s.cluster.Nodes[c.node].Name)
	return n != nil && n.p.group.Leading()
}

// request makes a message: some locks of few names, and sometimes an old mark.
func (c *dataClient) request() *dataRequest {
	c.seq++
	r := &dataRequest{id: fmt.Sprintf("c%d-%d", c.id, c.seq)}
	r.payload = r.id + strings.Repeat(".", c.rng.IntN(2)*c.rng.IntN(500))
	if c.rng.IntN(2) == 0 {
		c.mark = c.s.judge.newest()
	}
	r.mark = c.mark - min(c.mark, uint64(c.rng.IntN(3)*c.rng.IntN(6)))
	for range c.rng.IntN(3) {
		name := fmt.Sprintf("account.%d", c.rng.IntN(12))
		if c.rng.IntN(10) == 0 {
			name = "account.>"
		}
		r.locks = append(r.locks, dataLock{wal.LockMode(c.rng.IntN(3)), name})
	}
	if c.s.conditional() {
		c.addCondition(r)
	}
	if c.s.atomic() && c.rng.IntN(2) == 0 {
		c.split(r)
	}
	return r
}

// addCondition adds a kind and a condition, and sometimes an older mark.
func (c *dataClient) addCondition(r *dataRequest) {
	kinds := []string{"K", "L", "M"}
	r.kind = kinds[c.rng.IntN(len(kinds))]
	if c.rng.IntN(3) == 0 {
		r.mark -= min(r.mark, c.rng.Uint64N(60))
	}
	for range c.rng.IntN(3) {
		var item queryItem
		if c.rng.IntN(2) == 0 {
			item.kinds = []string{kinds[c.rng.IntN(len(kinds))]}
		}
		for range 1 + c.rng.IntN(2) {
			item.locks = append(item.locks, fmt.Sprintf("account.%d", c.rng.IntN(12)))
		}
		r.unless = append(r.unless, item)
	}
}

var dataLockHeaders = map[wal.LockMode]string{
	wal.ReadLock: subjects.HeaderReadLock, wal.WriteLock: subjects.HeaderWriteLock, wal.AppendLock: subjects.HeaderAppendLock,
}

func (r *dataRequest) header() []byte {
	block := subjects.AppendBlockStart(nil)
	block = r.appendID(block)
	block = subjects.AppendField(block, subjects.HeaderHighWaterMark, strconv.FormatUint(r.mark, 10))
	if r.first {
		block = subjects.AppendField(block, subjects.HeaderExpectedLast, "0")
	}
	if r.moves.Cursor != "" {
		block = subjects.AppendField(block, subjects.HeaderCursor, r.moves.String())
	}
	if r.parts == nil {
		block = r.appendPart(block, r.locks)
	} else {
		block = subjects.AppendField(block, subjects.HeaderAtomic, "true")
	}
	for _, i := range r.unless {
		item, err := json.Marshal(subjects.QueryItem{Kinds: i.kinds, Locks: i.locks})
		if err != nil {
			panic(err)
		}
		block = subjects.AppendField(block, subjects.HeaderUnless, string(item))
	}
	return subjects.AppendBlockEnd(block)
}

// transact sends a message until its outcome is known.
func (c *dataClient) transact(r *dataRequest) {
	c.s.judge.begin(r)
	if c.rng.IntN(6) == 0 || c.s.quiet() {
		c.node = c.rng.IntN(3) // one that led before may still believe that it does
	}
	for began := time.Now(); time.Since(began) < dataSimGiveUp; {
		reply, answered := c.send(r)
		if answered && final(reply) {
			c.learn(reply)
			c.s.judge.end(r, reply)
			return
		}
		c.node = c.rng.IntN(3)
		time.Sleep(time.Duration(c.rng.Int64N(int64(40 * time.Millisecond))))
	}
	c.s.judge.abandon()
}

// final reports whether a reply is a final answer: see "Sending again" in
// subjects.md.
func final(r *subjects.Reply) bool {
	if r.Error == nil {
		return true
	}
	switch r.Error.Reason {
	case subjects.Unknown, subjects.Internal, subjects.Unavailable, subjects.Busy, subjects.StorageFull:
		return false
	}
	return true
}

// learn advances the mark to what a reply shows, as if the client had read it.
func (c *dataClient) learn(r *subjects.Reply) {
	c.mark = max(c.mark, r.Txid)
	if r.Error != nil {
		c.mark = max(c.mark, r.Error.Txid)
	}
}

// send sends a message to a node once, and waits for the reply.
func (c *dataClient) send(r *dataRequest) (*subjects.Reply, bool) {
	n := c.s.node(c.s.cluster.Nodes[c.node].Name)
	if n == nil || !n.p.group.Leading() {
		return nil, false
	}
	return c.sendTo(n, r, time.Duration(c.rng.Int64N(int64(2*time.Millisecond))), time.Duration(100+c.rng.IntN(900))*time.Millisecond)
}

// sendTo sends a message to a node after a delay, and waits for the reply.
func (c *dataClient) sendTo(n *dataSimNode, r *dataRequest, delay, patience time.Duration) (*subjects.Reply, bool) {
	b, arrived := c.exchange(delay, patience, func(subject string) {
		n.p.onAppend(&natslink.Message{Subject: r.subject(), Reply: subject, Header: r.header(), Payload: r.body(), Received: time.Now()})
	})
	if !arrived {
		return nil, false
	}
	reply, err := r.decodeReply(b)
	if err != nil {
		c.s.cluster.Fail("reply %s: %v", b, err)
		return nil, false
	}
	return reply, true
}

// exchange delivers a message after a delay, and waits for the reply.
func (c *dataClient) exchange(delay, patience time.Duration, deliver func(reply string)) ([]byte, bool) {
	c.s.mu.Lock()
	c.tries++
	subject := fmt.Sprintf("reply.%d.%d", c.id, c.tries)
	arrived := make(chan []byte, 1)
	c.s.waiting[subject] = arrived
	c.s.mu.Unlock()
	defer func() {
		c.s.mu.Lock()
		delete(c.s.waiting, subject)
		c.s.mu.Unlock()
	}()
	time.Sleep(delay)
	deliver(subject)
	select {
	case b := <-arrived:
		return b, true
	case <-time.After(patience):
		return nil, false
	}
}

// dataJudge knows what was committed and what clients were told.
type dataJudge struct {
	cluster *sim.Cluster

	mu       sync.Mutex // guards all fields below
	clock    int
	requests map[string]*dataRequest
	log      []dataCommitted // by txid - 1
	keeps    uint64          // the oldest transaction that is kept
	known    uint64          // the newest that was acknowledged
	session  string          // of which a number was acknowledged last, and that
	accepted uint64
	cursors  dataCursors

	sent, acked, duplicates, conflicts, abandoned int
}

type dataCommitted struct {
	index uint64
	time  int64
	id    string
	mark  uint64
	kind  string
	locks []dataLock
	place wal.Atomic

	session string
	seq     uint64
	text    string // all of it, to compare
}

// matches reports whether an item of a condition matches the transaction.
func (c *dataCommitted) matches(item *queryItem) bool {
	if item.besides != "" && item.besides == c.session {
		return false
	}
	if len(item.kinds) > 0 && !slices.Contains(item.kinds, c.kind) {
		return false
	}
	for _, name := range item.locks {
		if !slices.ContainsFunc(c.locks, func(l dataLock) bool { return l.mode != wal.ReadLock && subjects.Overlap(l.name, name) }) {
			return false
		}
	}
	return true
}

func (j *dataJudge) begin(r *dataRequest) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.clock++
	j.sent++
	r.begun, j.requests[r.id] = j.clock, r
}

func (j *dataJudge) end(r *dataRequest, reply *subjects.Reply) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.clock++
	r.ended, r.reply, r.until = j.clock, reply, time.Now()
	switch {
	case reply.Error == nil:
		j.acked++
		j.known = max(j.known, reply.Txid)
		if r.session != "" {
			j.session, j.accepted = r.session, r.seq
		}
		if reply.Duplicate {
			j.duplicates++
		}
		if reply.Txid == 0 || reply.Txid > uint64(len(j.log)) {
			j.cluster.Fail("%s was acknowledged as transaction %d, before any replica has applied that", r.id, reply.Txid)
		}
	case reply.Error.Reason == subjects.Conflict:
		j.conflicts++
	}
}

// newest returns the newest transaction that any client knows.
func (j *dataJudge) newest() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.known
}

func (j *dataJudge) abandon() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.abandoned++
}

func (j *dataJudge) setFirst(first uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.keeps = first
}

func (j *dataJudge) trimmed() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.keeps
}

// applied records the transactions that a replica has applied.
func (j *dataJudge) applied(node string, index uint64, b wal.Batch) {
	j.mu.Lock()
	defer j.mu.Unlock()
	records := b.Read()
	for t := (wal.Transaction{}); records.Next(&t); {
		got := dataCommitted{index: index, time: t.Time, id: string(t.MsgID), mark: t.HighWaterMark, kind: string(t.Kind), place: t.Atomic, session: string(t.Session), seq: t.SessionSeq}
		if t.SessionSeq > 0 && t.Atomic.Index == 0 {
			got.id = numberOf(got.session, got.seq)
		}
		for _, l := range t.Locks {
			got.locks = append(got.locks, dataLock{l.Mode, string(l.Name)})
		}
		got.text = fmt.Sprint(t.Txid, got.index, got.time, got.id, got.mark, got.kind, got.locks, got.place, got.session, got.seq, string(t.Payload))
		switch last := uint64(len(j.log)); {
		case t.Txid == last+1:
			j.log = append(j.log, got)
		case t.Txid > last+1:
			j.cluster.Fail("%s applies transaction %d, the last one was %d", node, t.Txid, last)
		case j.log[t.Txid-1].text != got.text:
			j.cluster.Fail("%s applies %.80q, another replica %.80q", node, got.text, j.log[t.Txid-1].text)
		}
	}
	if err := records.Err(); err != nil {
		j.cluster.Fail("%s, entry %d: %v", node, index, err)
	}
}

// verdict judges every request, and every transaction.
func (j *dataJudge) verdict() {
	j.mu.Lock()
	defer j.mu.Unlock()
	recorded := map[string][]uint64{} // the transactions that have recorded a lock
	newest := func(name, session string) (txid uint64) {
		for n, all := range recorded {
			if subjects.Overlap(n, name) {
				txid = max(txid, j.newestBesides(session, all))
			}
		}
		return txid
	}
	j.judgeSessions()
	last := int64(0)
	for i, t := range j.log {
		txid := uint64(i) + 1
		if t.time <= last {
			j.cluster.Fail("transaction %d (%s) has the time %d, the one before has %d", txid, t.id, t.time, last)
		}
		last = t.time
		if t.place.Index == 0 {
			for _, l := range j.locksFrom(i) {
				if at := newest(l.name, t.session); l.mode != wal.AppendLock && at > t.mark {
					j.cluster.Fail("transaction %d (%s) with mark %d is committed, %q was recorded by %d", txid, t.id, t.mark, l.name, at)
				}
			}
		}
		for _, l := range t.locks {
			if l.mode != wal.ReadLock {
				recorded[l.name] = append(recorded[l.name], txid)
			}
		}
		r := j.requests[t.id]
		switch {
		case t.place.Index > 0: // it came with the first of its atomic batch
		case r == nil:
			j.cluster.Fail("transaction %d has the message id %q, which nobody has sent", txid, t.id)
		case r.found != 0:
			j.cluster.Fail("%s is in the log twice, as %d and, %v later, as %d",
				t.id, r.found, time.Duration(t.time-j.log[r.found-1].time), txid)
		default:
			r.found = txid
			j.judgeParts(r)
			j.judgeCondition(r)
		}
	}
	for _, r := range j.requests {
		if r.reply != nil {
			j.judgeReply(r)
		}
	}
}

func (j *dataJudge) judgeReply(r *dataRequest) {
	e := r.reply.Error
	switch {
	case e == nil && r.found != r.reply.Txid:
		j.cluster.Fail("%s was acknowledged as transaction %d and is %d", r.id, r.reply.Txid, r.found)
	case e == nil && j.log[r.found-1].time != r.reply.Time.UnixNano():
		j.cluster.Fail("%s was acknowledged with another time than its transaction's", r.id)
	case e == nil:
	case r.found != 0:
		j.cluster.Fail("%s was refused as %s and is transaction %d", r.id, e.Reason, r.found)
	case e.Reason == subjects.Conflict:
		for _, c := range e.Conflicts {
			j.judgeConflict(r, c)
		}
		if e.Unless != nil {
			j.judgeMatch(r, e.Unless)
		}
	case r.stays(r.reply):
		j.judgeStays(r)
	case e.Reason == subjects.WrongLast && (r.first && r.mark > 0 || r.session != ""):
	default: // every mark was read from a reply, so "ahead" means a loss
		j.cluster.Fail("%s was refused: %v", r.id, e)
	}
}

// judgeCondition checks that nothing between a committed request's mark and its
// own transaction matches its condition.
func (j *dataJudge) judgeCondition(r *dataRequest) {
	for i := range r.unless {
		for txid := r.mark + 1; txid < r.found; txid++ {
			if j.log[txid-1].matches(&r.unless[i]) {
				j.cluster.Fail("transaction %d (%s) with mark %d is committed, its condition %+v matches %d", r.found, r.id, r.mark, r.unless[i], txid)
			}
		}
	}
}

// judgeMatch checks that a transaction justifies a refusal because of a
// condition. If the log was trimmed, it may be forgotten.
func (j *dataJudge) judgeMatch(r *dataRequest, m *subjects.MatchedCondition) {
	switch {
	case m.Item >= len(r.unless), m.Txid > uint64(len(j.log)), m.Txid <= r.mark:
		j.cluster.Fail("%s with mark %d and %d items was refused because item %d matches %d of %d", r.id, r.mark, len(r.unless), m.Item, m.Txid, len(j.log))
	case m.Forgotten && m.Txid >= j.keeps:
		j.cluster.Fail("%s was refused because of what could not be looked up before %d, and nothing after %d was trimmed", r.id, m.Txid, j.keeps)
	case !m.Forgotten && !j.log[m.Txid-1].matches(&r.unless[m.Item]):
		j.cluster.Fail("%s was refused because %+v matches %d, which it does not", r.id, r.unless[m.Item], m.Txid)
	}
}

// judgeConflict checks that a transaction justifies a refusal. If the log was
// trimmed, it may be forgotten. So may all others once one is certain: what is
// refused anyway is not looked up again.
func (j *dataJudge) judgeConflict(r *dataRequest, c subjects.ConflictingLock) {
	if c.Forgotten {
		if !slices.ContainsFunc(r.reply.Error.Conflicts, func(c subjects.ConflictingLock) bool { return j.isCertain(r, c) }) {
			j.cluster.Fail("%s with mark %d was refused because of locks that could not be looked up before %d, and nothing after %d was trimmed: %+v",
				r.id, r.mark, c.Txid, j.keeps, r.reply.Error.Conflicts)
		}
		return
	}
	if c.Txid > uint64(len(j.log)) || c.Txid <= r.mark {
		j.cluster.Fail("%s with mark %d was refused because of transaction %d of %d", r.id, r.mark, c.Txid, len(j.log))
		return
	}
	for _, l := range j.log[c.Txid-1].locks {
		if r.session != "" && j.log[c.Txid-1].session == r.session {
			break
		}
		if l.mode != wal.ReadLock && subjects.Overlap(l.name, c.Lock) {
			return
		}
	}
	j.cluster.Fail("%s was refused because of transaction %d, which has not recorded %q", r.id, c.Txid, c.Lock)
}
