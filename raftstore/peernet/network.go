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
	// maxHandshakes bounds the inbound connections that are in their handshake.
	// A new one beyond it closes the oldest, since members take milliseconds.
	maxHandshakes = 256
	// warnInterval is the least time between two warnings about peers.
	warnInterval = 10 * time.Second
)

var (
	// ErrClosed is returned by a network that is closed.
	ErrClosed = errors.New("peernet: closed")
	// ErrRefused is returned when a peer refuses a connection. The error's text
	// says why.
	ErrRefused = errors.New("peernet: refused")
)

// Options configures a network. Node, Cluster, Key, Listener and Resolve are
// required.
type Options struct {
	// Node is this node's name.
	Node string
	// ID is the id of this node's data directory. The handshake tells it to peers.
	ID string
	// Cluster is the cluster's unique id, and Key a secret of at least 32 bytes
	// that its members share. A peer that does not prove that it has both gets
	// no answer: its connection is closed.
	Cluster string
	Key     []byte
	// Member refuses a peer that has the key but is not a member, by its name
	// and the id of its data directory. The peer gets the text of its error. It
	// is called for each connection that a peer dials, concurrently, and must
	// answer from memory. Default: all peers are members.
	Member func(node, id string) error
	// Claims returns what this node claims to a peer, at most 4 KiB, and
	// CheckClaims judges what a peer claims. Claims go in both directions, after
	// the proof of the peer's identity, which covers them, and before anything
	// else. An error of CheckClaims refuses the connection at both ends, with
	// its text. Both are called concurrently. Default: this node claims nothing
	// and accepts all claims.
	Claims      func(peer string) []byte
	CheckClaims func(peer string, claims []byte) error
	// Listener accepts the peers' connections. The Network owns it and closes
	// it, also when New fails.
	Listener net.Listener
	// Resolve returns the host and port of a node. It is called for each
	// connection, since an address may change, concurrently, and must answer
	// from memory.
	Resolve func(node string) (hostport string, err error)
	// TLS makes connections mutually authenticated; nil leaves them plain. The
	// network uses it as server and as client. A node's certificate must be
	// valid for the node's name, or for ServerName where that is set, and for
	// both uses. ClientCAs and RootCAs hold the authorities; one of them may
	// stand for both.
	TLS *tls.Config
	// CatchUpRate bounds the bytes per second that pass [Network.Throttle]: the
	// old entries that the node sends to replicas that are behind. More brings
	// them up to date sooner and leaves less of the disk and the network for new
	// entries. At least 1 MiB; default 16 MiB; negative for no bound.
	CatchUpRate int64
	// Logger receives messages about connections. Default: they are discarded.
	Logger *slog.Logger
}

// Handler serves the connections of one purpose.
type Handler struct {
	// Accept refuses a connection for a group that this node cannot serve. It is
	// called in the handshake, and the peer gets the text of its error. nil
	// accepts all groups.
	Accept func(group uint32) error
	// Serve is called for each connection, on a goroutine of its own. It owns
	// the connection and closes it, or passes it on to a new owner.
	Serve func(*Conn)
}

// Network is a node's end of the connections between nodes: a listener, and the
// dialing of other nodes by name.
type Network struct {
	opts     Options
	tls      atomic.Pointer[tlsConfigs]
	limiter  *rate.Limiter // nil without a bound
	log      *slog.Logger
	handlers map[Purpose]Handler // set before Serve, constant from then on

	ctx     context.Context // ends when the network is closed
	cancel  context.CancelFunc
	running sync.WaitGroup

	// mu guards what follows.
	mu          sync.Mutex
	conns       map[net.Conn]struct{} // in their inbound handshake, or a *Conn that is not closed
	handshaking []net.Conn            // inbound, oldest first
	warned      time.Time             // when Warn last logged
	suppressed  int                   // warnings since
}

// New returns a network that can dial. It accepts connections once [Network.Serve]
// is called.
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
		return nil, errors.New("a listener and a way to resolve nodes are needed")
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
	configs, err := newTLSConfigs(opts.TLS)
	if err != nil {
		return nil, err
	}
	n.tls.Store(configs)
	n.ctx, n.cancel = context.WithCancel(context.Background())
	return n, nil
}

// Handle sets the handler of a purpose. It is called before [Network.Serve].
func (n *Network) Handle(purpose Purpose, h Handler) { n.handlers[purpose] = h }

// Serve begins to accept connections, and returns. It is called once.
func (n *Network) Serve() { n.running.Go(n.accept) }

// Node returns this node's name.
func (n *Network) Node() string { return n.opts.Node }

// Addr returns the address of the listener.
func (n *Network) Addr() net.Addr { return n.opts.Listener.Addr() }

// Close breaks all connections and waits for the handlers. Owners of connections
// must still close them. Close is idempotent.
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

// Reconnect breaks all connections. Their owners dial again as they need them,
// and each new connection begins with the handshake.
func (n *Network) Reconnect() { n.breakAll() }

// breakAll breaks all connections that exist. Their owners close them.
func (n *Network) breakAll() {
	n.mu.Lock()
	all := slices.Collect(maps.Keys(n.conns))
	n.mu.Unlock()
	for _, conn := range all {
		if c, is := conn.(*Conn); is {
			c.Abort()
			continue
		}
		_ = conn.Close()
	}
}

// accept starts a goroutine for each connection.
func (n *Network) accept() {
	for pause := time.Duration(0); ; {
		conn, err := n.opts.Listener.Accept()
		switch {
		case err == nil:
			pause = 0
			n.admit(conn)
		case n.ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return
		default: // out of file descriptors, perhaps
			n.Warn("connection could not be accepted", "err", err)
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			select {
			case <-n.ctx.Done():
			case <-time.After(pause):
			}
		}
	}
}

// admit does the handshake of an accepted connection and serves it, on a
// goroutine of its own.
func (n *Network) admit(conn net.Conn) {
	n.beginHandshake(conn)
	if !n.track(conn) {
		n.endHandshake(conn)
		return
	}
	n.running.Go(func() {
		defer n.untrack(conn)
		c, err := n.receive(conn)
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

// beginHandshake records that a connection begins its handshake. If there are
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

// endHandshake records that a handshake is over.
func (n *Network) endHandshake(conn net.Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if i := slices.Index(n.handshaking, conn); i >= 0 {
		n.handshaking = slices.Delete(n.handshaking, i, i+1)
	}
}

// track has breakAll break a connection, until untrack. If the network is
// closed already, it closes the connection and returns false.
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

// logRefused logs a connection that was refused. A peer that is too early or too
// late for a group is nothing special.
func (n *Network) logRefused(conn net.Conn, err error) {
	args := []any{"remote", conn.RemoteAddr().String(), "err", err}
	switch {
	case n.ctx.Err() != nil:
	case errors.As(err, new(NoGroupError)):
		n.log.Debug("connection refused", args...)
	default:
		n.Warn("connection refused", args...)
	}
}

// Warn logs a warning about peers, at most one in ten seconds: what peers do
// wrong they may do often. The next warning says how many were not logged.
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
