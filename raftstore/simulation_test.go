//go:build !race

package raftstore_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/sim"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/wal"
)

// The simulation runs three or five replicas with clients in virtual time, with
// the faults of a schedule that a seed determines (package sim). Clients
// propose entries, each once, and read. They don't wait long for a node, and
// readers ask each one that believes that it leads. The judge compares what
// they were told with the log that all replicas have at the end.
//
// The race detector is left out: it has crashed itself (in ThreadSanitizer's
// stack depot) in some runs.
//
// Environment variables choose the seeds: see [sim.Run].
const (
	simLength  = 8 * time.Second // of the faults, in virtual time
	simSpacing = 500 * time.Millisecond
	simClients = 6
	simReaders = 2
)

func TestSimulation(t *testing.T) {
	sim.Run(t, sim.Config{
		Runs: testkit.Sized[uint64](2, 6, 200), Length: simLength, Spacing: simSpacing, Weights: sim.ReplicaWeights, Package: "raftstore",
		Nodes: func(seed uint64) int {
			if seed%5 == 0 {
				return 5
			}
			return 3
		},
		New: func(o sim.Options) sim.Simulation { return newSimulation(o) },
	})
}

// simulation is one run. It is also the cluster's App.
type simulation struct {
	sim.Replicas
	cluster *sim.Cluster
	judge   *simJudge
	seed    uint64
	began   time.Time
	starts  atomic.Int64 // of replicas

	mu       sync.Mutex // guards replicas
	replicas map[*sim.Node]*simReplica
}

// simReplica is a running replica.
type simReplica struct {
	group    *raftstore.Group
	fsm      *simFSM
	cancel   context.CancelFunc
	running  sync.WaitGroup
	mu       sync.Mutex
	readTerm uint64 // the term in which this replica led and had applied all that was committed before
}

func newSimulation(opts sim.Options) *simulation {
	s := &simulation{seed: opts.Seed, replicas: map[*sim.Node]*simReplica{}}
	s.cluster = sim.New(opts, s)
	s.Replicas = sim.Replicas{Cluster: s.cluster, Replica: s}
	s.judge = newSimJudge(s.cluster)
	return s
}

func (s *simulation) Cluster() *sim.Cluster { return s.cluster }

func (s *simulation) Summary() string {
	return fmt.Sprintf("%d proposals, %d acknowledged, %d unknown; %d reads", len(s.judge.ops), s.judge.acked, s.judge.unknown, s.judge.reads)
}

// Run runs the clients and the faults, waits until the replicas are the same,
// and judges.
func (s *simulation) Run(ctx context.Context, schedule sim.Schedule) {
	s.began = time.Now()
	s.cluster.Start(ctx)
	defer s.cluster.Stop()
	clients, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	for i := range simClients {
		c := &simClient{s: s, id: i, rng: rand.New(rand.NewPCG(s.seed, uint64(1000+i)))}
		running.Go(func() { c.run(clients, &running) })
	}
	for i := range simReaders {
		c := &simClient{s: s, rng: rand.New(rand.NewPCG(s.seed, uint64(2000+i)))}
		running.Go(func() { c.readAll(clients) })
	}
	s.cluster.Run(ctx, schedule)
	time.Sleep(time.Second)
	s.cluster.Heal()
	time.Sleep(2 * time.Second)
	stop()
	ended := make(chan struct{})
	go func() { running.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		s.judge.pending(s.began)
		s.cluster.Fail("some proposals have no outcome a minute after the last fault: %s", s.states())
		s.cluster.Stop() // answers all
		<-ended
		return
	}
	if !s.converge() {
		s.cluster.Fail("the replicas are not the same a minute after the last fault: %s", s.states())
		return
	}
	s.judge.verdict()
	s.compareLogs()
}

func (s *simulation) converge() bool {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if len(s.cluster.Failures()) > 0 {
			return true // it is pointless to wait
		}
		if s.Converged() {
			return true
		}
	}
	return false
}

