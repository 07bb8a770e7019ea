// Package relay is a TCP proxy for tests. Connections through a Relay can be
// broken, stalled, delayed and slowed down, and the dialers can be refused or
// held one by one.
package relay

import (
	"bytes"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// Direction is one of the two directions of a connection.
type Direction int

// The directions of Hold, Stall and Resume.
const (
	Requests Direction = iota // from the dialer
	Replies                   // to the dialer
)

// Relay forwards connections to a target. Each dialer has its own address. It
// is safe for concurrent use.
//
// A goroutine for each dialer accepts connections, and each connection has one
// goroutine for each direction. A stall blocks them until Resume or Close.
type Relay struct {
	running sync.WaitGroup
	ended   chan struct{} // closed by Close

	mu      sync.Mutex
	target  string
	closed  bool
	entries map[string]net.Listener // by dialer
	refused map[string]bool         // by dialer
	conns   map[net.Conn]string     // both ends of each connection, with the dialer
	rate    int                     // limit in bytes a second of each connection's replies; 0 means none
	passed  int                     // bytes of replies, of all connections
	limit   int                     // connections break when passed exceeds it; 0 means never
	stalled [2]chan struct{}        // by direction: closed by Resume; nil if not stalled
	held    int                     // number of replies that were stalled
	holds   holds                   // see Hold
	changed chan struct{}           // closed when holds changes, then replaced

	// Set before the first Entry.
	delay    time.Duration
	identify Identify
}

// Identify finds out from the beginning of a connection who dials. It returns
// what it has read from near and not yet written to far.
type Identify func(near, far net.Conn) (dialer string, read []byte, err error)

// New returns a relay to an address. It is closed when the test ends.
func New(tb testing.TB, target string) *Relay {
	r := &Relay{
		target: target, ended: make(chan struct{}), changed: make(chan struct{}),
		holds:   func(string, Direction) bool { return false },
		entries: map[string]net.Listener{}, refused: map[string]bool{}, conns: map[net.Conn]string{},
	}
	tb.Cleanup(r.Close)
	return r
}

// Delay returns a relay that delays each direction. If identify is not nil, it
// decides who the dialer of a connection is, not the address that was dialed.
func Delay(tb testing.TB, target string, delay time.Duration, identify Identify) *Relay {
	r := New(tb, target)
	r.delay, r.identify = delay, identify
	return r
}

// Slow returns the URL of a relay to the NATS server at url. The relay forwards
// rate bytes a second to each connection.
func Slow(tb testing.TB, url string, rate int) string {
	tb.Helper()
	r := New(tb, strings.TrimPrefix(url, "nats://"))
	r.rate = rate
	address, err := r.Entry("client")
	if err != nil {
		tb.Fatal(err)
	}
	return "nats://" + address
}

// Entry returns the address at which a dialer reaches the target. After Close,
// it returns net.ErrClosed for a new dialer.
func (r *Relay) Entry(dialer string) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.entries[dialer]
	if l == nil {
		if r.closed {
			return "", net.ErrClosed
		}
		var err error
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return "", err
		}
		r.entries[dialer] = l
		r.running.Go(func() { r.accept(l, dialer) })
	}
	return l.Addr().String(), nil
}

// SetTarget changes the target of new connections.
func (r *Relay) SetTarget(address string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.target = address
}

func (r *Relay) accept(l net.Listener, dialer string) {
	for {
		near, err := l.Accept()
		if err != nil {
			return
		}
		r.mu.Lock()
		target := r.target
		r.mu.Unlock()
		far, err := net.Dial("tcp", target)
		if err != nil {
			_ = near.Close()
			continue
		}
		if r.rate > 0 { // larger buffers would hide the delay
			_ = far.(*net.TCPConn).SetReadBuffer(64 << 10)
			_ = near.(*net.TCPConn).SetWriteBuffer(64 << 10)
		}
		r.register(dialer, near, far)
		r.running.Go(func() { r.connect(near, far, dialer) })
	}
}

// connect forwards a connection in both directions, once its dialer is known.
func (r *Relay) connect(near, far net.Conn, dialer string) {
	requests := io.Reader(near)
	if r.identify != nil {
		from, read, err := r.identify(near, far)
		if err != nil {
			r.drop(near, far)
			return
		}
		dialer, requests = from, io.MultiReader(bytes.NewReader(read), near)
		r.register(dialer, near, far)
	}
	r.running.Go(func() { r.forward(far, near, r.delayed(requests), Requests, dialer) })
	r.forward(near, far, r.delayed(far), Replies, dialer)
}

// drop closes both ends of a connection and forgets it.
func (r *Relay) drop(ends ...net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range ends {
		_ = c.Close()
		delete(r.conns, c)
	}
}

// register adds both ends of a connection to conns. It closes them if the
// dialer is refused or the relay is closed.
func (r *Relay) register(dialer string, ends ...net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range ends {
		r.conns[c] = dialer
		if r.closed || r.refused[dialer] {
			_ = c.Close()
		}
	}
}

