package raftstore

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/time/rate"

	"github.com/cantuslog/cantus/wal"
)

// NetworkOptions configures a node's end of replication. Node, Cluster,
// Listener and Resolve are needed.
type NetworkOptions struct {
	// Node is this node's name, which is also its address to Raft.
	Node string
	// Cluster is the cluster's unique id: nodes of others are turned away.
	Cluster string
	// Listener is where the other nodes come to. It is the network's from then
	// on.
	Listener net.Listener
	// Resolve gives the host:port of a node. It is asked at each dial, so that
	// an address may change.
	Resolve func(node string) (string, error)
	// TLS secures replication, both ways: each side checks the other's
	// certificate against RootCAs (or ClientCAs). Default: plain.
	TLS *tls.Config
	// CatchUpRate bounds the bytes a second that are sent, of all groups
	// together, to replicas that are far behind. Default 64 MiB, negative for
	// no bound.
	CatchUpRate int64
	// Logger takes what is refused. Default: discarded.
	Logger *slog.Logger
}

// Network is a node's end of replication: one listener, and the connections
// to the other nodes, which it knows by name. The groups of a node share it.
// It is safe for concurrent use.
type Network struct {
	opts           NetworkOptions
	server, client *tls.Config
	catchUp        *rate.Limiter
	log            *slog.Logger

	mu     sync.Mutex
	groups map[uint32]*endpoint
	conns  map[net.Conn]*endpoint // nil for one that has not said for whom it is
	quiet  time.Time              // no complaint is logged before
	closed bool

	serving sync.WaitGroup
}

// endpoint is a group's place in the network: what raft's transport listens
// and dials through.
type endpoint struct {
	network *Network
	group   uint32
	log     *wal.Log
	conns   chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

const (
	// handshakeTime bounds a connection's preamble, TLS included.
	handshakeTime = 5 * time.Second
	// catchUpBurst is what may be sent at once.
	catchUpBurst = 4 << 20
)

// NewNetwork begins to take connections. The caller closes it, after its
// groups.
func NewNetwork(opts NetworkOptions) (*Network, error) {
	for what, name := range map[string]string{"node": opts.Node, "cluster": opts.Cluster} {
		if name == "" || len(name) > 255 {
			return nil, fmt.Errorf("replication network: %s %q: 1 to 255 bytes are needed", what, name)
		}
	}
	n := &Network{opts: opts, log: opts.Logger, groups: map[uint32]*endpoint{}, conns: map[net.Conn]*endpoint{}}
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	limit := rate.Limit(opts.CatchUpRate)
	switch {
	case opts.CatchUpRate == 0:
		limit = 64 << 20
	case opts.CatchUpRate < 0:
		limit = rate.Inf
	}
	n.catchUp = rate.NewLimiter(limit, catchUpBurst)
	n.secure(opts.TLS)
	n.serving.Go(n.accept)
	return n, nil
}

// secure makes both directions check certificates, whatever the options leave
// open.
func (n *Network) secure(c *tls.Config) {
	if c == nil {
		return
	}
	n.server, n.client = c.Clone(), c.Clone()
	n.server.ClientAuth = tls.RequireAndVerifyClientCert
	if n.server.ClientCAs == nil {
		n.server.ClientCAs = c.RootCAs
	}
	if n.client.RootCAs == nil {
		n.client.RootCAs = c.ClientCAs
	}
	n.client.InsecureSkipVerify = false
}

// Addr is where the network listens.
func (n *Network) Addr() net.Addr { return n.opts.Listener.Addr() }

// Close ends all connections and returns when nothing of the network runs any
// more. It is idempotent.
func (n *Network) Close() error {
	n.mu.Lock()
	first := !n.closed
	n.closed = true
	for c := range n.conns {
		_ = c.Close()
	}
	n.mu.Unlock()
	var err error
	if first {
		err = n.opts.Listener.Close()
	}
	n.serving.Wait()
	return err
}

func (n *Network) accept() {
	for {
		conn, err := n.opts.Listener.Accept()
		if err != nil {
			n.mu.Lock()
			closed := n.closed
			n.mu.Unlock()
			if closed || errors.Is(err, net.ErrClosed) {
				return
			}
			n.complain("replication port", err)
			time.Sleep(10 * time.Millisecond) // out of file descriptors, say
			continue
		}
		if !n.track(conn, nil) {
			return
		}
		n.serving.Go(func() { n.receive(conn) })
	}
}

// track has Close close a connection; false says that the network is closed,
// and so is the connection then.
func (n *Network) track(c net.Conn, e *endpoint) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		_ = c.Close()
		return false
	}
	n.conns[c] = e
	return true
}

func (n *Network) forget(c net.Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.conns, c)
}

// receive finds out for whom a connection is and hands it over.
func (n *Network) receive(conn net.Conn) {
	raw := conn
	if err := raw.SetDeadline(time.Now().Add(handshakeTime)); err != nil {
		n.drop(raw, "", err)
		return
	}
	if n.server != nil {
		conn = tls.Server(conn, n.server)
	}
	p, err := readPreamble(conn)
	if err != nil {
		if errors.Is(err, errPreamble) {
			_ = writeAnswer(conn, err.Error())
		}
		n.drop(raw, "", err)
		return
	}
	e, why := n.welcome(p)
	if why != "" {
		_ = writeAnswer(conn, why)
		n.drop(raw, p.from, errors.New(why))
		return
	}
	if err := errors.Join(writeAnswer(conn, ""), raw.SetDeadline(time.Time{})); err != nil {
		n.drop(raw, p.from, err)
		return
	}
	n.track(raw, e)
	c := &tracked{framed: framed{Conn: conn}, network: n, raw: raw}
	if p.kind == kindFetch {
		e.serveFetch(c)
		return
	}
	select {
	case e.conns <- c:
	case <-e.closed:
		_ = c.Close()
	}
}

