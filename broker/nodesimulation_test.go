//go:build !race

package broker

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/broker/internal/natsserver"
	"github.com/cantuslog/cantus/internal/judge"
	"github.com/cantuslog/cantus/internal/sim"
	"github.com/cantuslog/cantus/internal/simnats"
	"github.com/cantuslog/cantus/internal/simnet"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/internal/workload"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// simServer is the NATS server of a simulated node.
type simServer struct {
	*simnats.Server
	never chan struct{}
}

var _ natsServer = (*simServer)(nil)

func (s *simServer) InProcessConn() (net.Conn, error)       { return s.Conn() }
func (s *simServer) NodeUser() natslink.User                { return natslink.User{} }
func (s *simServer) AppUser() natslink.User                 { return natslink.User{} }
func (s *simServer) CurrentUser() nats.Option               { return func(*nats.Options) error { return nil } }
func (s *simServer) MaxReply() int64                        { return 0 }
func (s *simServer) CertificateChanges() int                { return 0 }
func (s *simServer) SetLinks(...*natslink.Link)             {}
func (s *simServer) MapKeys(subjects.Names, int) error      { return nil }
func (s *simServer) RemapKeys() error                       { return nil }
func (s *simServer) UnmapKeys(subjects.Names)               {}
func (s *simServer) Configured() bool                       { return false }
func (s *simServer) Reloaded() <-chan struct{}              { return s.never }
func (s *simServer) AccountName() string                    { return "$G" }
func (s *simServer) MaxPending() int64                      { return 64 << 20 }
func (s *simServer) MaxPayload() int                        { return simnats.MaxPayload }
func (s *simServer) LimitsChanged() <-chan struct{}         { return s.never }
func (s *simServer) MayHaveInterest(subject string) bool    { return s.HasInterest(subject) }
func (s *simServer) Addr() net.Addr                         { return nil }
func (s *simServer) OpenPorts() []natsserver.OpenPort       { return nil }
func (s *simServer) ClusterTLS() *tls.Config                { return nil }
func (s *simServer) Certificates() []natsserver.Certificate { return nil }
func (s *simServer) Stats() natsserver.Stats                { return natsserver.Stats{} }
func (s *simServer) ConfigDigest() string                   { return "" }
func (s *simServer) NoLogin() string                        { return "there is no client port" }
func (s *simServer) ClientURL() string                      { return "" }
func (s *simServer) Shutdown()                              { s.Close() }
func (s *simServer) WaitForShutdown()                       {}

func (s *simServer) Behind(int64) natsserver.SlowConns { return natsserver.SlowConns{} }

func (s *simServer) Shadowed(int) (what string, keys bool, err error) { return "", true, nil }

func (s *simServer) Reload(natsserver.Options, int, func(*tls.Config) (func(), error)) error {
	return nil
}

func (s *simServer) Routed(node, id string) bool {
	return s.Server.Routed(natsserver.ServerName(node, id) + "-")
}

func (s *simServer) Subscriptions(client uint64) (map[int]bool, error) {
	ids := map[int]bool{}
	for _, sid := range s.Server.Subscriptions(client) {
		if id, err := strconv.Atoi(sid); err == nil {
			ids[id] = true
		}
	}
	return ids, nil
}

// The simulation of nodes runs whole nodes in virtual time: founding, gossip,
// the facts and their placement, replicas, and everything that is served. Only
// the NATS server is another one (package simnats). Nodes and clients talk
// through it, and the nodes' servers over the simulated network.
//
// Clients ask for everything that the protocol has, and operators for
// transfers, moves, rebuilds, trims and new nodes, while the schedule's faults
// happen. At the end all replicas are read, and package judge decides.
//
// Environment variables choose the seeds: see [sim.Run].
const (
	nodeSimLength     = 20 * time.Second
	nodeSimSpacing    = 700 * time.Millisecond
	nodeSimPartitions = 2
	nodeSimClients    = 12
	nodeSimWindow     = 6 * time.Second // of message ids
	nodeSimLocks      = 200             // the capacity of a lock table
)

func TestSimulationOfNodes(t *testing.T) {
	sim.Run(t, sim.Config{
		Runs: testkit.Sized[uint64](1, 1, 100), Length: nodeSimLength, Spacing: nodeSimSpacing, Weights: sim.AllWeights, Package: "broker",
		Nodes: func(uint64) int { return 4 },
		New:   func(o sim.Options) sim.Simulation { return newNodeSim(o) },
	})
}