// chunk is the result of one read, and when it is due at the other end.
type chunk struct {
	data []byte
	err  error
	due  time.Time
}

// delayed returns a reader of what from has, each piece after the delay.
func (r *Relay) delayed(from io.Reader) io.Reader {
	if r.delay == 0 {
		return from
	}
	chunks := make(chan chunk, 1024)
	into, out := io.Pipe()
	r.running.Go(func() {
		defer close(chunks)
		for {
			buffer := make([]byte, 32<<10)
			n, err := from.Read(buffer)
			select {
			case chunks <- chunk{buffer[:n], err, time.Now().Add(r.delay)}:
			case <-r.ended:
				return
			}
			if err != nil {
				return
			}
		}
	})
	r.running.Go(func() {
		defer out.Close()
		for c := range chunks {
			select {
			case <-time.After(time.Until(c.due)): // a delay is what is tested
			case <-r.ended:
				return
			}
			if _, err := out.Write(c.data); err != nil || c.err != nil {
				return
			}
		}
	})
	return into
}

// forward copies one direction of a connection until either end is closed. It
// reads what from has sent from source.
func (r *Relay) forward(to, from net.Conn, source io.Reader, way Direction, dialer string) {
	defer r.drop(to, from)
	if pipe, ok := source.(*io.PipeReader); ok {
		defer pipe.Close()
	}
	buffer := make([]byte, 16<<10)
	for {
		n, err := source.Read(buffer)
		if !r.awaitRelease(dialer, way) || n > 0 && !r.pass(n, way) {
			return
		}
		if _, werr := to.Write(buffer[:n]); err != nil || werr != nil {
			return
		}
		if r.rate == 0 || way == Requests {
			continue
		}
		select {
		case <-time.After(time.Duration(n) * time.Second / time.Duration(r.rate)):
		case <-r.ended:
			return
		}
	}
}

// holds reports whether a direction of a dialer's connections is held.
type holds func(dialer string, way Direction) bool

// Hold holds what is sent in the directions of the dialers' connections that
// which selects, and the ends of these connections, until it is called again or
// the relay is closed.
func (r *Relay) Hold(which func(dialer string, way Direction) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holds = which
	close(r.changed)
	r.changed = make(chan struct{})
}

// awaitRelease blocks while a direction of a dialer's connections is held. It
// reports false if the relay is closed.
func (r *Relay) awaitRelease(dialer string, way Direction) bool {
	for {
		r.mu.Lock()
		held, changed := r.holds(dialer, way), r.changed
		r.mu.Unlock()
		if !held {
			return true
		}
		select {
		case <-changed:
		case <-r.ended:
			return false
		}
	}
}

// pass waits while a direction is stalled. It reports whether n more bytes may
// be forwarded.
func (r *Relay) pass(n int, way Direction) bool {
	r.mu.Lock()
	stalled := r.stalled[way]
	if stalled != nil && way == Replies {
		r.held++
	}
	r.mu.Unlock()
	if stalled != nil {
		<-stalled
	}
	if way == Requests {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.passed += n
	return r.limit == 0 || r.passed <= r.limit
}

// Refuse refuses the dialers that which selects, and no others, until it is
// called again. It closes their connections.
func (r *Relay) Refuse(which func(dialer string) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for dialer := range r.entries {
		r.refused[dialer] = which(dialer)
	}
	for c, dialer := range r.conns {
		if r.refused[dialer] {
			_ = c.Close()
		}
	}
}

// Limit breaks the connections once this many more bytes were forwarded to the
// dialers. 0 removes the limit.
func (r *Relay) Limit(bytes int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.limit = 0
	if bytes > 0 {
		r.limit = r.passed + bytes
	}
}

// Stall stops forwarding in some directions until they are resumed or the relay
// is closed. The connections stay open.
func (r *Relay) Stall(ways ...Direction) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, way := range ways {
		if r.stalled[way] == nil {
			r.stalled[way] = make(chan struct{})
		}
	}
}

// Resume ends a stall.
func (r *Relay) Resume(ways ...Direction) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, way := range ways {
		if r.stalled[way] != nil {
			close(r.stalled[way])
			r.stalled[way] = nil
		}
	}
}

// Held returns the number of replies that were stalled.
func (r *Relay) Held() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.held
}

// Cut breaks all connections. Dialers may connect again.
func (r *Relay) Cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		_ = c.Close()
	}
}

// Close closes the relay and its connections, and waits for its goroutines. It
// is idempotent.
func (r *Relay) Close() {
	r.mu.Lock()
	if !r.closed {
		close(r.ended)
	}
	r.closed = true
	for _, l := range r.entries {
		_ = l.Close()
	}
	r.mu.Unlock()
	r.Cut()
	r.Resume(Requests, Replies)
	r.running.Wait()
}