func (s *simulation) states() string {
	var b strings.Builder
	for _, n := range s.cluster.Nodes {
		if g := n.Group(); g != nil {
			fmt.Fprintf(&b, "%s: %+v halted %v; ", n.Name, g.Status(), g.Halted())
		} else {
			fmt.Fprintf(&b, "%s: no replica; ", n.Name)
		}
	}
	return b.String()
}

// compareLogs compares the logs as they are stored.
func (s *simulation) compareLogs() {
	for _, n := range s.cluster.Nodes {
		if n.Group() == nil {
			continue
		}
		log := n.Log()
		for index := log.FirstIndex(); index <= log.LastIndex(); index++ {
			e, err := log.Entry(index)
			if err != nil {
				s.cluster.Fail("%s: entry %d: %v", n.Name, index, err)
				continue
			}
			if e.Type == 0 {
				s.judge.stored(n.Name, e.Index, e.Term, e.Data)
			}
		}
	}
}

// Start implements sim.Replica.
func (s *simulation) Start(n *sim.Node) (*raftstore.Group, error) {
	fsm := &simFSM{judge: s.judge, node: n, rng: rand.New(rand.NewPCG(s.seed, uint64(s.starts.Add(1))))}
	group, err := raftstore.Open(raftstore.Options{
		Node: n.Name, Voters: n.Voters, Log: n.Log(), FSM: fsm, Network: n.Network(), ID: sim.GroupID,
		SnapshotInterval: 100 * time.Millisecond, SnapshotEntries: 20, Logger: n.Logger(),
		HaltedItself: func(err error) { s.cluster.Fail("%s has halted itself: %v", n.Name, err) },
		PeerLostEntries: func(peer string, has, had uint64) {
			s.cluster.Fail("%s says that %s has lost entries: it has %d and had %d", n.Name, peer, has, had)
		},
	})
	if err != nil {
		return nil, err
	}
	s.judge.term(n, group.Term())
	ctx, cancel := context.WithCancel(context.Background())
	r := &simReplica{group: group, fsm: fsm, cancel: cancel}
	r.running.Go(func() { r.lead(ctx) })
	s.mu.Lock()
	s.replicas[n] = r
	s.mu.Unlock()
	return group, nil
}

// Stop implements sim.Replica.
func (s *simulation) Stop(n *sim.Node) {
	s.mu.Lock()
	r := s.replicas[n]
	delete(s.replicas, n)
	s.mu.Unlock()
	r.cancel()
	if err := r.group.Close(); err != nil && n.Whole() {
		s.cluster.Fail("close the replica of %s: %v", n.Name, err)
	}
	r.running.Wait()
}

// keepEntries is how many entries a trim leaves at most.
const keepEntries = 10

// Trim implements sim.Replica.
func (s *simulation) Trim(n *sim.Node) {
	g := n.Group()
	if g == nil {
		return
	}
	if applied := g.Applied(); applied > keepEntries {
		if err := g.Trim(applied - applied%keepEntries); err != nil && n.Whole() && !errors.Is(err, raftstore.ErrClosed) {
			s.cluster.Note("trim of %s: %v", n.Name, err)
		}
	}
}

func (s *simulation) replica(n *sim.Node) *simReplica {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.replicas[n]
}

// lead waits for a barrier whenever the replica becomes the leader, as a
// partition does before it serves.
func (r *simReplica) lead(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case leads := <-r.group.Leadership():
			if !leads {
				continue
			}
			term := r.group.Term()
			if r.group.Barrier(ctx) != nil || r.group.Term() != term {
				continue
			}
			r.mu.Lock()
			r.readTerm = term
			r.mu.Unlock()
		}
	}
}

// simClient proposes entries one after the other, and reads between them.
type simClient struct {
	s    *simulation
	id   int
	rng  *rand.Rand
	node int // at which it last had success
	seq  int
}

