package peernet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"
)

// Dial connects to a node for a purpose and a group; the group is 0 if the
// purpose has no groups. The caller owns the connection and closes it. Dial
// takes at most five seconds, and fails early if ctx ends or the network is
// closed. The errors to test for are [ErrRefused], [ErrClosed] and ctx's.
func (n *Network) Dial(ctx context.Context, node string, purpose Purpose, group uint32) (*Conn, error) {
	c, err := n.dial(ctx, greeting{purpose: purpose, group: group, from: n.opts.Node, id: n.opts.ID, to: node})
	if err == nil && !n.track(c) {
		err = ErrClosed
	}
	if err != nil {
		return nil, fmt.Errorf("connect to %s, group %d: %w", node, group, err)
	}
	return c, nil
}

// Handshake connects to a node, does the handshake, in which each end checks
// the other's payload, and disconnects. The error is the connection's, or
// contains the reason why one end has refused the other.
func (n *Network) Handshake(ctx context.Context, node string) error {
	c, err := n.Dial(ctx, node, handshakeOnly, 0)
	if err != nil {
		return err
	}
	return c.Close()
}

func (n *Network) dial(ctx context.Context, g greeting) (*Conn, error) {
	if len(g.to) > maxName {
		return nil, fmt.Errorf("the node's name has %d bytes, the limit is %d", len(g.to), maxName)
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	address, err := n.opts.Resolve(g.to)
	if err != nil {
		return nil, err
	}
	c, err := n.dialAddress(ctx, address, g)
	switch {
	case err == nil:
		return c, nil
	case n.ctx.Err() != nil:
		return nil, ErrClosed
	}
	return nil, fmt.Errorf("%s: %w", address, err)
}

func (n *Network) dialAddress(ctx context.Context, address string, g greeting) (*Conn, error) {
	conn, err := n.opts.Dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	c, err := n.clientHandshake(ctx, conn, g)
	if err != nil {
		_ = conn.Close()
	}
	return c, err
}

// probePauses are the pauses before the probes of PortClosed. When a process
// dies, the operating system may close its connections before its listener, so
// one probe is not enough.
var probePauses = []time.Duration{5 * time.Millisecond, 20 * time.Millisecond, 100 * time.Millisecond}

// probeTimeout is how long a probe may take.
const probeTimeout = time.Second

// PortClosed reports whether a node's machine refuses connections to the node's
// address, which means that the node's process is not running. It probes for
// about 100 ms. It returns false if ctx ends, or if a probe fails in any other
// way.
func (n *Network) PortClosed(ctx context.Context, node string) bool {
	for _, pause := range probePauses {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pause):
		}
		address, err := n.opts.Resolve(node)
		if err != nil {
			return false
		}
		conn, err := n.probe(ctx, address)
		switch {
		case err == nil:
			_ = conn.Close()
		case errors.Is(err, syscall.ECONNREFUSED):
			return true
		default:
			return false
		}
	}
	return false
}

// probe connects to an address without a handshake.
func (n *Network) probe(ctx context.Context, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	return n.opts.Dial(ctx, "tcp", address)
}
