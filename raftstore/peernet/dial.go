package peernet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"
)

// Dial connects to a node, for a purpose and a group, 0 where the purpose has
// none. The caller owns the connection and closes it. Dial takes at most five
// seconds, and ends early when ctx does or the network is closed. The errors to
// test for are [ErrRefused], [ErrClosed] and ctx's.
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

// Handshake connects to a node for the handshake alone: each end checks what
// the other one claims. The error is the connection's, or says how one end has
// refused the other.
func (n *Network) Handshake(ctx context.Context, node string) error {
	c, err := n.Dial(ctx, node, handshakeOnly, 0)
	if err != nil {
		return err
	}
	return c.Close()
}

func (n *Network) dial(ctx context.Context, g greeting) (*Conn, error) {
	if len(g.to) > maxName {
		return nil, fmt.Errorf("its name has %d bytes, the limit is %d", len(g.to), maxName)
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
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	c, err := n.introduce(ctx, conn, g)
	if err != nil {
		_ = conn.Close()
	}
	return c, err
}

// probePauses are the pauses before each probe of PortClosed: when a process
// dies, the system may close its connections before its listener.
var probePauses = []time.Duration{5 * time.Millisecond, 20 * time.Millisecond, 100 * time.Millisecond}

// PortClosed reports whether nothing listens at a node's address although its
// machine answers: the node's process is not running. It probes for about 100 ms,
// and returns false when ctx ends, or when anything else keeps it from knowing.
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
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", address)
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