// nodeSim is one run. It is also the cluster's App.
type nodeSim struct {
	cluster *sim.Cluster
	seed    uint64

	mu        sync.Mutex // guards the fields below
	processes map[string]*simProcess
	removed   map[string]int  // replicas that a node has deleted
	lost      map[string]bool // nodes whose disk was erased, and that the cluster has not removed yet
	ready     map[string]bool // nodes whose process is ready, or was
	outdated  map[string]bool // nodes on an older copy of their disk, which others must refuse
	uncertain time.Time       // until then a node may have to be replaced because of that, or its leaders don't know that its disk was erased
	ordered   time.Time       // the last request to rebuild a replica

	recorder *workload.Recorder
	mix      *workload.Mix
	operator *workload.Client
	report   *judge.Report
}

// simProcess is a running process.
type simProcess struct {
	restart chan struct{} // capacity 1: stop in good order, and start again

	mu     sync.Mutex // guards the fields below
	node   *Node      // nil while it starts
	server *simnats.Server
}

func newNodeSim(o sim.Options) *nodeSim {
	s := &nodeSim{seed: o.Seed, processes: map[string]*simProcess{}, lost: map[string]bool{}, removed: map[string]int{}, ready: map[string]bool{}, outdated: map[string]bool{}}
	s.cluster = sim.New(o, s)
	return s
}

func (s *nodeSim) Cluster() *sim.Cluster { return s.cluster }

func (s *nodeSim) Summary() string {
	if s.report == nil {
		return "not judged"
	}
	inSession, moved := 0, 0
	operations := s.recorder.History().Operations
	for _, o := range operations {
		if o.Append != nil && o.Append.Session != "" || len(o.Batch) > 0 && o.Batch[0].Session != "" {
			inSession++
		}
	}
	for _, d := range s.recorder.History().Drains {
		for _, t := range d.Transactions {
			if t.Move != nil {
				moved++
			}
		}
	}
	return fmt.Sprintf("%d operations, %d of them in sessions; %d transactions, of which %d moved a cursor",
		len(operations), inSession, s.report.Transactions, moved/3)
}

func (s *nodeSim) process(name string) *simProcess {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.processes[name]
}

// open returns the node of a process that is open, or nil.
func (s *nodeSim) open(name string) *Node {
	p := s.process(name)
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.node
}

// Leader implements sim.App.
func (s *nodeSim) Leader() *sim.Node {
	for _, n := range s.cluster.Nodes {
		if node := s.open(n.Name); node != nil {
			if r := node.replicas.get(0).current(); r != nil && r.serving.Load() {
				return n
			}
		}
	}
	return nil
}

// Process implements sim.App.
func (s *nodeSim) Process(ctx context.Context, n *sim.Node) error {
	p := &simProcess{restart: make(chan struct{}, 1)}
	s.mu.Lock()
	s.processes[n.Name] = p
	// What a process that was ready has told others is not on the older copy.
	s.outdated[n.Name] = s.outdated[n.Name] || n.RolledBack() && s.ready[n.Name]
	s.ready[n.Name] = false
	opts := s.options(n, p)
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watched := make(chan struct{})
	go func() { // a process that has ended answers nobody any more
		defer close(watched)
		select {
		case <-ctx.Done():
		case <-n.Ended():
			p.closeServer()
			cancel()
		}
	}()
	err := s.run(ctx, p, n.Dir(), opts)
	ended := ctx.Err() != nil
	cancel()
	<-watched
	p.closeServer()
	switch {
	case ended, err == nil:
		return nil
	case errors.Is(err, syscall.EIO):
		n.Restart()
	case errors.Is(err, ErrOlderCopy), errors.Is(err, ErrRemoved), errors.Is(err, ErrIdentity):
		// ErrIdentity: a founder was put back to the empty directory that it
		// had before.
		s.replace(n)
	default:
		return err
	}
	s.cluster.Note("%s ends: %v", n.Name, err)
	return nil
}

// replace erases a node's disk. The operator then removes the node from the
// cluster and adds it again.
func (s *nodeSim) replace(n *sim.Node) {
	s.mu.Lock()
	s.lost[n.Name] = true
	s.uncertain = time.Now().Add(2 * time.Second)
	s.outdated[n.Name] = false
	s.mu.Unlock()
	n.Erase()
}

func (p *simProcess) closeServer() {
	p.mu.Lock()
	server := p.server
	p.mu.Unlock()
	if server != nil {
		server.Close()
	}
}

