package client

import (
	"context"
	"fmt"
)

// Pending returns the number of transactions that [Client.Append] or
// [Client.AppendAsync] accepted and that have no outcome yet. Appends that
// still wait to be accepted do not count.
func (c *Client) Pending() int { return c.limiter.inUse() }

// Drain refuses new appends with [ErrDraining], waits until every accepted
// transaction has its outcome, and then closes the client as [Client.Close]
// does. Appends that wait to be accepted when Drain is called are still
// accepted. Followers, reads and cursors work until the client closes. Each
// transaction has the whole of [Options.Timeout], so Drain takes no longer than
// that after the last waiting append was accepted.
//
// Drain returns nil once every transaction has an outcome. [Future.Wait] then
// returns at once, with a receipt or an error. If ctx ends first, Drain returns
// its error and the client keeps refusing appends: call Drain again, or Close
// to abandon the transactions in flight. If the client or its connection is
// closed first, Drain returns [ErrClosed].
//
// Drain may be called more than once. It must not be called by a handler.
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
		c.drained = true // the client is not closing, so the wait ended because it is idle
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
