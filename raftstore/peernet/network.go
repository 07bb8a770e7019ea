package peernet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

const (
	// handshakeTimeout is how long a peer has for TLS and the handshake.
	handshakeTimeout = 5 * time.Second
	// maxHandshakes bounds the inbound connections in their handshake. One more
	// closes the oldest: a member's handshake takes milliseconds, so the oldest
	// is the least likely to be a member's.
	maxHandshakes = 256
	// warnInterval is the minimum time between two warnings about peers.
	warnInterval = 10 * time.Second
)

var (
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("peernet: closed")
	// ErrRefused is returned when a peer refuses a connection. The error's text
	// contains the reason.
	ErrRefused = errors.New("peernet: refused")
)

// Options configures a network. Node, Cluster, Key, Listener and Resolve are
// required.
type Options struct {
	// Node is this node's name.
	Node string
	// ID is the id of this node's data directory. The handshake sends it to
	// peers.
	ID string
	// Cluster is the cluster's unique id, and Key a secret of at least 32 bytes
	// that its members share. The network closes the connection of a peer that
	// does not prove that it has both, without a reply.
	Cluster string
	Key     []byte
	// Member returns an error if a peer that has the key is not a member. node
	// is the peer's name, id that of its data directory. The error refuses the
	// connection, and the peer receives its text. Member is called for each
	// inbound connection, concurrently, and must not block. Default: all peers
	// are members.
	Member func(node, id string) error
	// Payload returns this node's payload to a peer, at most 4 KiB.
	// CheckPayload checks that of a peer. The handshake carries a payload in
	// both directions, and its proofs cover them. An error from CheckPayload
	// refuses the connection, and both ends receive its text. Both functions
	// are called concurrently. Default: this node sends none and accepts all.
	Payload      func(peer string) []byte
	CheckPayload func(peer string, payload []byte) error
	// Listener accepts the peers' connections. The Network owns it and closes
	// it, even if New fails.
	Listener net.Listener
	// Resolve returns the host and port of a node. It is called for each
	// connection, since addresses may change. Calls are concurrent and must not
	// block.
	Resolve func(node string) (hostport string, err error)
	// Dial connects to an address that Resolve has returned, as
	// net.Dialer.DialContext does. Default: that of a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// TLS makes connections mutually authenticated; nil leaves them plain. The
	// network uses it both as server and as client. A node's certificate must
	// be valid for both uses, and for the node's name, or for ServerName if
	// that is set. ClientCAs and RootCAs hold the authorities; if one of them
	// is nil, the other is used for both.
	TLS *tls.Config
	// CatchUpRate bounds the bytes per second that pass [Network.Throttle]: the
	// old entries that the node sends to replicas that are behind. A higher
	// rate brings them up to date sooner, and leaves less of the disk and the
	// network for new entries. The minimum is 1 MiB, the default 16 MiB; a
	// negative rate means no bound.
	CatchUpRate int64
	// Logger receives messages about connections. Default: discarded.
	Logger *slog.Logger
}

// Handler serves the connections of one purpose.
type Handler struct {
	// Accept returns an error if this node cannot serve a group. It is called
	// during the handshake. The error refuses the connection, and the peer
	// receives its text. If Accept is nil, all groups are accepted.
	Accept func(group uint32) error
	// Serve is called for each connection, in its own goroutine. It owns the
	// connection: it closes it, or passes it to another owner.
	Serve func(*Conn)
}

// Network is a node's end of the connections between nodes. It listens, and
// dials other nodes by name.
//
// One goroutine accepts connections. Each accepted connection has a goroutine
// that does the handshake and then calls the handler. Dial uses the caller's
// goroutine. Close ends all of them: it closes the listener and breaks the
// connections, so that every read and write fails.
type Network struct {
	opts     Options
	tls      atomic.Pointer[tlsConfigs]
	limiter  *rate.Limiter // nil if the rate is not bounded
	log      *slog.Logger
	handlers map[Purpose]Handler // set before Serve is called, then constant

	ctx     context.Context // done when the network is closed
	cancel  context.CancelFunc
	running sync.WaitGroup // the goroutines of accept and admit

	// mu guards the fields below. It is not held during I/O.
	mu          sync.Mutex
	conns       map[net.Conn]struct{} // inbound connections in their handshake, and open *Conns
	handshaking []net.Conn            // inbound connections in their handshake, oldest first
	warned      time.Time             // when Warn last logged
	suppressed  int                   // warnings not logged since
}

// New returns a network that can dial. It accepts connections after
// [Network.Serve] is called.
func New(opts Options) (*Network, error) {
	n, err := newNetwork(opts)
	if err != nil {
		if opts.Listener != nil {
			_ = opts.Listener.Close()
		}
		return nil, fmt.Errorf("replication: %w", err)
	}
	return n, nil
}

