package cantustest

import (
	"errors"
	"net"
	"sync"
	"time"
)

const reconnectWait = 5 * time.Millisecond

// gate dials for clients, and can shut.
type dialer struct {
	mu      sync.Mutex
	blocked bool
	conns   map[*trackedConn]struct{}
}

// gated is a connection that was let through.
type trackedConn struct {
	net.Conn
	dialer *dialer
}

var errBlocked = errors.New("cantustest: cut off")

// Dial is nats.CustomDialer's.
func (d *dialer) Dial(network, address string) (net.Conn, error) {
	d.mu.Lock()
	blocked := d.blocked
	d.mu.Unlock()
	if blocked {
		return nil, errBlocked
	}
	conn, err := net.Dial(network, address)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.blocked {
		return nil, errors.Join(errBlocked, conn.Close())
	}
	if d.conns == nil {
		d.conns = map[*trackedConn]struct{}{}
	}
	c := &trackedConn{conn, d}
	d.conns[c] = struct{}{}
	return c, nil
}

func (c *trackedConn) Close() error {
	c.dialer.mu.Lock()
	delete(c.dialer.conns, c)
	c.dialer.mu.Unlock()
	return c.Conn.Close()
}

// set shuts or opens the gate. Shutting it ends what is through.
func (d *dialer) setBlocked(blocked bool) {
	d.mu.Lock()
	d.blocked = blocked
	d.mu.Unlock()
	if blocked {
		d.closeAll()
	}
}

// drop ends what is through.
func (d *dialer) closeAll() {
	d.mu.Lock()
	conns := d.conns
	d.conns = nil
	d.mu.Unlock()
	for c := range conns {
		_ = c.Conn.Close() // the client hears of it
	}
}
