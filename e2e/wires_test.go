package e2e_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// wires carries the traffic between nodes, so that a node can be cut off from
// the others while clients still reach it. What is sent over a cut wire is
// neither lost nor refused: it waits, as with TCP.
type wires struct {
	tb    testing.TB
	delay time.Duration // of each direction; set before the nodes start

	mu      sync.Mutex
	cut     map[string]bool
	changed chan struct{} // closed when something is cut or restored, then replaced
	conns   map[net.Conn]bool
	closed  chan struct{}
	running sync.WaitGroup
}

func newWires(tb testing.TB) *wires {
	w := &wires{tb: tb, cut: map[string]bool{}, changed: make(chan struct{}), conns: map[net.Conn]bool{}, closed: make(chan struct{})}
	tb.Cleanup(w.close)
	return w
}

func (w *wires) close() {
	w.mu.Lock()
	close(w.closed)
	for c := range w.conns {
		_ = c.Close()
	}
	w.mu.Unlock()
	w.running.Wait()
}

// set cuts a node off, or reconnects it.
func (w *wires) set(node string, cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut[node] = cut
	close(w.changed)
	w.changed = make(chan struct{})
}

// pass blocks while the wire between two nodes is cut. It returns false when
// the wires are closed.
func (w *wires) pass(from, to string) bool {
	for {
		w.mu.Lock()
		cut, changed := w.cut[from] || w.cut[to], w.changed
		w.mu.Unlock()
		if !cut {
			return true
		}
		select {
		case <-changed:
		case <-w.closed:
			return false
		}
	}
}

// lay returns the address of a wire to the listener at target on the node to.
// identify finds out from the beginning of a connection which node it comes
// from, and returns what it has read.
func (w *wires) lay(to, target string, identify func(near, far net.Conn) (from string, read []byte, err error)) string {
	w.tb.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.tb.Fatal(err)
	}
	w.tb.Cleanup(func() { _ = listener.Close() })
	w.running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // the test ends
			}
			if w.hold(conn) {
				w.running.Go(func() { w.connect(conn, to, target, identify) })
			}
		}
	})
	return listener.Addr().String()
}

// hold registers a connection for close. It reports false, and closes the
// connection, if the wires are closed.
func (w *wires) hold(c net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case <-w.closed:
		_ = c.Close()
		return false
	default:
		w.conns[c] = true
		return true
	}
}

func (w *wires) drop(c net.Conn) {
	_ = c.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.conns, c)
}

func (w *wires) connect(near net.Conn, to, target string, identify func(near, far net.Conn) (string, []byte, error)) {
	defer w.drop(near)
	far, err := net.Dial("tcp", target)
	if err != nil || !w.hold(far) {
		return // nobody is there: the other end hears it
	}
	defer w.drop(far)
	from, read, err := identify(near, far)
	if err != nil || !w.pass(from, to) {
		return
	}
	var back sync.WaitGroup
	back.Go(func() {
		w.carry(near, far, from, to)
		_ = near.Close()
	})
	w.carry(far, io.MultiReader(bytes.NewReader(read), near), from, to)
	_ = far.Close()
	back.Wait()
}

// chunk is the result of one read, and when it is due at the other end.
type chunk struct {
	data []byte
	due  time.Time
}

// carry copies one direction until either end is closed.
func (w *wires) carry(into io.Writer, out io.Reader, from, to string) {
	chunks, gone := make(chan chunk, 1024), make(chan struct{})
	defer close(gone)
	w.running.Go(func() {
		defer close(chunks)
		for {
			buffer := make([]byte, 32<<10)
			n, err := out.Read(buffer)
			if err != nil {
				return
			}
			select {
			case chunks <- chunk{buffer[:n], time.Now().Add(w.delay)}:
			case <-gone:
				return
			}
		}
	})
	for c := range chunks {
		select {
		case <-time.After(time.Until(c.due)): // a delay is what is tested
		case <-w.closed:
			return
		}
		if !w.pass(from, to) {
			return
		}
		if _, err := into.Write(c.data); err != nil {
			return
		}
	}
	w.pass(from, to) // the end is not heard of either while the wire is cut
}

// from is for a wire that only one node knows of.
func from(node string) func(near, far net.Conn) (string, []byte, error) {
	return func(net.Conn, net.Conn) (string, []byte, error) { return node, nil, nil }
}

// fromGreeting returns the node that dials the replication port. It passes the
// opening (48 bytes) and the answering nonce (32 bytes) on; then come a length,
// kind, group, and the names, the dialing node's first.
func fromGreeting(near, far net.Conn) (string, []byte, error) {
	if _, err := io.CopyN(far, near, 48); err != nil {
		return "", nil, err
	}
	if _, err := io.CopyN(near, far, 32); err != nil {
		return "", nil, err
	}
	read := make([]byte, 2)
	if _, err := io.ReadFull(near, read); err != nil {
		return "", nil, err
	}
	body := make([]byte, int(binary.BigEndian.Uint16(read)))
	if _, err := io.ReadFull(near, body); err != nil {
		return "", nil, err
	}
	if len(body) < 6 || len(body) < 6+int(body[5]) {
		return "", nil, errors.New("a greeting without names")
	}
	return string(body[6 : 6+body[5]]), append(read, body...), nil
}