// run proposes and reads until ctx ends. Proposals that it does not wait for
// any more are waited for in running.
func (c *simClient) run(ctx context.Context, running *sync.WaitGroup) {
	for ctx.Err() == nil {
		n := c.s.cluster.Nodes[c.node]
		r := c.s.replica(n)
		ok := r != nil
		if ok && c.rng.IntN(5) == 0 {
			ok = c.read(ctx, n, r)
		} else if ok {
			ok = c.propose(n, r, running)
		}
		pause := 20 * time.Millisecond
		if !ok {
			c.node = c.rng.IntN(len(c.s.cluster.Nodes))
		}
		time.Sleep(time.Duration(c.rng.Int64N(int64(2 * pause))))
	}
}

// patience is how long a client waits for a node.
func (c *simClient) patience() time.Duration {
	return 100*time.Millisecond + time.Duration(c.rng.Int64N(int64(900*time.Millisecond)))
}

// readAll reads from every node that believes that it leads.
func (c *simClient) readAll(ctx context.Context) {
	for ctx.Err() == nil {
		for _, n := range c.s.cluster.Nodes {
			if r := c.s.replica(n); r != nil && r.group.Leading() {
				c.read(ctx, n, r)
			}
		}
		time.Sleep(time.Duration(c.rng.Int64N(int64(20 * time.Millisecond))))
	}
}

// propose proposes some entries at once, and waits some time for their
// outcomes. It reports whether all were acknowledged by then.
func (c *simClient) propose(n *sim.Node, r *simReplica, running *sync.WaitGroup) bool {
	type pending struct {
		op *simOp
		p  raftstore.Proposal
	}
	var all []pending
	for range 1 + c.rng.IntN(3) {
		c.seq++
		data := fmt.Sprintf("client %d, entry %d ", c.id, c.seq) + strings.Repeat(".", c.rng.IntN(2)*c.rng.IntN(600))
		op := c.s.judge.begin(c.id, n.Name, data)
		all = append(all, pending{op, r.group.Propose([]byte(data))})
	}
	done := make(chan bool, 1)
	running.Go(func() {
		ok := true
		for _, p := range all {
			result, err := p.p.Wait()
			c.s.judge.end(n, p.op, result, err)
			ok = ok && err == nil
		}
		if n.Whole() {
			if term := r.group.Term(); n.Whole() {
				c.s.judge.term(n, term)
			}
		}
		done <- ok
	})
	select {
	case ok := <-done:
		return ok
	case <-time.After(c.patience()):
		return false
	}
}

// read checks that what the leader has applied, once it has confirmed that it
// leads, has everything that was acknowledged before.
func (c *simClient) read(ctx context.Context, n *sim.Node, r *simReplica) bool {
	ctx, cancel := context.WithTimeout(ctx, c.patience())
	defer cancel()
	r.mu.Lock()
	term := r.readTerm
	r.mu.Unlock()
	if term == 0 {
		return false
	}
	least := c.s.judge.newestAcked()
	if r.group.VerifyLeader(ctx, term) != nil {
		return false
	}
	c.s.judge.read(n, term, least, r.fsm.last())
	return true
}

// simFSM is a state machine: a digest over all entries, and how many they are.
// Now and then it is slow.
type simFSM struct {
	judge *simJudge
	node  *sim.Node
	rng   *rand.Rand // of Apply

	mu     sync.Mutex
	index  uint64
	count  uint64
	digest uint64
}

// simResult is the result of an entry.
type simResult struct{ index, term uint64 }

func (f *simFSM) Apply(entries []raftstore.Committed) []any {
	if f.rng.IntN(50) == 0 {
		time.Sleep(time.Duration(f.rng.Int64N(int64(50 * time.Millisecond))))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	results := make([]any, len(entries))
	for i, e := range entries {
		if e.Index <= f.index {
			f.judge.cluster.Fail("%s applies entry %d after entry %d", f.node.Name, e.Index, f.index)
		}
		f.index, f.count, f.digest = e.Index, f.count+1, digestAfter(f.digest, e.Data)
		f.judge.applied(f.node.Name, f.count, f.digest, e)
		results[i] = simResult{e.Index, e.Term}
	}
	return results
}

func digestAfter(digest uint64, data []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(binary.BigEndian.AppendUint64(nil, digest))
	_, _ = h.Write(data)
	return h.Sum64()
}

func (f *simFSM) last() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.index
}

