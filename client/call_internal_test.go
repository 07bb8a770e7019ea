package client

import (
	"context"
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
