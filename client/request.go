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

// asking is a request, other than an append or a stream's read, that waits for
// its answer or to be sent again. Client.mu guards its fields.
type pendingRequest struct {
	c             *Client
	partition     int // -1: any node answers
	attempts      int
	leaderChanges int                // of a new leader
	shortened     int                // the try that a sign gives one more back-off
	epoch         uint64             // of the connection, at the try
	cancel        context.CancelFunc // of the try
	skipWait      chan struct{}      // capacity 1: the wait for the next try is over
}

func (c *Client) newRequest(partition int) *pendingRequest {
	r := &pendingRequest{c: c, partition: partition, skipWait: make(chan struct{}, 1)}
	c.mu.Lock()
	c.requests[r] = struct{}{}
	c.mu.Unlock()
	return r
}

func (r *pendingRequest) done() {
	r.c.mu.Lock()
	delete(r.c.requests, r)
	r.c.mu.Unlock()
}

// try begins the next try, whose context ends with its AttemptTimeout or by sendAgain.
func (r *pendingRequest) begin(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, r.c.opts.AttemptTimeout)
	r.c.mu.Lock()
	r.attempts++
	r.cancel, r.epoch = cancel, r.c.epoch.Load()
	select {
	case <-r.skipWait: // said of the one before
	default:
	}
	r.c.mu.Unlock()
	return ctx, cancel
}

// newLeader lets the try, or the wait that follows it, go on for one back-off
// more; Client.mu is held.
func (r *pendingRequest) onNewLeader() {
	attempt := r.attempts
	if r.shortened == attempt {
		return // advisories come as fast as anybody likes
	}
	r.leaderChanges++
	r.shortened = attempt
	time.AfterFunc(r.c.backoff(max(r.leaderChanges, attempt)), func() {
		r.c.mu.Lock()
		defer r.c.mu.Unlock()
		r.restart(attempt)
	})
}

// sendAgain ends a try, by its number, and the wait that follows it; Client.mu
// is held.
func (r *pendingRequest) restart(attempt int) {
	if r.attempts == attempt && r.cancel != nil {
		signal(r.skipWait)
		r.cancel()
	}
}

// askJSON requests JSON until it gets some, or a refusal that is final: refused
// points into reply.
func (c *Client) requestJSON(ctx context.Context, partition int, subject string, reply any, refused **subjects.Error) error {
	return c.request(ctx, partition, subject, nil, func(m *nats.Msg, _ int) (error, bool) {
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

// request sends until take is content with the answer, or says that its
// error is final. The partition is the one whose leader answers, -1 if any node
// does.
func (c *Client) request(ctx context.Context, partition int, subject string, body []byte, accept func(m *nats.Msg, try int) (err error, done bool)) error {
	r := c.newRequest(partition)
	defer r.done()
	for attempts := 1; ; attempts++ {
		try, cancel := r.begin(ctx)
		m, err := c.nc.RequestWithContext(try, subject, body)
		cancel()
		done := false
		switch {
		case err == nil:
			if err, done = accept(m, attempts); done {
				return err
			}
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
		case try.Err() != nil:
			err = ErrNoAnswer
		}
		select {
		case <-time.After(c.backoff(attempts)):
		case <-r.skipWait:
		case <-ctx.Done():
			return fmt.Errorf("%w; last try: %w", context.Cause(ctx), err)
		case <-c.closing:
			return ErrClosed
		}
	}
}