func (f *simFSM) Snapshot() raftstore.Snapshot {
	f.mu.Lock()
	defer f.mu.Unlock()
	state := binary.BigEndian.AppendUint64(nil, f.index)
	state = binary.BigEndian.AppendUint64(state, f.count)
	state = binary.BigEndian.AppendUint64(state, f.digest)
	return raftstore.Snapshot{State: state, Metas: []wal.Meta{{Name: "state", Value: state}}}
}

func (f *simFSM) Restore(state []byte) error {
	if len(state) != 24 {
		return fmt.Errorf("the state has %d bytes", len(state))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.index, f.count, f.digest = binary.BigEndian.Uint64(state), binary.BigEndian.Uint64(state[8:]), binary.BigEndian.Uint64(state[16:])
	f.judge.restored(f.node.Name, f.index, f.count, f.digest)
	return nil
}

// simJudge knows what clients were told and what replicas have applied.
type simJudge struct {
	cluster *sim.Cluster

	mu      sync.Mutex // guards all fields below, and those of ops
	clock   int        // counts events, to know what happened before what
	ops     []*simOp
	byData  map[string]*simOp
	log     map[uint64]simEntry // what the first replica that applied an index has applied
	highest uint64              // index that was acknowledged
	leaders map[uint64]string   // the node that acknowledged something, by term
	terms   map[*sim.Node]uint64

	acked, unknown, reads int
}

// simOp is a proposal.
type simOp struct {
	client int
	node   string
	data   string
	at     time.Time
	begun  int // the clock
	ended  int // 0 while it has no outcome
	err    error
	result simResult
	found  uint64 // the index at which the log has it
}

type simEntry struct {
	term, count, digest uint64
	data                string
}

func newSimJudge(c *sim.Cluster) *simJudge {
	return &simJudge{cluster: c, byData: map[string]*simOp{}, log: map[uint64]simEntry{}, leaders: map[uint64]string{}, terms: map[*sim.Node]uint64{}}
}

func (j *simJudge) begin(client int, node, data string) *simOp {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.clock++
	op := &simOp{client: client, node: node, data: data, begun: j.clock, at: time.Now()}
	j.ops, j.byData[data] = append(j.ops, op), op
	return op
}

func (j *simJudge) end(n *sim.Node, op *simOp, result any, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.clock++
	op.ended, op.err = j.clock, err
	switch {
	case err == nil:
		j.acked++
		op.result = result.(simResult)
		j.highest = max(j.highest, op.result.index)
		if leader, ok := j.leaders[op.result.term]; ok && leader != n.Name {
			j.cluster.Fail("%s and %s have both acknowledged entries of term %d", leader, n.Name, op.result.term)
		}
		j.leaders[op.result.term] = n.Name
	case errors.Is(err, raftstore.ErrUnknown):
		j.unknown++
	case errors.Is(err, raftstore.ErrNotLeader), errors.Is(err, raftstore.ErrClosed), errors.Is(err, raftstore.ErrHalted):
	default:
		j.cluster.Fail("a proposal ended with an error that is not documented: %v", err)
	}
}

// pending notes the proposals that have no outcome.
func (j *simJudge) pending(began time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, op := range j.ops {
		if op.ended == 0 {
			j.cluster.Note("proposed to %s after %v, without an outcome: %.30q", op.node, op.at.Sub(began), op.data)
		}
	}
}

func (j *simJudge) newestAcked() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.highest
}

func (j *simJudge) read(n *sim.Node, term, least, has uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.reads++
	if has < least {
		j.cluster.Fail("%s, confirmed as the leader of term %d, has applied entry %d: entry %d was acknowledged before", n.Name, term, has, least)
	}
}

// term records a node's term, which it has stored.
func (j *simJudge) term(n *sim.Node, term uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if term < j.terms[n] {
		j.cluster.Fail("the term of %s went back from %d to %d", n.Name, j.terms[n], term)
	}
	j.terms[n] = term
}