// run opens a node and closes it when the process ends.
func (s *nodeSim) run(ctx context.Context, p *simProcess, dir string, opts Options) error {
	node, err := Open(ctx, dir, opts)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	p.mu.Lock()
	p.node = node
	p.mu.Unlock()
	s.cluster.Note("%s is open", opts.Name)
	s.awaitEnd(ctx, p, node)
	p.mu.Lock()
	p.node = nil
	p.mu.Unlock()
	err = node.Close()
	if failed := node.Err(); failed != nil {
		return failed
	}
	return err
}

// awaitEnd waits until a node's process is to end. The node must not be ready
// if it runs on an older copy of its disk.
func (s *nodeSim) awaitEnd(ctx context.Context, p *simProcess, node *Node) {
	check := time.NewTicker(100 * time.Millisecond)
	defer check.Stop()
	name := node.Name()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.restart:
			return
		case <-node.Done():
			return
		case <-check.C:
		}
		if !node.Ready() {
			continue
		}
		s.mu.Lock()
		s.ready[name] = true
		outdated := s.outdated[name]
		s.mu.Unlock()
		if outdated {
			s.cluster.Fail("%s is ready on an older copy of its disk", name)
			return
		}
	}
}

// options returns the options of a node's process. mu is held.
func (s *nodeSim) options(n *sim.Node, p *simProcess) Options {
	log := n.Logger()
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	log = slog.New(deletions{log.Handler(), s, n.Name})
	network := s.cluster.Net
	const room = 1 << 40
	free := func(string) (int64, error) { return room, nil }
	o := Options{
		Name: n.Name, Cluster: "sim", Partitions: nodeSimPartitions, Bootstrap: n.Voters, ClusterListen: "127.0.0.1:1",
		ClusterSecret: "the secret of a simulated cluster", MsgIDWindow: nodeSimWindow, MaxLocks: nodeSimLocks, Logger: log,
		store:     wal.Options{FS: n.Disk(), SegmentSize: 1 << 20, CheckpointBytes: 32 << 10, FreeSpace: free},
		freeSpace: free, pointEvery: 16,
		environment: &environment{
			startNATS: func(o natsserver.Options) (natsServer, error) {
				server, err := simnats.Start(simnats.Options{Host: n.Name, Name: o.Name + "-sim", Peers: n.Voters, Net: network, Seed: s.seed})
				if err != nil {
					return nil, err
				}
				p.mu.Lock()
				defer p.mu.Unlock()
				p.server = server
				return &simServer{Server: server, never: make(chan struct{})}, nil
			},
			listen: func() (net.Listener, error) { return network.Listen(simnet.Address(n.Name, "raft")) },
			dial:   network.Dialer(n.Name),
			now:    n.Now,
		},
	}
	if n.Erased() {
		o.Bootstrap = nil
	}
	return o
}

// deletions counts the replicas that a node deletes, by its log.
type deletions struct {
	slog.Handler
	s    *nodeSim
	node string
}

func (d deletions) Enabled(context.Context, slog.Level) bool { return true }

func (d deletions) WithAttrs(attrs []slog.Attr) slog.Handler {
	return deletions{d.Handler.WithAttrs(attrs), d.s, d.node}
}

func (d deletions) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == "replica removed" || r.Message == "replica ends" {
		d.s.mu.Lock()
		d.s.removed[d.node]++
		d.s.mu.Unlock()
	}
	if !d.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return d.Handler.Handle(ctx, r)
}

// deleted returns how many replicas a node has deleted.
func (s *nodeSim) deleted(node string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.removed[node]
}