// welcome tells for which group a connection is, or why it is not taken.
func (n *Network) welcome(p preamble) (*endpoint, string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.groups[p.group]
	switch {
	case p.cluster != n.opts.Cluster:
		return nil, fmt.Sprintf("this is a node of cluster %s, not of %s", n.opts.Cluster, p.cluster)
	case p.to != n.opts.Node:
		return nil, fmt.Sprintf("this is node %s, not %s", n.opts.Node, p.to)
	case p.kind != kindRaft && p.kind != kindFetch:
		return nil, fmt.Sprintf("connections of kind %d are not known", p.kind)
	case e == nil:
		return nil, fmt.Sprintf("node %s has no replica of group %d", n.opts.Node, p.group)
	}
	return e, ""
}

// drop ends a connection that was not taken.
func (n *Network) drop(conn net.Conn, from string, why error) {
	n.forget(conn)
	if from == "" {
		from = conn.RemoteAddr().String()
	}
	n.complain(from, why)
	_ = conn.Close()
}

// complainEvery keeps a peer that goes on and on out of the log.
const complainEvery = 10 * time.Second

func (n *Network) complain(about string, why error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if now := time.Now(); !n.closed && now.After(n.quiet) {
		n.quiet = now.Add(complainEvery)
		n.log.Warn("replication connection refused", "from", about, "err", why)
	}
}

// dial opens a connection to a group's replica on a node.
func (n *Network) dial(kind uint8, group uint32, to string, timeout time.Duration, e *endpoint) (net.Conn, error) {
	deadline := time.Now().Add(timeout)
	address, err := n.opts.Resolve(to)
	if err != nil {
		return nil, err
	}
	raw, err := net.DialTimeout("tcp", address, timeout)
	if err != nil {
		return nil, err
	}
	if !n.track(raw, e) {
		return nil, ErrClosed
	}
	conn, err := n.introduce(raw, preamble{kind: kind, group: group, cluster: n.opts.Cluster, from: n.opts.Node, to: to}, address, deadline)
	if err != nil {
		n.forget(raw)
		return nil, errors.Join(fmt.Errorf("replication to %s at %s: %w", to, address, err), raw.Close())
	}
	return &tracked{framed: framed{Conn: conn}, network: n, raw: raw}, nil
}

func (n *Network) introduce(raw net.Conn, p preamble, address string, deadline time.Time) (net.Conn, error) {
	conn := raw
	if err := raw.SetDeadline(deadline); err != nil {
		return nil, err
	}
	if n.client != nil {
		c := n.client.Clone()
		if c.ServerName == "" {
			c.ServerName, _, _ = net.SplitHostPort(address)
		}
		conn = tls.Client(raw, c)
	}
	if _, err := conn.Write(p.encode()); err != nil {
		return nil, err
	}
	if err := readAnswer(conn); err != nil {
		return nil, err
	}
	return conn, raw.SetDeadline(time.Time{})
}

// tracked is a connection that the network closes if its owner does not.
type tracked struct {
	framed
	network *Network
	raw     net.Conn
}

func (t *tracked) Close() error {
	t.network.forget(t.raw)
	return t.framed.Close()
}

// join makes a group's replica reachable. Its endpoint is closed before
// another of the same group is made.
func (n *Network) join(group uint32, log *wal.Log) (*endpoint, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, ErrClosed
	}
	if n.groups[group] != nil {
		return nil, fmt.Errorf("replication network: group %d is open already", group)
	}
	e := &endpoint{network: n, group: group, log: log, conns: make(chan net.Conn), closed: make(chan struct{})}
	n.groups[group] = e
	return e, nil
}

// Accept gives the next connection of another replica of the group.
func (e *endpoint) Accept() (net.Conn, error) {
	select {
	case c := <-e.conns:
		return c, nil
	case <-e.closed:
		return nil, net.ErrClosed
	}
}

// Close makes the replica unreachable and ends its connections.
func (e *endpoint) Close() error {
	e.once.Do(func() {
		close(e.closed)
		e.network.mu.Lock()
		defer e.network.mu.Unlock()
		delete(e.network.groups, e.group)
		for c, owner := range e.network.conns {
			if owner == e {
				_ = c.Close()
			}
		}
	})
	return nil
}

// Addr is the node's name, which is its address to Raft.
func (e *endpoint) Addr() net.Addr { return nodeAddr(e.network.opts.Node) }

// Dial opens a connection to the group's replica on a node.
func (e *endpoint) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	select {
	case <-e.closed:
		return nil, ErrClosed
	default:
	}
	conn, err := e.network.dial(kindRaft, e.group, string(to), min(timeout, handshakeTime), e)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errAway, err)
	}
	return conn, nil
}

// errAway is returned when a replica was not reached.
var errAway = errors.New("raftstore: replica is away")

type nodeAddr string

func (nodeAddr) Network() string  { return "node" }
func (a nodeAddr) String() string { return string(a) }
