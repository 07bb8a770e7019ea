package broker

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker/internal/natslink"
)

// Login opens a connection to the node within the process, as a client of the
// client port does: with the credentials in opts, or without any. The NATS
// server decides whether it lets them in, and what they may do. Without a
// client port, or if the port asks for a certificate, the error is [ErrLogin]:
// a connection within the process would go around that. The caller closes the
// connection, and flushes it before if it has published something.
func (n *Node) Login(opts ...nats.Option) (*nats.Conn, error) {
	if why := n.nats.NoLogin(); why != "" {
		return nil, fmt.Errorf("%w: %s", ErrLogin, why)
	}
	nc, err := connect(backgroundWriters{n.nats}, natslink.User{}, opts...)
	if errors.Is(err, io.ErrClosedPipe) || errors.Is(err, io.EOF) { // the server's reason was not read in time
		err = fmt.Errorf("%w: %w", nats.ErrAuthorization, err)
	}
	return nc, err
}

// backgroundWriters makes connections that write in the background. A server
// that refuses a login reads no further, and neither side of a pipe would read
// while both write: the refusal would take the server's write deadline.
type backgroundWriters struct{ nats.InProcessConnProvider }

func (p backgroundWriters) InProcessConn() (net.Conn, error) {
	pipe, err := p.InProcessConnProvider.InProcessConn()
	if err != nil {
		return nil, err
	}
	c := &backgroundWriter{Conn: pipe}
	c.changed.L = &c.mu
	go c.run()
	return c, nil
}

// backgroundLimit bounds the bytes that wait to be written.
const backgroundLimit = 1 << 20

// backgroundWriter is a connection that writes in the background.
type backgroundWriter struct {
	net.Conn

	mu      sync.Mutex
	changed sync.Cond
	waiting []byte
	err     error // of the last write, or net.ErrClosed
}

// run writes what waits until the connection is closed.
func (c *backgroundWriter) run() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		for len(c.waiting) == 0 && c.err == nil {
			c.changed.Wait()
		}
		if c.err != nil {
			return
		}
		now := c.waiting
		c.waiting = nil
		c.changed.Broadcast()
		c.mu.Unlock()
		_, err := c.Conn.Write(now)
		c.mu.Lock()
		if c.err == nil && err != nil {
			c.err = err
			c.changed.Broadcast()
		}
	}
}

// Write implements net.Conn.
func (c *backgroundWriter) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.waiting) >= backgroundLimit && c.err == nil {
		c.changed.Wait()
	}
	if c.err != nil {
		return 0, c.err
	}
	c.waiting = append(c.waiting, b...)
	c.changed.Broadcast()
	return len(b), nil
}

// Close implements net.Conn.
func (c *backgroundWriter) Close() error {
	c.mu.Lock()
	if c.err == nil {
		c.err = net.ErrClosed
	}
	c.changed.Broadcast()
	c.mu.Unlock()
	return c.Conn.Close()
}
