package raftstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/cantuslog/cantus/raftstore/peernet"
)

// NetworkOptions configures a node's network. Node, Cluster, Key, Listener and
// Resolve are required.
type NetworkOptions = peernet.Options

// Network connects the groups of a node with their replicas on other nodes. All
// groups of the node share it. It is safe for concurrent use.
type Network struct {
	peers *peernet.Network

	// ctx is done when the network is closed, before peers is closed: it
	// unblocks handlers that wait for a group.
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup

	starved starvation // has its own lock
	// unreached limits warnings about a peer that can't be reached, and ended
	// messages about one whose process has ended.
	unreached, ended outages

	// mu guards the fields below.
	mu              sync.Mutex
	groups          map[uint32]*endpoint
	batchers        map[string]*heartbeatBatcher // by the peer that heartbeats are sent to
	heartbeatConns  map[string]int               // open connections for heartbeats, by the node that sends them
	shortestTimeout time.Duration                // of the groups' heartbeat timeouts
	adapted         bool                         // raft's timeouts are longer than the groups' own
}

// NewNetwork opens the node's network and accepts connections. It refuses
// connections for a group that is not open. It owns the listener, even if it
// fails.
func NewNetwork(opts NetworkOptions) (*Network, error) {
	peers, err := peernet.New(opts)
	if err != nil {
		return nil, err
	}
	n := &Network{peers: peers, groups: map[uint32]*endpoint{}, batchers: map[string]*heartbeatBatcher{}, heartbeatConns: map[string]int{}}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	peers.Handle(peernet.Raft, peernet.Handler{Accept: n.checkGroup, Serve: n.serveGroup((*endpoint).deliver)})
	peers.Handle(peernet.Fetch, peernet.Handler{Accept: n.checkGroup, Serve: n.serveGroup((*endpoint).serveFetch)})
	peers.Handle(peernet.Heartbeats, peernet.Handler{Serve: n.serveHeartbeats})
	peers.Serve()
	n.running.Go(n.watchStarvation)
	return n, nil
}

// Addr returns the address of the listener.
func (n *Network) Addr() net.Addr { return n.peers.Addr() }

// Close breaks all connections and waits for the network's goroutines. Groups
// that are still open on it continue without their peers; close them first.
// Close is idempotent.
func (n *Network) Close() error {
	// The order matters. Handlers that wait for a group end when ctx does, the
	// others when their connections break, so peers.Close, which waits for all
	// handlers, comes second. Only handlers and batchers start goroutines in
	// running, so Close waits for it last.
	n.cancel()
	err := n.peers.Close()
	n.mu.Lock()
	batchers := make([]*heartbeatBatcher, 0, len(n.batchers))
	for _, b := range n.batchers {
		batchers = append(batchers, b)
	}
	n.mu.Unlock()
	for _, b := range batchers {
		b.close()
	}
	n.running.Wait()
	return err
}

// Handshake connects to a node, does the handshake, in which each end checks
// the other's payload, and disconnects. The error is the connection's, or
// contains the reason why one end has refused the other.
func (n *Network) Handshake(ctx context.Context, node string) error {
	return n.peers.Handshake(ctx, node)
}

// Reconnect breaks all connections. New ones are made when they are needed, and
// begin with a handshake.
func (n *Network) Reconnect() { n.peers.Reconnect() }

// SetTLS changes the certificates and authorities of future connections, and
// keeps existing connections. It returns a function that undoes the change. TLS
// can't be turned on or off, since the peers could not do so at the same time.
func (n *Network) SetTLS(c *tls.Config) (restore func(), err error) { return n.peers.SetTLS(c) }

// SetCatchUpRate changes the bound that NetworkOptions.CatchUpRate has set; 0
// means the default. It has no effect if the options set no bound.
func (n *Network) SetCatchUpRate(bytes int64) { n.peers.SetCatchUpRate(bytes) }

// dial connects to a node. The error wraps ErrClosed if the network is closed.
func (n *Network) dial(ctx context.Context, node string, purpose peernet.Purpose, group uint32) (*peernet.Conn, error) {
	c, err := n.peers.Dial(ctx, node, purpose, group)
	if errors.Is(err, peernet.ErrClosed) {
		err = fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return c, err
}

// endpoint returns a group's endpoint, nil if the group is not open.
func (n *Network) endpoint(group uint32) *endpoint {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.groups[group]
}

// checkGroup returns a NoGroupError if a group is not open.
func (n *Network) checkGroup(group uint32) error {
	if n.endpoint(group) == nil {
		return peernet.NoGroupError(group)
	}
	return nil
}

// serveGroup returns a handler that calls serve with the endpoint of the
// connection's group.
func (n *Network) serveGroup(serve func(*endpoint, *peernet.Conn)) func(*peernet.Conn) {
	return func(c *peernet.Conn) {
		e := n.endpoint(c.Group())
		if e == nil { // closed since the handshake
			_ = c.Close()
			return
		}
		serve(e, c)
	}
}
