package client

import (
	"context"
	"fmt"
)

// Pending returns how many transactions were accepted by [Client.Append] or
// [Client.AppendAsync] and have no outcome yet. Appends that still wait for
// room do not count.
func (c *Client) Pending() int { return c.limiter.inUse() }

// Drain refuses new appends with [ErrDraining], waits until every transaction
// accepted before has its outcome, and then closes the client as [Client.Close]
// does. Appends that wait for room when Drain is called go through. Followers,
// reads and cursors work until the client closes. Each transaction has the
// whole of [Options.Timeout], so Drain takes no longer than that once the last
// waiting append was let in.
//
// It returns nil once everything has an outcome, which a [Future] then returns
// at once: a receipt or an error. If ctx ends first, Drain returns ctx's error
// and the client goes on refusing appends: call Drain again, or Close to give
// up on what is in flight. If somebody else closes the client or its connection
// first, Drain returns ErrClosed.
//
// It may be called more than once, and must not be called by a handler.
func (c *Client) Drain(ctx context.Context) error {
	idle := c.limiter.drain()
	select {
	case <-idle:
	case <-c.closing:
	case <-ctx.Done():
		return fmt.Errorf("drain: %d transactions are in flight: %w", c.Pending(), context.Cause(ctx))
	}
	c.mu.Lock()
	if c.closed == nil {
		c.drained = true // not closing, so it was idle that ended the wait
	}
	err := c.closed
	if c.drained {
		err = nil
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	return c.Close()
}
