package raftstore

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
	// handshakeTimeout is how long a peer has for TLS and the preamble.
	handshakeTimeout = 5 * time.Second
	// maxHandshakes bounds the connections that are in their handshake: the
	// oldest makes room for a new one, since members take milliseconds.
	maxHandshakes = 256
	// complainEvery is how often a refused connection is logged at most.
	complainEvery = 10 * time.Second

	defaultCatchUpRate = 16 << 20
	minCatchUpRate     = 1 << 20
)

// NetworkOptions configures a node's end of replication. Node, Cluster, Key,
// Listener and Resolve are needed.
type NetworkOptions struct {
	// Node is this node's name, which is its address to Raft.
	Node string
	// ID is the id of this node's data directory, which peers are told.
	ID string
	// Cluster is the cluster's unique id, and Key a secret of at least 32 bytes
	// that its members share: peers that don't prove to have both are hung up
	// on without a word.
	Cluster string
	Key     []byte
	// Member refuses a peer that has the key and yet is no member, by its name
	// and the id of its data directory: its error is told to the peer. It is
	// asked for each connection that a peer dials, may be called by many at
	// once, and is to answer from memory. Default: any is taken.
	Member func(node, id string) error
	// Claims returns what this node claims to a peer, at most 4 KiB, and
	// CheckClaims judges what a peer claims. Claims go in both directions, after
	// the proof of who the peer is and covered by it, before anything else. An
	// error of CheckClaims refuses the connection at both ends, with its text.
	// Both are called by many at once. Default: nothing is claimed, and
	// whatever is claimed passes.
	Claims      func(peer string) []byte
	CheckClaims func(peer string, claims []byte) error
	// Listener is accepted on; the Network owns it and closes it, also when
	// NewNetwork fails.
	Listener net.Listener
	// Resolve gives the host and port of a node. It is asked for each
	// connection, since an address may change, may be called by many at once,
	// and is to answer from memory.
	Resolve func(node string) (hostport string, err error)
	// TLS makes connections mutually authenticated; nil leaves them plain. It
	// is used as server and as client. A node's certificate must be for the
	// node's name, or for ServerName where that is set, and good for both
	// ends; ClientCAs and RootCAs, one of which may stand for both, say who
	// signs them.
	TLS *tls.Config
	// CatchUpRate bounds the bytes a second that the node sends of old
	// entries, to replicas that are behind: more brings them up sooner, and
	// leaves less of the disk and the network for new ones. At least 1 MiB;
	// default 16 MiB; negative for no bound.
	CatchUpRate int64
	// Logger takes what is to be said of connections. Default: discarded.
	Logger *slog.Logger
}

// Network is a node's end of replication: one listener, and the dialing of
// peers by name. All groups of a node share it. It is safe for concurrent use.
type Network struct {
	opts    NetworkOptions
	ends    atomic.Pointer[ends] // of TLS
	limiter *rate.Limiter        // nil without a bound
	log     *slog.Logger

	ctx     context.Context // ends when the network is closed
	cancel  context.CancelFunc
	running sync.WaitGroup

	// mu guards what follows.
	mu         sync.Mutex
	groups     map[uint32]*endpoint
	beats      map[string]*beats     // by peer
	hearing    map[string]int        // connections for heartbeats, by who sends them
	conns      map[net.Conn]struct{} // in their handshake, of heartbeats, or serving a fetch
	shaking    []net.Conn            // in their handshake, the oldest first
	complained time.Time
	withheld   int // complaints since

	starved  starvation
	shortest time.Duration // of the groups' heartbeat timeouts; mu guards it
	adapted  bool          // timeouts are longer than the groups' own; mu guards it
}

// NewNetwork begins to accept connections. Those for a group are refused
// until it is open.
func NewNetwork(opts NetworkOptions) (*Network, error) {
	n, err := newNetwork(opts)
	if err != nil {
		if opts.Listener != nil {
			_ = opts.Listener.Close()
		}
		return nil, fmt.Errorf("replication: %w", err)
	}
	n.running.Go(n.accept)
	n.running.Go(n.watchStarvation)
	return n, nil
}