// Operate implements sim.App.
func (s *nodeSim) Operate(ctx context.Context, n *sim.Node, f sim.Fault) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	partition, absent := s.replicaOf(n.Name, int(f.At/time.Millisecond)%nodeSimPartitions)
	switch f.Kind {
	case sim.Transfer:
		return s.ask(ctx, "cluster.transfer", map[string]any{"partition": partition, "to": n.Name})
	case sim.Move:
		return s.ask(ctx, "cluster.move", map[string]any{"partition": partition, "node": n.Name, "to": absent})
	case sim.Freeze:
		s.blockRaft(ctx, n.Name)
		return nil
	case sim.Rebuild:
		// A replica that is rebuilt has no vote. A node refuses that where no
		// majority is left, but its leader notices only after a moment that
		// another node has lost its disk.
		s.mu.Lock()
		early := time.Now().Before(s.uncertain)
		s.ordered = time.Now()
		s.mu.Unlock()
		if early {
			return errors.New("a node has just lost its disk, or is to be replaced")
		}
		return s.ask(ctx, "node."+n.Name+".rebuild", map[string]any{"partition": partition})
	case sim.Restart:
		if p := s.process(n.Name); p != nil {
			select {
			case p.restart <- struct{}{}:
			default:
			}
		}
		return nil
	case sim.Replace, sim.Rollback:
		if why := s.await(5*time.Second, s.incomplete); why != "" {
			return errors.New(why)
		}
		// A rebuild may have been asked for that does not show yet: with it,
		// two of three replicas would be lost.
		s.mu.Lock()
		ordered := time.Since(s.ordered) < 5*time.Second
		s.mu.Unlock()
		if ordered {
			return errors.New("a replica is to be rebuilt")
		}
		if f.Kind == sim.Rollback {
			s.mu.Lock()
			s.uncertain = time.Now().Add(f.For + 2*time.Second)
			s.mu.Unlock()
			n.RollBack(f.For)
		} else {
			s.replace(n)
		}
		return nil
	case sim.Trim:
		_, err := s.operator.Trim(ctx, partition, s.mix.Mark(partition)/2)
		return err
	}
	return fmt.Errorf("no node can do that")
}

// blockRaft blocks all that a node leads: see sim.BlockRaft.
func (s *nodeSim) blockRaft(ctx context.Context, name string) {
	var groups []*raftstore.Group
	s.replicas(func(node *Node, r *replica) {
		if node.Name() == name {
			groups = append(groups, r.group)
		}
	})
	if node := s.open(name); node != nil {
		groups = append(groups, node.currentMeta().group)
	}
	var all sync.WaitGroup
	for _, g := range groups {
		all.Go(func() { sim.BlockRaft(ctx, g) })
	}
	all.Wait()
}

// replicaOf returns a partition of which a node has a replica, usual if it has
// one of that or of none, and a node without a replica of it.
func (s *nodeSim) replicaOf(node string, usual int) (held int, absent string) {
	held = usual
	has := map[int]map[string]bool{}
	for p := range nodeSimPartitions {
		has[p] = map[string]bool{}
	}
	s.replicas(func(n *Node, r *replica) { has[r.id][n.Name()] = true })
	if other := (usual + 1) % nodeSimPartitions; !has[usual][node] && has[other][node] {
		held = other
	}
	for _, n := range s.cluster.Nodes {
		if !has[held][n.Name] {
			absent = n.Name
		}
	}
	return held, absent
}

// ask asks the cluster for an operation.
func (s *nodeSim) ask(ctx context.Context, operation string, body any) error {
	m, err := s.operator.Conn.RequestWithContext(ctx, "cantus.admin."+operation, mustJSON(body))
	if err != nil {
		return err
	}
	var reply struct{ Error *subjects.Error }
	if err := json.Unmarshal(m.Data, &reply); err != nil {
		return err
	}
	if reply.Error != nil {
		return reply.Error
	}
	return nil
}

// operate does what an operator does with nodes that have lost their disks: it
// removes them from the cluster, and then adds them again.
func (s *nodeSim) operate(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(500 * time.Millisecond):
		}
		facts, ok := s.facts()
		for _, n := range s.cluster.Nodes {
			if !ok || !n.Erased() {
				continue
			}
			_, member := facts.Nodes[n.Name]
			s.mu.Lock()
			if !member {
				delete(s.lost, n.Name)
			}
			lost := s.lost[n.Name]
			s.mu.Unlock()
			operation := "cluster.remove"
			switch {
			case !member:
				operation = "cluster.add"
			case !lost:
				continue
			}
			bounded, cancel := context.WithTimeout(ctx, 5*time.Second)
			err := s.ask(bounded, operation, map[string]any{"node": n.Name})
			cancel()
			s.cluster.Note("%s %s: %v", operation, n.Name, err)
		}
	}
}

// facts returns what the nodes that are open know of the cluster's members.
func (s *nodeSim) facts() (facts cluster.Facts, ok bool) {
	for _, n := range s.cluster.Nodes {
		if node := s.open(n.Name); node != nil {
			if f := node.currentMeta().now(); !ok || f.Version > facts.Version {
				facts, ok = f, true
			}
		}
	}
	return facts, ok
}

