package cantustest

import (
	"errors"
	"net"
	"sync"
	"time"
)

const reconnectWait = 5 * time.Millisecond

// dialer dials for clients. Its connections can be closed and blocked.
type dialer struct {
	mu      sync.Mutex
	blocked bool
	conns   map[*trackedConn]struct{}
}

// trackedConn is a connection that the dialer can close.
type trackedConn struct {
	net.Conn
	dialer *dialer
}

var errBlocked = errors.New("cantustest: connections are blocked")

// Dial implements [nats.CustomDialer].
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

// setBlocked blocks or unblocks new connections. Blocking also closes all
// existing ones.
func (d *dialer) setBlocked(blocked bool) {
	d.mu.Lock()
	d.blocked = blocked
	d.mu.Unlock()
	if blocked {
		d.closeAll()
	}
}

// closeAll closes all connections.
func (d *dialer) closeAll() {
	d.mu.Lock()
	conns := d.conns
	d.conns = nil
	d.mu.Unlock()
	for c := range conns {
		_ = c.Conn.Close() // the client notices
	}
}