func newNetwork(opts NetworkOptions) (*Network, error) {
	switch {
	case opts.Node == "" || len(opts.Node) > maxName:
		return nil, fmt.Errorf("the node's name has %d bytes: it must have 1 to %d", len(opts.Node), maxName)
	case opts.Cluster == "" || len(opts.Cluster) > maxName:
		return nil, fmt.Errorf("the cluster's id has %d bytes: it must have 1 to %d", len(opts.Cluster), maxName)
	case len(opts.ID) > maxName:
		return nil, fmt.Errorf("the data directory's id has %d bytes: it can have %d", len(opts.ID), maxName)
	case len(opts.Key) < minKey:
		return nil, fmt.Errorf("the cluster's key has %d bytes: it must have %d", len(opts.Key), minKey)
	case opts.Listener == nil || opts.Resolve == nil:
		return nil, errors.New("a listener and a way to resolve nodes are needed")
	case opts.CatchUpRate > 0 && opts.CatchUpRate < minCatchUpRate:
		return nil, fmt.Errorf("the rate for catching up is %d bytes a second: the least is %d", opts.CatchUpRate, minCatchUpRate)
	}
	n := &Network{
		opts: opts, log: opts.Logger,
		groups: map[uint32]*endpoint{}, beats: map[string]*beats{}, hearing: map[string]int{}, conns: map[net.Conn]struct{}{},
	}
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	ends, err := tlsEnds(opts.TLS)
	if err != nil {
		return nil, err
	}
	n.ends.Store(ends)
	if opts.CatchUpRate >= 0 {
		n.limiter = rate.NewLimiter(0, 1)
		n.SetCatchUpRate(opts.CatchUpRate)
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	return n, nil
}

// SetCatchUpRate changes the bytes a second that NetworkOptions.CatchUpRate bounds,
// 0 for the default, unless they have no bound.
func (n *Network) SetCatchUpRate(bytes int64) {
	if n.limiter == nil {
		return
	}
	if bytes == 0 {
		bytes = defaultCatchUpRate
	}
	bytes = max(bytes, minCatchUpRate)
	n.limiter.SetLimit(rate.Limit(bytes))
	n.limiter.SetBurst(int(min(bytes/4, 4<<20)))
}

// Addr is the address that is listened on.
func (n *Network) Addr() net.Addr { return n.opts.Listener.Addr() }

// Close ends all connections and waits for what it runs. Groups that are open
// on it go on without their peers; they are best closed before. It is
// idempotent.
func (n *Network) Close() error {
	n.cancel()
	err := n.opts.Listener.Close()
	n.mu.Lock()
	for c := range n.conns {
		_ = c.Close()
	}
	for _, e := range n.groups {
		e.abort()
	}
	beats := slices.Collect(maps.Values(n.beats))
	n.mu.Unlock()
	for _, b := range beats {
		b.close()
	}
	n.running.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// accept hands connections to goroutines of their own.
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
			n.complain("connection could not be accepted", "err", err)
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			select {
			case <-n.ctx.Done():
			case <-time.After(pause):
			}
		}
	}
}

func (n *Network) admit(conn net.Conn) {
	n.shake(conn)
	if !n.run(conn, func() {
		l, g, err := n.receive(conn)
		n.shaken(conn)
		if err != nil {
			_ = conn.Close()
			n.refused(conn, err)
			return
		}
		n.serve(l, g)
	}) {
		n.shaken(conn)
	}
}

// shake notes that a connection begins its handshake, and makes room for it.
func (n *Network) shake(conn net.Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.shaking) >= maxHandshakes {
		_ = n.shaking[0].Close()
		n.shaking = slices.Delete(n.shaking, 0, 1)
	}
	n.shaking = append(n.shaking, conn)
}

// shaken notes that a handshake is over.
func (n *Network) shaken(conn net.Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if i := slices.Index(n.shaking, conn); i >= 0 {
		n.shaking = slices.Delete(n.shaking, i, i+1)
	}
}

// run runs what uses a connection, which Close closes; false says that the
// network was closed already, and the connection with it.
func (n *Network) run(conn net.Conn, f func()) bool {
	if !n.track(conn) {
		return false
	}
	n.running.Go(func() {
		defer n.untrack(conn)
		f()
	})
	return true
}

