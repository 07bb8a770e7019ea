package simnet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Latency bounds how long a message takes on a link.
type Latency struct{ Min, Max time.Duration }

// Network is a set of hosts and the links between them. It is safe for
// concurrent use.
type Network struct {
	seed    uint64
	latency Latency

	mu      sync.Mutex // guards all fields below, and those of links, listeners and connections
	changed chan struct{}
	hosts   map[string]*host
	links   map[[2]string]*link
	conns   map[*conn]struct{} // both ends of every connection that is not closed
	ids     int                // of the last connection
}

// host is a machine. A host is up until Kill or PowerOff, and again after
// Listen.
type host struct {
	down      bool                 // its process has ended
	off       bool                 // the machine has no power either
	listeners map[string]*listener // by address
}

// link is one direction between two hosts.
type link struct {
	rng     *rand.Rand
	latency Latency
	blocked bool
	extra   time.Duration
}

// New returns a network without links that are blocked. seed determines the
// latencies.
func New(seed uint64, latency Latency) *Network {
	return &Network{
		seed: seed, latency: latency, changed: make(chan struct{}),
		hosts: map[string]*host{}, links: map[[2]string]*link{}, conns: map[*conn]struct{}{},
	}
}

func (n *Network) hostLocked(name string) *host {
	h := n.hosts[name]
	if h == nil {
		h = &host{listeners: map[string]*listener{}}
		n.hosts[name] = h
	}
	return h
}

func (n *Network) linkLocked(from, to string) *link {
	key := [2]string{from, to}
	l := n.links[key]
	if l == nil {
		sum := fnv.New64a()
		_, _ = fmt.Fprintf(sum, "%s>%s", from, to)
		l = &link{rng: rand.New(rand.NewPCG(n.seed, sum.Sum64())), latency: n.latency}
		n.links[key] = l
	}
	return l
}

// delay returns how long the next message takes.
func (l *link) delay() time.Duration {
	d := l.latency.Min + l.extra
	if spread := l.latency.Max - l.latency.Min; spread > 0 {
		d += time.Duration(l.rng.Int64N(int64(spread)))
	}
	return d
}

// changedLocked wakes everything that waits for a change of the network.
func (n *Network) changedLocked() {
	close(n.changed)
	n.changed = make(chan struct{})
	for c := range n.conns {
		c.wakeLocked()
	}
}

// Block holds back everything that one host sends to another; what is on its
// way does not arrive either. Unblock ends that.
func (n *Network) Block(from, to string) { n.setBlocked(from, to, true) }

// Unblock ends a Block. What was held back arrives.
func (n *Network) Unblock(from, to string) { n.setBlocked(from, to, false) }

func (n *Network) setBlocked(from, to string, blocked bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.linkLocked(from, to).blocked = blocked
	n.changedLocked()
}

// Delay sets by how much longer than others the messages from one host to
// another take from now on.
func (n *Network) Delay(from, to string, extra time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.linkLocked(from, to).extra = extra
}

// Heal unblocks all links, and ends all delays.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range n.links {
		l.blocked, l.extra = false, 0
	}
	n.changedLocked()
}

// Reset breaks the connections between two hosts: both ends get an error at
// once. It returns how many there were.
func (n *Network) Reset(a, b string) (count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.connsLocked() {
		if c.local == a && c.remote == b || c.local == b && c.remote == a {
			c.severLocked()
			count++
		}
	}
	return count / 2
}

// Kill ends a host's process: its connections and its listener close, and its
// peers' ends are reset. Dials to the host are refused, and dials from it fail,
// until Listen.
func (n *Network) Kill(name string) { n.take(name, false) }

// PowerOff cuts a host's power. Unlike after Kill, its peers notice nothing:
// they get no answer until a new process listens on the host.
func (n *Network) PowerOff(name string) { n.take(name, true) }

func (n *Network) take(name string, off bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.hostLocked(name)
	h.down, h.off = true, off
	for _, l := range h.listeners {
		l.closeLocked()
	}
	for _, c := range n.connsLocked() {
		if c.local == name {
			c.gone = true
			c.severLocked()
		}
	}
	if !off {
		n.resetPeersLocked(name)
	}
	n.changedLocked()
}

// resetPeersLocked sends a reset to the other ends of connections to a process
// that is gone.
func (n *Network) resetPeersLocked(name string) {
	for _, c := range n.connsLocked() {
		if c.remote == name && c.peer.gone {
			c.resetLocked(time.Now().Add(n.linkLocked(name, c.local).delay()))
		}
	}
}

