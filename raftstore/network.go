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

	// ctx ends when the network is closed, before peers is closed: it releases
	// handlers that wait for a group.
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup

	// mu guards what follows.
	mu             sync.Mutex
	groups         map[uint32]*endpoint
	batchers       map[string]*heartbeatBatcher // heartbeats to each peer
	heartbeatConns map[string]int               // connections for heartbeats, by the node that sends them

	starved  starvation
	shortest time.Duration // of the groups' heartbeat timeouts; mu guards it
	adapted  bool          // timeouts are longer than the groups' own; mu guards it
}

// NewNetwork opens the node's network and accepts connections. It refuses those
// for a group that is not open. It owns the listener, also when it fails.
func NewNetwork(opts NetworkOptions) (*Network, error) {
	peers, err := peernet.New(opts)
	if err != nil {
		return nil, err
	}
	n := &Network{peers: peers, groups: map[uint32]*endpoint{}, batchers: map[string]*heartbeatBatcher{}, heartbeatConns: map[string]int{}}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	peers.Handle(peernet.Raft, peernet.Handler{Accept: n.hasGroup, Serve: n.serveGroup((*endpoint).deliver)})
	peers.Handle(peernet.Fetch, peernet.Handler{Accept: n.hasGroup, Serve: n.serveGroup((*endpoint).serveFetch)})
	peers.Handle(peernet.Heartbeats, peernet.Handler{Serve: n.serveHeartbeats})
	peers.Serve()
	n.running.Go(n.watchStarvation)
	return n, nil
}

// Addr returns the address of the listener.
func (n *Network) Addr() net.Addr { return n.peers.Addr() }

// Close breaks all connections and waits for everything that the network runs.
// Groups that are open on it go on without their peers; close them first. Close
// is idempotent.
//
// The order matters. Handlers that wait for a group end with ctx, the others
// with their connections, so peers.Close, which waits for both, comes second.
// Only handlers and batchers start goroutines in running, so it is waited for
// last.
func (n *Network) Close() error {
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

// Handshake connects to a node for the handshake alone: each end checks what
// the other one claims. The error is the connection's, or says how one end has
// refused the other.
func (n *Network) Handshake(ctx context.Context, node string) error {
	return n.peers.Handshake(ctx, node)
}

// Reconnect breaks all connections. They are made anew as they are needed, and
// begin with the handshake.
func (n *Network) Reconnect() { n.peers.Reconnect() }

// SetTLS changes the certificates and authorities of future connections;
// existing connections go on. It returns a function that undoes the change. TLS
// can't be turned on or off: peers would not follow at once.
func (n *Network) SetTLS(c *tls.Config) (restore func(), err error) { return n.peers.SetTLS(c) }

// SetCatchUpRate changes the bytes per second that NetworkOptions.CatchUpRate
// bounds, 0 for the default. It does nothing if they have no bound.
func (n *Network) SetCatchUpRate(bytes int64) { n.peers.SetCatchUpRate(bytes) }

// dial connects to a node. The error wraps ErrClosed if the network is closed.
func (n *Network) dial(ctx context.Context, node string, purpose peernet.Purpose, group uint32) (*peernet.Conn, error) {
	c, err := n.peers.Dial(ctx, node, purpose, group)
	if errors.Is(err, peernet.ErrClosed) {
		err = fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return c, err
}

// endpoint returns the end of a group that is open, else nil.
func (n *Network) endpoint(group uint32) *endpoint {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.groups[group]
}

// hasGroup returns an error for peers if a group is not open.
func (n *Network) hasGroup(group uint32) error {
	if n.endpoint(group) == nil {
		return peernet.NoGroupError(group)
	}
	return nil
}

// serveGroup returns a handler of connections for open groups.
func (n *Network) serveGroup(serve func(*endpoint, *peernet.Conn)) func(*peernet.Conn) {
	return func(c *peernet.Conn) {
		e := n.endpoint(c.Group())
		if e == nil { // closed meanwhile
			_ = c.Close()
			return
		}
		serve(e, c)
	}
}
