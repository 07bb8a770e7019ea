package client

import (
	"context"
	"errors"
	"testing"
	"time"
)

// A flood of advisories gives an attempt one more back-off, and does not start
// a timer for each.
func TestAdvisoriesCountOnceForEachAttempt(t *testing.T) {
	c := &Client{opts: Options{AttemptTimeout: time.Hour, MinBackoff: time.Hour, MaxBackoff: time.Hour}, calls: map[*call]struct{}{}}
	r := c.newCall(0)
	defer r.done()
	for attempt := 1; attempt <= 3; attempt++ {
		_, cancel := r.begin(context.Background())
		defer cancel()
		c.mu.Lock()
		for range 1000 {
			r.onNewLeader()
		}
		changes := r.leaderChanges
		c.mu.Unlock()
		if changes != attempt {
			t.Fatalf("after %d attempts and 1000 advisories in each, %d count", attempt, changes)
		}
	}
}

// A call that a limit has refused waits for as long as the refusal says. No new
// leader makes it begin sooner; the caller's context does end it.
func TestACallWaitsForALimit(t *testing.T) {
	c := &Client{opts: Options{MinBackoff: time.Hour, MaxBackoff: time.Hour, Timeout: time.Hour}, calls: map[*call]struct{}{}}
	r := c.newCall(0)
	defer r.done()
	signal(r.skipWait)
	if err := r.wait(t.Context(), 1, ErrNoLeader); err != nil {
		t.Errorf("while nobody leads: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	signal(r.skipWait)
	if err := r.wait(ctx, 1, &RefusedError{RetryAfter: time.Minute}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("after a refusal by a limit: %v", err)
	}
	c.opts.MinBackoff, c.opts.MaxBackoff = 1, 1
	const limited = 50 * time.Millisecond
	began := time.Now()
	if err := r.wait(t.Context(), 1, &RefusedError{RetryAfter: limited}); err != nil || time.Since(began) < limited {
		t.Errorf("%v after %v, which is sooner than %v", err, time.Since(began), limited)
	}
}
