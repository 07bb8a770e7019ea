package e2e_test

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/relay"
)

// wires carries the traffic between nodes, so that they can be cut off from
// each other while clients still reach them. What is sent over a cut wire is
// neither lost nor refused: it waits, as with TCP.
type wires struct {
	tb    testing.TB
	delay time.Duration // of each direction; set before the nodes start

	mu     sync.Mutex
	off    map[string]bool                    // nodes that are cut off
	cut    func(sender, receiver string) bool // what is cut beside them
	relays map[*relay.Relay]string            // to which node
}

func newWires(tb testing.TB) *wires {
	return &wires{tb: tb, off: map[string]bool{}, cut: func(string, string) bool { return false }, relays: map[*relay.Relay]string{}}
}

// set cuts a node off, or reconnects it.
func (w *wires) set(node string, off bool) {
	w.mu.Lock()
	w.off[node] = off
	w.mu.Unlock()
	w.update()
}

// cutBetween cuts the ways that which selects, and no others.
func (w *wires) cutBetween(which func(sender, receiver string) bool) {
	w.mu.Lock()
	w.cut = which
	w.mu.Unlock()
	w.update()
}

func (w *wires) update() {
	for r, to := range w.relays {
		r.Hold(func(from string, way relay.Direction) bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.off[from] || w.off[to] {
				return true
			}
			if way == relay.Requests {
				return w.cut(from, to)
			}
			return w.cut(to, from)
		})
	}
}

// lay returns the address of a wire to the listener at target on the node to.
// If from is "", the beginning of a connection says which node it comes from.
func (w *wires) lay(from, to, target string) string {
	w.tb.Helper()
	var identify relay.Identify
	if from == "" {
		identify = fromGreeting
	}
	r := relay.Delay(w.tb, target, w.delay, identify)
	w.relays[r] = to
	address, err := r.Entry(from)
	if err != nil {
		w.tb.Fatal(err)
	}
	return address
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
