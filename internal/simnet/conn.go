package simnet

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// conn is one end of a connection. The network's mu guards its fields.
type conn struct {
	network       *Network
	id            int
	local, remote string
	peer          *conn // the other end

	inbox    []segment     // sent by the peer and not read
	arrival  time.Time     // of the last segment that the peer has sent
	wake     chan struct{} // capacity 1: tells a reader to look again
	closed   bool
	gone     bool      // the local process has ended
	resetAt  time.Time // when a reset arrives or has arrived; zero if none was sent
	severed  bool      // it is broken
	deadline struct{ read, write time.Time }
}

// segment is what one Write has sent. Without data it is the end of the stream.
type segment struct {
	data    []byte
	arrival time.Time
}

func newConn(n *Network, local, remote string, id int) *conn {
	return &conn{network: n, local: local, remote: remote, id: id, wake: make(chan struct{}, 1)}
}

func (c *conn) wakeLocked() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// resetLocked lets a reset arrive at a time.
func (c *conn) resetLocked(at time.Time) {
	if c.resetAt.IsZero() || at.Before(c.resetAt) {
		c.resetAt = at
	}
	c.wakeLocked()
}

// severLocked breaks this end at once.
func (c *conn) severLocked() {
	c.severed = true
	c.wakeLocked()
}

// blockedLocked reports whether nothing arrives from the peer.
func (c *conn) blockedLocked() bool { return c.network.linkLocked(c.remote, c.local).blocked }

// Read returns what has arrived, and waits if nothing has.
func (c *conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		c.network.mu.Lock()
		n, next, err := c.readLocked(p)
		c.network.mu.Unlock()
		if n > 0 || err != nil {
			return n, c.opError("read", err)
		}
		c.wait(next)
	}
}

// wait waits until a time, if it is not zero, or a wake-up.
func (c *conn) wait(until time.Time) {
	if until.IsZero() {
		<-c.wake
		return
	}
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-c.wake:
	case <-timer.C:
	}
}

// readLocked reads what has arrived. If nothing has, next is when to look
// again, zero if that is not known.
func (c *conn) readLocked(p []byte) (n int, next time.Time, err error) {
	now := time.Now()
	if err := c.failedLocked(now); err != nil {
		return 0, next, err
	}
	if !c.deadline.read.IsZero() {
		if !now.Before(c.deadline.read) {
			return 0, next, os.ErrDeadlineExceeded
		}
		next = c.deadline.read
	}
	if c.blockedLocked() {
		return 0, next, nil
	}
	if !c.resetAt.IsZero() {
		next = earlier(next, c.resetAt)
	}
	if len(c.inbox) == 0 {
		return 0, next, nil
	}
	first := &c.inbox[0]
	if first.arrival.After(now) {
		return 0, earlier(next, first.arrival), nil
	}
	if len(first.data) == 0 {
		return 0, next, io.EOF
	}
	n = copy(p, first.data)
	if first.data = first.data[n:]; len(first.data) == 0 {
		c.inbox = c.inbox[1:]
	}
	return n, next, nil
}

// failedLocked returns an error if the connection is closed or reset.
func (c *conn) failedLocked(now time.Time) error {
	if !c.severed && !c.resetAt.IsZero() && !c.resetAt.After(now) && !c.blockedLocked() {
		c.severed = true
	}
	switch {
	case c.closed:
		return net.ErrClosed
	case c.severed:
		return syscall.ECONNRESET
	}
	return nil
}

// earlier returns the earlier of two times, of which zero ones do not count.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// Write sends p. It never waits.
func (c *conn) Write(p []byte) (int, error) {
	c.network.mu.Lock()
	defer c.network.mu.Unlock()
	now := time.Now()
	if err := c.failedLocked(now); err != nil {
		return 0, c.opError("write", err)
	}
	if d := c.deadline.write; !d.IsZero() && !now.Before(d) {
		return 0, c.opError("write", os.ErrDeadlineExceeded)
	}
	if len(p) > 0 {
		c.sendLocked(append([]byte(nil), p...))
	}
	return len(p), nil
}

// sendLocked sends a segment. The answer to data for an end that is closed is a
// reset.
func (c *conn) sendLocked(data []byte) {
	there := c.network.linkLocked(c.local, c.remote)
	peer := c.peer
	arrival := time.Now().Add(there.delay())
	if arrival.Before(peer.arrival) {
		arrival = peer.arrival
	}
	if peer.closed && len(data) > 0 {
		c.resetLocked(arrival.Add(c.network.linkLocked(c.remote, c.local).delay()))
		return
	}
	peer.arrival = arrival
	peer.inbox = append(peer.inbox, segment{data, arrival})
	peer.wakeLocked()
}

// Close closes this end. The peer reads what was sent, and then io.EOF.
func (c *conn) Close() error {
	c.network.mu.Lock()
	defer c.network.mu.Unlock()
	if c.closed {
		return c.opError("close", net.ErrClosed)
	}
	if c.failedLocked(time.Now()) == nil {
		c.sendLocked(nil)
	}
	c.closed, c.inbox = true, nil
	delete(c.network.conns, c)
	c.wakeLocked()
	return nil
}

func (c *conn) opError(op string, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return &net.OpError{Op: op, Net: "sim", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// LocalAddr returns the host's name and the connection's number, which both
// ends share.
func (c *conn) LocalAddr() net.Addr { return addr(fmt.Sprintf("%s#%d", c.local, c.id)) }

// RemoteAddr returns the same of the other end.
func (c *conn) RemoteAddr() net.Addr { return addr(fmt.Sprintf("%s#%d", c.remote, c.id)) }

func (c *conn) SetDeadline(t time.Time) error {
	return c.setDeadlines(func() { c.deadline.read, c.deadline.write = t, t })
}

func (c *conn) SetReadDeadline(t time.Time) error {
	return c.setDeadlines(func() { c.deadline.read = t })
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	return c.setDeadlines(func() { c.deadline.write = t })
}

func (c *conn) setDeadlines(set func()) error {
	c.network.mu.Lock()
	defer c.network.mu.Unlock()
	if c.closed {
		return c.opError("set", net.ErrClosed)
	}
	set()
	c.wakeLocked()
	return nil
}