// refused logs a connection that was refused. A peer that is early, or late,
// for a group is nothing special.
func (n *Network) refused(conn net.Conn, err error) {
	args := []any{"remote", conn.RemoteAddr().String(), "err", err}
	switch {
	case n.ctx.Err() != nil:
	case errors.As(err, new(noGroupError)):
		n.log.Debug("connection refused", args...)
	default:
		n.complain("connection refused", args...)
	}
}

// track keeps a connection so that Close closes it; false says that it was
// closed already.
func (n *Network) track(conn net.Conn) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ctx.Err() != nil {
		_ = conn.Close()
		return false
	}
	n.conns[conn] = struct{}{}
	return true
}

func (n *Network) untrack(conn net.Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.conns, conn)
}

// serve hands a connection to whom it is for.
func (n *Network) serve(l *link, p greeting) {
	e := n.endpoint(p.group)
	switch {
	case p.kind == kindBeats:
		n.listen(p.from, +1)
		n.serveBeats(l, p.from)
		n.listen(p.from, -1)
		n.lost(p.from)
	case p.kind == kindGreet, e == nil: // or closed meanwhile
		_ = l.Close()
	case p.kind == kindFetch:
		e.serveFetch(l, p.from)
	default:
		e.deliver(l)
	}
}

// listen counts the connections over which a node sends heartbeats.
func (n *Network) listen(node string, change int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hearing[node] += change; n.hearing[node] == 0 {
		delete(n.hearing, node)
		n.starved.lost(node)
	}
}

// Greet makes a connection to a node for the sake of the handshake alone: both
// ends hear what the other one claims. The error is the connection's, or says
// how one end has refused the other.
func (n *Network) Greet(ctx context.Context, node string) error {
	l, err := n.dial(ctx, node, 0, kindGreet)
	if err != nil {
		return err
	}
	return l.Close()
}

// Reconnect breaks all connections. They are made anew as they are needed, and
// begin with the handshake.
func (n *Network) Reconnect() {
	n.mu.Lock()
	for c := range n.conns {
		_ = c.Close()
	}
	groups := slices.Collect(maps.Values(n.groups))
	n.mu.Unlock()
	for _, e := range groups {
		e.breakAll()
	}
}

// dial makes a connection to a group's replica on a node. It ends at the
// latest when ctx or the network does.
func (n *Network) dial(ctx context.Context, to string, group uint32, kind connKind) (*link, error) {
	l, err := n.connect(ctx, greeting{kind: kind, group: group, from: n.opts.Node, id: n.opts.ID, to: to})
	if err != nil {
		return nil, fmt.Errorf("connect to %s, group %d: %w", to, group, err)
	}
	return l, nil
}

func (n *Network) connect(ctx context.Context, g greeting) (*link, error) {
	if len(g.to) > maxName {
		return nil, fmt.Errorf("its name has %d bytes: it can have %d", len(g.to), maxName)
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	address, err := n.opts.Resolve(g.to)
	if err != nil {
		return nil, err
	}
	l, err := n.connectTo(ctx, address, g)
	switch {
	case err == nil:
		return l, nil
	case n.ctx.Err() != nil:
		return nil, ErrClosed
	}
	return nil, fmt.Errorf("%s: %w", address, err)
}

func (n *Network) connectTo(ctx context.Context, address string, g greeting) (*link, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	l, err := n.introduce(ctx, conn, g)
	if err != nil {
		_ = conn.Close()
	}
	return l, err
}

// complain logs what goes wrong with strangers, once in a while.
func (n *Network) complain(msg string, args ...any) {
	n.mu.Lock()
	now := time.Now()
	if now.Sub(n.complained) < complainEvery {
		n.withheld++
		n.mu.Unlock()
		return
	}
	withheld := n.withheld
	n.complained, n.withheld = now, 0
	n.mu.Unlock()
	n.log.Warn(msg, append(args, "not_logged_before", withheld)...)
}

// endpoint gives the end of a group that is open, else nil.
func (n *Network) endpoint(group uint32) *endpoint {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.groups[group]
}

// throttle waits until so many bytes of old entries may be sent.
func (n *Network) throttle(ctx context.Context, bytes int) error {
	for n.limiter != nil && bytes > 0 {
		some := min(bytes, n.limiter.Burst())
		if err := n.limiter.WaitN(ctx, some); err != nil {
			return err
		}
		bytes -= some
	}
	return nil
}