// connsLocked returns the ends of all connections, the oldest first.
func (n *Network) connsLocked() []*conn {
	return slices.SortedFunc(maps.Keys(n.conns), func(a, b *conn) int {
		return cmp.Or(a.id-b.id, strings.Compare(a.local, b.local))
	})
}

// Listen starts a process on a host, unless one runs there, which accepts
// connections to an address of the host: see [Address].
func (n *Network) Listen(address string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	name := hostOf(address)
	h := n.hostLocked(name)
	if h.listeners[address] != nil {
		return nil, &net.OpError{Op: "listen", Net: "sim", Addr: addr(address), Err: syscall.EADDRINUSE}
	}
	h.down, h.off = false, false
	l := &listener{network: n, host: name, address: address, backlog: make(chan *conn, backlog), done: make(chan struct{})}
	h.listeners[address] = l
	n.resetPeersLocked(name)
	n.changedLocked()
	return l, nil
}

// Address returns an address of a host, for listening and dialing. Each service
// has one.
func Address(host, service string) string { return host + ":" + service }

func hostOf(address string) string {
	host, _, _ := strings.Cut(address, ":")
	return host
}

// Dialer returns a function that dials from a host, with the signature of
// net.Dialer.DialContext. Where nothing listens the error wraps
// syscall.ECONNREFUSED.
func (n *Network) Dialer(from string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, _, to string) (net.Conn, error) {
		c, err := n.dial(ctx, from, to)
		if err != nil {
			return nil, &net.OpError{Op: "dial", Net: "sim", Addr: addr(to), Err: err}
		}
		return c, nil
	}
}

func (n *Network) dial(ctx context.Context, from, address string) (*conn, error) {
	to := hostOf(address)
	if err := n.travel(ctx, from, to); err != nil {
		return nil, err
	}
	c, err := n.connect(from, address)
	if err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
		return nil, err
	}
	if back := n.travel(ctx, to, from); back != nil {
		if c != nil {
			_ = c.Close()
		}
		return nil, back
	}
	return c, err
}

// travel waits for as long as a message from one host to another takes.
func (n *Network) travel(ctx context.Context, from, to string) error {
	n.mu.Lock()
	arrival := time.Now().Add(n.linkLocked(from, to).delay())
	n.mu.Unlock()
	for {
		n.mu.Lock()
		stuck := n.linkLocked(from, to).blocked || n.hostLocked(from).off || n.hostLocked(to).off
		changed := n.changed
		n.mu.Unlock()
		left := time.Until(arrival)
		if !stuck && left <= 0 {
			return nil
		}
		var timer <-chan time.Time
		if left > 0 {
			timer = time.After(left)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-timer:
		}
	}
}

// connect makes a connection if the other host accepts it.
func (n *Network) connect(from, address string) (*conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	to := hostOf(address)
	if n.hostLocked(from).down {
		return nil, syscall.ENETDOWN
	}
	l := n.hostLocked(to).listeners[address]
	if l == nil {
		return nil, syscall.ECONNREFUSED
	}
	n.ids++
	local, remote := newConn(n, from, to, n.ids), newConn(n, to, from, n.ids)
	local.peer, remote.peer = remote, local
	select {
	case l.backlog <- remote:
	default:
		return nil, syscall.ECONNREFUSED
	}
	n.conns[local], n.conns[remote] = struct{}{}, struct{}{}
	return local, nil
}

// Hosts returns the names of the hosts at which a process listens, sorted.
func (n *Network) Hosts() (names []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, h := range n.hosts {
		if len(h.listeners) > 0 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// backlog is how many connections may wait for Accept.
const backlog = 128

type listener struct {
	network *Network
	host    string
	address string
	backlog chan *conn
	done    chan struct{} // closed by Close
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, &net.OpError{Op: "accept", Net: "sim", Addr: l.Addr(), Err: net.ErrClosed}
	case c := <-l.backlog:
		return c, nil
	}
}

// Close closes the listener. It resets the connections that were not accepted.
func (l *listener) Close() error {
	l.network.mu.Lock()
	defer l.network.mu.Unlock()
	return l.closeLocked()
}

func (l *listener) closeLocked() error {
	h := l.network.hosts[l.host]
	if h.listeners[l.address] != l {
		return net.ErrClosed
	}
	delete(h.listeners, l.address)
	close(l.done)
	for {
		select {
		case c := <-l.backlog:
			c.severLocked()
			c.peer.severLocked()
		default:
			return nil
		}
	}
}

func (l *listener) Addr() net.Addr { return addr(l.address) }

// addr is an address of a listener, or of an end of a connection.
type addr string

func (addr) Network() string  { return "sim" }
func (a addr) String() string { return string(a) }