func (j *simJudge) applied(node string, count, digest uint64, e raftstore.Committed) {
	j.mu.Lock()
	defer j.mu.Unlock()
	got := simEntry{e.Term, count, digest, string(e.Data)}
	want, ok := j.log[e.Index]
	if !ok {
		j.log[e.Index] = got
		return
	}
	if got != want {
		j.cluster.Fail("%s applies %s as entry %d, another replica applied %s", node, got, e.Index, want)
	}
}

func (e simEntry) String() string {
	return fmt.Sprintf("%.30q of term %d, the %d. one with digest %x", e.data, e.term, e.count, e.digest)
}

// restored checks the state of a snapshot.
func (j *simJudge) restored(node string, index, count, digest uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if want := j.log[index]; index > 0 && (want.count != count || want.digest != digest) {
		j.cluster.Fail("%s restores entry %d as the %d. with digest %x, it was %s", node, index, count, digest, want)
	}
}

// stored checks an entry of a log.
func (j *simJudge) stored(node string, index, term uint64, data []byte) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if want, ok := j.log[index]; !ok || want.term != term || want.data != string(data) {
		j.cluster.Fail("%s stores %.30q of term %d as entry %d, applied was %s", node, data, term, index, want)
	}
}

// verdict compares what the clients were told with the log.
func (j *simJudge) verdict() {
	j.mu.Lock()
	defer j.mu.Unlock()
	for index, e := range j.log {
		op := j.byData[e.data]
		switch {
		case op == nil:
			j.cluster.Fail("entry %d is %.30q, which nobody has proposed", index, e.data)
		case op.found != 0:
			j.cluster.Fail("%.30q is in the log twice, as entries %d and %d", e.data, op.found, index)
		default:
			op.found = index
		}
	}
	for _, op := range j.ops {
		j.judgeOp(op)
	}
	j.checkOrder()
}

func (j *simJudge) judgeOp(op *simOp) {
	switch {
	case op.ended == 0:
		j.cluster.Fail("%.30q has no outcome", op.data)
	case op.err == nil && op.found != op.result.index:
		j.cluster.Fail("%.30q was acknowledged as entry %d and is entry %d", op.data, op.result.index, op.found)
	case op.err == nil && j.log[op.found].term != op.result.term:
		j.cluster.Fail("%.30q was acknowledged in term %d and has term %d", op.data, op.result.term, j.log[op.found].term)
	case op.err != nil && !errors.Is(op.err, raftstore.ErrUnknown) && op.found != 0:
		j.cluster.Fail("%.30q was refused (%v) and is entry %d", op.data, op.err, op.found)
	}
}

// checkOrder checks that what was acknowledged before something else began is
// before it in the log, and that terms do not decrease.
func (j *simJudge) checkOrder() {
	type event struct {
		index uint64
		begin bool
	}
	events := make(map[int]event, 2*len(j.ops))
	for _, op := range j.ops {
		if op.found != 0 {
			events[op.begun] = event{op.found, true}
		}
		if op.ended != 0 && op.err == nil {
			events[op.ended] = event{op.found, false}
		}
	}
	highest := uint64(0)
	for at := range j.clock + 1 {
		e, ok := events[at]
		switch {
		case !ok:
		case e.begin && e.index <= highest:
			j.cluster.Fail("entry %d was proposed after entry %d was acknowledged", e.index, highest)
		case !e.begin:
			highest = max(highest, e.index)
		}
	}
	last := uint64(0)
	for index, end := uint64(1), j.maxIndex(); index <= end; index++ {
		if e, ok := j.log[index]; ok {
			if e.term < last {
				j.cluster.Fail("entry %d has term %d, one before it has term %d", index, e.term, last)
			}
			last = max(last, e.term)
		}
	}
}

func (j *simJudge) maxIndex() (highest uint64) {
	for index := range j.log {
		highest = max(highest, index)
	}
	return highest
}