func newNetwork(opts Options) (*Network, error) {
	switch {
	case opts.Node == "" || len(opts.Node) > maxName:
		return nil, fmt.Errorf("the node's name has %d bytes: it must have 1 to %d", len(opts.Node), maxName)
	case opts.Cluster == "" || len(opts.Cluster) > maxName:
		return nil, fmt.Errorf("the cluster's id has %d bytes: it must have 1 to %d", len(opts.Cluster), maxName)
	case len(opts.ID) > maxName:
		return nil, fmt.Errorf("the data directory's id has %d bytes, the limit is %d", len(opts.ID), maxName)
	case len(opts.Key) < minKey:
		return nil, fmt.Errorf("the cluster's key has %d bytes: it must have %d", len(opts.Key), minKey)
	case opts.Listener == nil || opts.Resolve == nil:
		return nil, errors.New("the options must have a listener and a function that resolves nodes")
	case opts.CatchUpRate > 0 && opts.CatchUpRate < minCatchUpRate:
		return nil, fmt.Errorf("the catch-up rate is %d bytes a second, the minimum is %d", opts.CatchUpRate, minCatchUpRate)
	}
	n := &Network{
		opts: opts, log: opts.Logger, limiter: newLimiter(opts.CatchUpRate),
		handlers: map[Purpose]Handler{handshakeOnly: {Serve: func(c *Conn) { _ = c.Close() }}}, conns: map[net.Conn]struct{}{},
	}
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	if n.opts.Dial == nil {
		n.opts.Dial = (&net.Dialer{}).DialContext
	}
	configs, err := newTLSConfigs(opts.TLS)
	if err != nil {
		return nil, err
	}
	n.tls.Store(configs)
	n.ctx, n.cancel = context.WithCancel(context.Background())
	return n, nil
}

// Handle sets the handler of a purpose. It must be called before
// [Network.Serve].
func (n *Network) Handle(purpose Purpose, h Handler) { n.handlers[purpose] = h }

// Serve starts accepting connections and returns. It must be called only once.
func (n *Network) Serve() { n.running.Go(n.acceptLoop) }

// Node returns this node's name.
func (n *Network) Node() string { return n.opts.Node }

// Addr returns the address of the listener.
func (n *Network) Addr() net.Addr { return n.opts.Listener.Addr() }

// Close breaks all connections and waits for the handlers. The owners of the
// connections must still close them. Close is idempotent.
func (n *Network) Close() error {
	n.cancel()
	err := n.opts.Listener.Close()
	n.breakAll()
	n.running.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Reconnect breaks all connections. Their owners dial again when they need to,
// and each new connection begins with a handshake.
func (n *Network) Reconnect() { n.breakAll() }

// breakAll breaks all connections that exist. Their owners close them.
func (n *Network) breakAll() {
	n.mu.Lock()
	all := slices.Collect(maps.Keys(n.conns))
	n.mu.Unlock()
	for _, conn := range all {
		if c, ok := conn.(*Conn); ok {
			c.Abort()
			continue
		}
		_ = conn.Close()
	}
}

// acceptLoop accepts connections until the network is closed.
func (n *Network) acceptLoop() {
	for pause := time.Duration(0); ; {
		conn, err := n.opts.Listener.Accept()
		switch {
		case err == nil:
			pause = 0
			n.admit(conn)
		case n.ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return
		default: // for example, no file descriptor is left
			n.Warn("connection could not be accepted", "err", err)
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			select {
			case <-n.ctx.Done():
			case <-time.After(pause):
			}
		}
	}
}

// admit starts a goroutine that does the handshake of an accepted connection
// and then serves it.
func (n *Network) admit(conn net.Conn) {
	n.beginHandshake(conn)
	if !n.track(conn) {
		n.endHandshake(conn)
		return
	}
	n.running.Go(func() {
		defer n.untrack(conn)
		c, err := n.serverHandshake(conn)
		n.endHandshake(conn)
		switch {
		case err != nil:
			_ = conn.Close()
			n.logRefused(conn, err)
		case n.track(c):
			n.handlers[c.purpose].Serve(c)
		}
	})
}

// beginHandshake adds a connection to those in their handshake. If there are
// too many, it closes the oldest.
func (n *Network) beginHandshake(conn net.Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.handshaking) >= maxHandshakes {
		_ = n.handshaking[0].Close()
		n.handshaking = slices.Delete(n.handshaking, 0, 1)
	}
	n.handshaking = append(n.handshaking, conn)
}

// endHandshake removes a connection from those in their handshake.
func (n *Network) endHandshake(conn net.Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if i := slices.Index(n.handshaking, conn); i >= 0 {
		n.handshaking = slices.Delete(n.handshaking, i, i+1)
	}
}

// track adds a connection to those that breakAll breaks. If the network is
// already closed, it closes the connection and returns false.
func (n *Network) track(conn net.Conn) bool {
	n.mu.Lock()
	closed := n.ctx.Err() != nil
	if !closed {
		n.conns[conn] = struct{}{}
	}
	n.mu.Unlock()
	if closed {
		_ = conn.Close()
	}
	return !closed
}

func (n *Network) untrack(conn net.Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.conns, conn)
}

// logRefused logs a refused connection. A connection for a group that is not
// open is routine, since nodes open and close a group at different times.
func (n *Network) logRefused(conn net.Conn, err error) {
	args := []any{"remote", conn.RemoteAddr().String(), "err", err}
	switch {
	case n.ctx.Err() != nil:
	case errors.As(err, new(NoGroupError)):
		n.log.Debug("inbound connection rejected", args...)
	default:
		n.Warn("inbound connection rejected", args...)
	}
}

// Warn logs a warning about peers, at most one in ten seconds: a faulty peer
// may cause many. The next warning reports how many were not logged.
func (n *Network) Warn(msg string, args ...any) {
	n.mu.Lock()
	now := time.Now()
	if now.Sub(n.warned) < warnInterval {
		n.suppressed++
		n.mu.Unlock()
		return
	}
	suppressed := n.suppressed
	n.warned, n.suppressed = now, 0
	n.mu.Unlock()
	n.log.Warn(msg, append(args, "not_logged_before", suppressed)...)
}
