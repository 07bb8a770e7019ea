//go:build !race

package broker

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/broker/internal/natsserver"
	"github.com/cantuslog/cantus/internal/sim"
	"github.com/cantuslog/cantus/internal/simnats"
	"github.com/cantuslog/cantus/internal/simnet"
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

// nodeSim is a run of whole nodes.
type nodeSim struct {
	cluster *sim.Cluster
	seed    uint64
	nodes   map[string]*Node
}

func TestSimulationOfNodes(t *testing.T) {
	sim.Run(t, sim.Config{
		Runs: 1, Length: 8 * time.Second, Spacing: 500 * time.Millisecond, Package: "broker",
		Nodes: func(uint64) int { return 3 },
		New: func(o sim.Options) sim.Simulation {
			s := &nodeSim{seed: o.Seed, nodes: map[string]*Node{}}
			s.cluster = sim.New(o, s)
			return s
		},
	})
}

func (s *nodeSim) Cluster() *sim.Cluster                           { return s.cluster }
func (s *nodeSim) Summary() string                                 { return "" }
func (s *nodeSim) Leader() *sim.Node                               { return nil }
func (s *nodeSim) Transfer(ctx context.Context, n *sim.Node) error { return nil }
func (s *nodeSim) Trim(n *sim.Node)                                {}

func (s *nodeSim) Run(ctx context.Context, schedule sim.Schedule) {
	s.cluster.Start(ctx)
	time.Sleep(20 * time.Second)
	s.cluster.Stop()
}

func (s *nodeSim) Process(ctx context.Context, n *sim.Node) error {
	log := n.Logger()
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	network := s.cluster.Net
	var server *simnats.Server
	opts := Options{
		Name: n.Name, Cluster: "sim", Partitions: 2, Bootstrap: n.Voters, ClusterListen: "127.0.0.1:1",
		ClusterSecret: "the secret of a simulated cluster, of 32 characters and more",
		Logger:        log,
		store:         wal.Options{FS: n.Disk(), SegmentSize: 1 << 20, CheckpointBytes: 32 << 10, FreeSpace: func(string) (int64, error) { return 1 << 40, nil }},
		freeSpace:     func(string) (int64, error) { return 1 << 40, nil },
		environment: &environment{
			startNATS: func(o natsserver.Options) (_ natsServer, err error) {
				server, err = simnats.Start(simnats.Options{Host: n.Name, Name: o.Name + "-sim", Peers: n.Voters, Net: network, Seed: s.seed})
				if err != nil {
					return nil, err
				}
				return &simServer{Server: server, never: make(chan struct{})}, nil
			},
			listen: func() (net.Listener, error) { return network.Listen(simnet.Address(n.Name, "raft")) },
			dial:   network.Dialer(n.Name),
		},
	}
	starting, cancel := context.WithCancel(ctx)
	defer cancel()
	node, err := Open(starting, n.Dir(), opts)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	s.cluster.Note("%s is open", n.Name)
	select {
	case <-ctx.Done():
	case <-n.Ended():
	case <-node.Done():
	}
	return node.Close()
}