// Dial connects a client to a node's NATS server. It implements
// [nats.CustomDialer].
func (s *nodeSim) Dial(_, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	p := s.process(host)
	if p == nil {
		return nil, syscall.ECONNREFUSED
	}
	p.mu.Lock()
	server := p.server
	p.mu.Unlock()
	if server == nil {
		return nil, syscall.ECONNREFUSED
	}
	return server.Conn()
}

// connect connects a client. It prefers one node, and goes to the others when
// that one is down.
func (s *nodeSim) connect(i int, name string) *workload.Client {
	var urls []string
	for k := range s.cluster.Nodes {
		urls = append(urls, s.url(i+k))
	}
	return s.dial(strings.Join(urls, ","), name)
}

func (s *nodeSim) url(i int) string { return "nats://" + s.cluster.Nodes[i%len(s.cluster.Nodes)].Name }

func (s *nodeSim) dial(urls, name string) *workload.Client {
	c, err := workload.Dial(urls, nats.SetCustomDialer(s), nats.SkipHostLookup(), nats.DontRandomize(), nats.RetryOnFailedConnect(true),
		nats.IgnoreDiscoveredServers())
	if err != nil {
		panic(err) // with RetryOnFailedConnect there is none, unless an option is wrong
	}
	c.Recorder, c.Name = s.recorder, name
	return c
}

// prepare starts the nodes and connects the operator.
func (s *nodeSim) prepare(ctx context.Context) {
	s.cluster.Start(ctx)
	s.recorder = workload.NewRecorder(judge.Header{
		Partitions: nodeSimPartitions, Replicas: 3, AllWriters: true, MessageIDWindow: int64(nodeSimWindow), Locks: nodeSimLocks,
		ClockSkew: int64(2 * sim.MaxSkew),
	})
	s.operator = s.connect(0, "operator")
}

// Run implements sim.Simulation.
func (s *nodeSim) Run(ctx context.Context, schedule sim.Schedule) {
	s.prepare(ctx)
	operating, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { s.operate(operating) })
	var clients []*workload.Client
	for i := range nodeSimClients {
		clients = append(clients, s.connect(i, fmt.Sprintf("c%d", i)))
	}
	s.mix = workload.StartMix(ctx, workload.MixOptions{
		Partitions: nodeSimPartitions, Seed: s.seed, Clients: clients, Pace: 30 * time.Millisecond, MaxPayload: 4 << 10,
		Conditions: s.seed%4 == 3, Atomic: s.seed%4 == 3, Sessions: s.seed%4 == 3, Moves: s.seed%4 == 3,
	})
	s.cluster.Run(ctx, schedule)
	time.Sleep(time.Second)
	s.cluster.Heal()
	why := s.await(3*time.Minute, s.unready)
	s.mix.End()
	if why == "" {
		why = s.await(time.Minute, s.unequal)
	}
	if why != "" {
		s.cluster.Fail("minutes after the last fault: %s", why)
	} else {
		s.drain(ctx)
	}
	stop()
	running.Wait()
	s.operator.Conn.Close()
	s.cluster.Stop()
	if why == "" {
		s.judge()
	}
}

// await polls until notYet returns "" or most has passed, and returns the last
// reason.
func (s *nodeSim) await(most time.Duration, notYet func() string) string {
	for deadline := time.Now().Add(most); ; time.Sleep(50 * time.Millisecond) {
		if why := notYet(); why == "" || time.Now().After(deadline) {
			return why
		}
	}
}

// replicas calls do for each replica that is open.
func (s *nodeSim) replicas(do func(node *Node, r *replica)) {
	for _, n := range s.cluster.Nodes {
		if node := s.open(n.Name); node != nil {
			for r := range node.replicas.open() {
				do(node, r)
			}
		}
	}
}

// unequal returns which replicas differ, "" if none do and each partition has
// three.
func (s *nodeSim) unequal() (why string) {
	type state struct {
		mark, first uint64
		digest      wal.Digest
	}
	all := map[int][]state{}
	s.replicas(func(node *Node, p *replica) {
		r := p.state
		r.mu.Lock()
		defer r.mu.Unlock()
		all[p.id] = append(all[p.id], state{r.mark.Load(), r.first, r.digest})
	})
	for p := range nodeSimPartitions {
		if len(all[p]) != 3 {
			why = fmt.Sprintf("partition %d has %d replicas", p, len(all[p]))
		}
		for _, st := range all[p] {
			if st != all[p][0] {
				why = fmt.Sprintf("the replicas of partition %d differ: %v", p, all[p])
			}
		}
	}
	return why
}

