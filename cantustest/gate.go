package cantustest

import (
	"errors"
	"net"
	"sync"
	"time"
)

const reconnectWait = 5 * time.Millisecond

// gate dials for clients, and can shut.
type gate struct {
	mu    sync.Mutex
	shut  bool
	conns map[*gated]struct{}
}

// gated is a connection that was let through.
type gated struct {
	net.Conn
	gate *gate
}

var errCut = errors.New("cantustest: cut off")

// Dial is nats.CustomDialer's.
func (g *gate) Dial(network, address string) (net.Conn, error) {
	g.mu.Lock()
	shut := g.shut
	g.mu.Unlock()
	if shut {
		return nil, errCut
	}
	conn, err := net.Dial(network, address)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut {
		return nil, errors.Join(errCut, conn.Close())
	}
	if g.conns == nil {
		g.conns = map[*gated]struct{}{}
	}
	c := &gated{conn, g}
	g.conns[c] = struct{}{}
	return c, nil
}

func (c *gated) Close() error {
	c.gate.mu.Lock()
	delete(c.gate.conns, c)
	c.gate.mu.Unlock()
	return c.Conn.Close()
}

// set shuts or opens the gate. Shutting it ends what is through.
func (g *gate) set(shut bool) {
	g.mu.Lock()
	g.shut = shut
	g.mu.Unlock()
	if shut {
		g.drop()
	}
}

// drop ends what is through.
func (g *gate) drop() {
	g.mu.Lock()
	conns := g.conns
	g.conns = nil
	g.mu.Unlock()
	for c := range conns {
		_ = c.Conn.Close() // the client hears of it
	}
}
