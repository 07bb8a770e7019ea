//go:build !race

package broker

import (
	"context"
	"crypto/tls"
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
	"github.com/cantuslog/cantus/internal/sim"
	"github.com/cantuslog/cantus/internal/simnats"
	"github.com/cantuslog/cantus/internal/simnet"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// simServer is the NATS server of a simulated node.
type simServer struct {
	*simnats.Server
	never chan struct{}
}

var _ natsServer = (*simServer)(nil)

func (s *simServer) InProcessConn() (net.Conn, error) { return s.Conn() }
func (s *simServer) NodeUser() natslink.User          { return natslink.User{} }
func (s *simServer) AppUser() natslink.User           { return natslink.User{} }
func (s *simServer) CurrentUser() nats.Option         { return func(*nats.Options) error { return nil } }
func (s *simServer) MaxReply() int64                  { return 0 }
func (s *simServer) SetLinks(...*natslink.Link)       {}
func (s *simServer) MapKeys(int) error                { return nil }
func (s *simServer) Configured() bool                 { return false }
func (s *simServer) Reloaded() <-chan struct{}        { return s.never }
func (s *simServer) AccountName() string              { return "$G" }
func (s *simServer) MaxPending() int64                { return 64 << 20 }
func (s *simServer) MaxPayload() int                  { return simnats.MaxPayload }
func (s *simServer) LimitsChanged() <-chan struct{}   { return s.never }
func (s *simServer) Wanted(subject string) bool       { return s.Interested(subject) }
func (s *simServer) Addr() net.Addr                   { return nil }
func (s *simServer) ClusterAddr() *net.TCPAddr        { return nil }
func (s *simServer) OpenTo() (clients, routes string) { return "nobody", "nobody" }
func (s *simServer) ClusterTLS() *tls.Config          { return nil }
func (s *simServer) ConfigDigest() string             { return "" }
func (s *simServer) ClientURL() string                { return "" }
func (s *simServer) Shutdown()                        { s.Close() }
func (s *simServer) WaitForShutdown()                 {}

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
// Clients ask for everything that the protocol has, and operators for transfers,
// moves, rebuilds, trims and new nodes, while the schedule's faults happen. At
// the end all replicas are read, and package judge decides.
//
// Environment variables choose the seeds: see [sim.Run].
const (
	nodeSimLength     = 20 * time.Second
	nodeSimSpacing    = 700 * time.Millisecond
	nodeSimPartitions = 2
	nodeSimWindow     = 6 * time.Second // of message ids
)

func TestSimulationOfNodes(t *testing.T) {
	sim.Run(t, sim.Config{
		Runs: testkit.Sized[uint64](1, 2, 100), Length: nodeSimLength, Spacing: nodeSimSpacing, Weights: sim.AllWeights, Package: "broker",
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
	lost      map[string]bool // nodes whose disk was erased, and that the cluster has not removed yet
	conns     []*nats.Conn
}

// simProcess is a running process.
type simProcess struct {
	restart chan struct{} // capacity 1: stop in good order, and start again

	mu     sync.Mutex // guards the fields below
	node   *Node      // nil while it starts
	server *simnats.Server
}

func newNodeSim(o sim.Options) *nodeSim {
	s := &nodeSim{seed: o.Seed, processes: map[string]*simProcess{}, lost: map[string]bool{}}
	s.cluster = sim.New(o, s)
	return s
}

func (s *nodeSim) Cluster() *sim.Cluster { return s.cluster }

func (s *nodeSim) Summary() string { return "" }

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
			if p := node.replicas.get(0).current(); p != nil && p.serving.Load() {
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
	select {
	case <-ctx.Done():
	case <-p.restart:
	case <-node.Done():
	}
	p.mu.Lock()
	p.node = nil
	p.mu.Unlock()
	err = node.Close()
	if failed := node.Err(); failed != nil {
		return failed
	}
	return err
}

// options returns the options of a node's process. mu is held.
func (s *nodeSim) options(n *sim.Node, p *simProcess) Options {
	log := n.Logger()
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	network := s.cluster.Net
	const room = 1 << 40
	free := func(string) (int64, error) { return room, nil }
	o := Options{
		Name: n.Name, Cluster: "sim", Partitions: nodeSimPartitions, Bootstrap: n.Voters, ClusterListen: "127.0.0.1:1",
		ClusterSecret: "the secret of a simulated cluster", MsgIDWindow: nodeSimWindow, MaxLocks: 200, Logger: log,
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
		},
	}
	if n.Erased() {
		o.Bootstrap = nil
	}
	return o
}

// Operate implements sim.App.
func (s *nodeSim) Operate(ctx context.Context, n *sim.Node, f sim.Fault) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	partition := int(f.At/time.Millisecond) % nodeSimPartitions
	switch f.Kind {
	case sim.Transfer:
		return s.ask(ctx, "cluster.transfer", map[string]any{"partition": partition, "to": n.Name})
	case sim.Move:
		return s.ask(ctx, "cluster.move", map[string]any{"partition": partition, "node": n.Name, "to": f.To})
	case sim.Rebuild:
		return s.ask(ctx, "node."+n.Name+".rebuild", map[string]any{"partition": partition})
	case sim.Restart:
		if p := s.process(n.Name); p != nil {
			select {
			case p.restart <- struct{}{}:
			default:
			}
		}
		return nil
	case sim.Replace:
		s.replace(n)
		return nil
	}
	return fmt.Errorf("no node can do that")
}

// ask asks the cluster for an operation.
func (s *nodeSim) ask(ctx context.Context, operation string, body any) error {
	m, err := s.conns[0].RequestWithContext(ctx, "cantus.admin."+operation, mustJSON(body))
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
func (s *nodeSim) connect(i int) error {
	var urls []string
	for k := range s.cluster.Nodes {
		urls = append(urls, "nats://"+s.cluster.Nodes[(i+k)%len(s.cluster.Nodes)].Name)
	}
	nc, err := nats.Connect(strings.Join(urls, ","), nats.SetCustomDialer(s), nats.SkipHostLookup(), nats.DontRandomize(), nats.MaxReconnects(-1),
		nats.ReconnectWait(50*time.Millisecond), nats.ReconnectJitter(0, 0), nats.RetryOnFailedConnect(true), nats.IgnoreDiscoveredServers())
	if err == nil {
		s.conns = append(s.conns, nc)
	}
	return err
}

func (s *nodeSim) Run(ctx context.Context, schedule sim.Schedule) {
	s.cluster.Start(ctx)
	if err := s.connect(0); err != nil {
		s.cluster.Fail("connect: %v", err)
	}
	operating, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { s.operate(operating) })
	s.cluster.Run(ctx, schedule)
	time.Sleep(time.Second)
	s.cluster.Heal()
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		why := s.unready()
		if why == "" {
			break
		}
		if time.Now().After(deadline) {
			s.cluster.Fail("three minutes after the last fault: %s", why)
			break
		}
	}
	stop()
	running.Wait()
	for _, nc := range s.conns {
		nc.Close()
	}
	s.cluster.Stop()
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