// incomplete returns why no disk may be lost now, "" if one may: every node has
// its own, and every replica is there and votes. The other replicas may lose
// their leader or their power meanwhile.
func (s *nodeSim) incomplete() string {
	s.mu.Lock()
	lost := len(s.lost)
	s.mu.Unlock()
	facts, ok := s.facts()
	switch {
	case lost > 0 || !ok || len(facts.Nodes) != len(s.cluster.Nodes) || len(facts.MetaVoters()) < 3:
		return "a node is to be replaced"
	case s.unready() != "":
		return s.unready()
	}
	votes := map[int]int{} // of the partitions that have a leader
	s.replicas(func(_ *Node, r *replica) {
		if !r.group.Leading() {
			return
		}
		for _, other := range r.group.Status().Replicas {
			if other.Voter {
				votes[r.id]++
			}
		}
	})
	for p := range nodeSimPartitions {
		if votes[p] != 3 {
			return fmt.Sprintf("partition %d has %d votes", p, votes[p])
		}
	}
	return ""
}

// drain reads all replicas.
func (s *nodeSim) drain(ctx context.Context) {
	for i, n := range s.cluster.Nodes {
		c := s.dial(s.url(i), "drain")
		c.Recorder = nil
		s.replicas(func(node *Node, p *replica) {
			if node.Name() != n.Name {
				return
			}
			r := p.state
			r.mu.Lock()
			first, mark, digest := r.first, r.mark.Load(), r.digest
			r.mu.Unlock()
			var log []*nats.Msg
			for next := first; next <= mark; {
				msgs, end, refused, err := c.ReadFrom(ctx, "replica.read", p.id, map[string]any{"from": next, "max": 1000})
				if err != nil || refused != nil || len(msgs) == 0 {
					s.cluster.Fail("read partition %d of %s from %d: %v, %v", p.id, n.Name, next, refused, err)
					return
				}
				log, next = append(log, msgs...), end.Next
			}
			s.recorder.Drained(n.Name, p.id, first, hex.EncodeToString(digest[:]), log)
		})
		c.Conn.Close()
	}
}

func (s *nodeSim) judge() {
	report := judge.Check(s.recorder.History())
	for _, f := range report.Findings {
		s.cluster.Fail("partition %d: %s: %s", f.Partition, f.Class, f.Text)
	}
	s.report = report
}

// unready returns why the cluster is not whole, "" if it is.
func (s *nodeSim) unready() string {
	for _, n := range s.cluster.Nodes {
		node := s.open(n.Name)
		if node == nil {
			return n.Name + " is not open"
		}
		if why := node.unready(); why != "" {
			return n.Name + ": " + why
		}
	}
	return ""
}

// A node that starts has the facts of its last snapshot, which may be older
// than a replica that it has. It must not delete the replica because of that.
func TestAReplicaOutlivesABlackout(t *testing.T) {
	opts := sim.Options{Seed: 1}
	for range 4 {
		opts.Dirs = append(opts.Dirs, t.TempDir())
	}
	sim.Bubble(t, func(t *testing.T) {
		s := newNodeSim(opts)
		s.prepare(t.Context())
		defer func() {
			s.operator.Conn.Close()
			s.cluster.Stop()
		}()
		check := func(why string) {
			t.Helper()
			if why != "" {
				t.Fatal(why)
			}
		}
		check(s.await(time.Minute, s.unready))
		check(s.await(time.Minute, s.unequal))
		_, to := s.replicaOf("n1", 0)
		if err := s.ask(t.Context(), "cluster.move", map[string]any{"partition": 0, "node": "n1", "to": to}); err != nil {
			t.Fatal(err)
		}
		check(s.await(time.Minute, func() string {
			if node := s.open(to); node == nil || node.replicas.get(0).current() == nil {
				return to + " has no replica"
			}
			return s.unequal()
		}))
		removed := s.deleted(to)
		s.cluster.Run(t.Context(), sim.Schedule{{Kind: sim.Blackout, For: 100 * time.Millisecond}})
		check(s.await(time.Minute, func() string {
			if s.open(to) != nil {
				return "the power is not gone"
			}
			return ""
		}))
		check(s.await(time.Minute, s.unready))
		if s.deleted(to) > removed {
			t.Errorf("%s has deleted its replica", to)
		}
	})
}
