package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// call is a request that waits for its answer or for its next attempt. Appends
// and the reads of streams have their own types. Client.mu guards the fields.
type call struct {
	c             *Client
	partition     int // whose leader answers; -1: any node
	attempts      int
	leaderChanges int                // advisories so far
	shortened     int                // the last attempt that an advisory has shortened
	disconnects   uint64             // before the attempt
	cancel        context.CancelFunc // ends the attempt
	skipWait      chan struct{}      // capacity 1: begin the next attempt now
}

func (c *Client) newCall(partition int) *call {
	r := &call{c: c, partition: partition, skipWait: make(chan struct{}, 1)}
	c.mu.Lock()
	c.calls[r] = struct{}{}
	c.mu.Unlock()
	return r
}

func (r *call) done() {
	r.c.mu.Lock()
	delete(r.c.calls, r)
	r.c.mu.Unlock()
}

// begin starts the next attempt. Its context ends after AttemptTimeout, or when
// restart is called.
func (r *call) begin(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, r.c.opts.AttemptTimeout)
	r.c.mu.Lock()
	r.attempts++
	r.cancel, r.disconnects = cancel, r.c.disconnects.Load()
	select {
	case <-r.skipWait: // meant for the previous attempt
	default:
	}
	r.c.mu.Unlock()
	return ctx, cancel
}

// onNewLeader makes the attempt, or the wait after it, end after one more
// back-off. The caller holds Client.mu.
func (r *call) onNewLeader() {
	attempt := r.attempts
	if r.shortened == attempt {
		return // anybody may publish any number of advisories
	}
	r.leaderChanges++
	r.shortened = attempt
	time.AfterFunc(r.c.backoff(max(r.leaderChanges, attempt)), func() {
		r.c.mu.Lock()
		defer r.c.mu.Unlock()
		r.restart(attempt)
	})
}

// restart ends the attempt of that number and the wait after it. The caller
// holds Client.mu.
func (r *call) restart(attempt int) {
	if r.attempts == attempt && r.cancel != nil {
		signal(r.skipWait)
		r.cancel()
	}
}

// callJSON requests JSON until it gets some, or a refusal that is final.
// refused points to the field of reply that holds a refusal.
func (c *Client) callJSON(ctx context.Context, partition int, subject string, reply any, refused **subjects.Error) error {
	return c.call(ctx, partition, subject, nil, func(m *nats.Msg, _ int) (error, bool) {
		*refused = nil
		if err := json.Unmarshal(m.Data, reply); err != nil {
			return err, false
		}
		if *refused == nil {
			return nil, true
		}
		return *refused, dispositionOf(*refused) == final
	})
}

// wait waits for the next attempt, after a number of attempts of which the last
// one has ended with err. It returns the error that ends the call, if any.
func (r *call) wait(ctx context.Context, attempts int, err error) error {
	wait, skip := r.c.backoff(attempts), r.skipWait
	if refused, ok := errors.AsType[*RefusedError](err); ok && refused.RetryAfter > 0 {
		wait, skip = r.c.limitedWait(refused.RetryAfter, attempts), nil
	}
	select {
	case <-time.After(wait):
		return nil
	case <-skip:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w; last attempt: %w", context.Cause(ctx), err)
	case <-r.c.closing:
		return ErrClosed
	}
}

// call sends a request until accept reports that it is done. accept returns
// the error of an answer, nil if the answer is good. partition is the one whose
// leader answers, -1 if any node does.
func (c *Client) call(ctx context.Context, partition int, subject string, body []byte, accept func(m *nats.Msg, attempt int) (err error, done bool)) error {
	return c.retry(ctx, partition, func(ctx context.Context, attempt int) (error, bool) {
		m, err := c.nc.RequestWithContext(ctx, subject, body)
		if err != nil {
			return err, false
		}
		return accept(m, attempt)
	})
}

// retry calls try until it reports that it is done. try returns the error of an
// answer, nil if the answer is good, or one of nats.go.
func (c *Client) retry(ctx context.Context, partition int, try func(ctx context.Context, attempt int) (err error, done bool)) error {
	r := c.newCall(partition)
	defer r.done()
	for attempts := 1; ; attempts++ {
		attemptCtx, cancel := r.begin(ctx)
		err, done := try(attemptCtx, attempts)
		cancel()
		switch {
		case done:
			return err
		case isClosed(err):
			return fmt.Errorf("%w: %w", ErrClosed, err)
		case errors.Is(err, nats.ErrNoResponders):
			err = ErrNoLeader
			if partition < 0 {
				break
			}
			if missing := c.onNoResponders(partition); missing != nil {
				return missing
			}
		case attemptCtx.Err() != nil && errors.Is(err, attemptCtx.Err()):
			err = ErrNoAnswer
		}
		if ended := r.wait(ctx, attempts, err); ended != nil {
			return ended
		}
	}
}
