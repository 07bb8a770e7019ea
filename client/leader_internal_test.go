package client

import (
	"context"
	"testing"
	"time"
)

// A flood of advisories gives a try one more back-off, and not a timer for each.
func TestAdvisoriesCountOnceForEachTry(t *testing.T) {
	c := &Client{opts: Options{AttemptTimeout: time.Hour, MinBackoff: time.Hour, MaxBackoff: time.Hour}, asking: map[*asking]struct{}{}}
	a := c.ask(0)
	defer a.done()
	for try := 1; try <= 3; try++ {
		_, cancel := a.try(context.Background())
		defer cancel()
		c.mu.Lock()
		for range 1000 {
			a.newLeader()
		}
		signs := a.signs
		c.mu.Unlock()
		if signs != try {
			t.Fatalf("after %d tries and 1000 advisories in each, %d count", try, signs)
		}
	}
}
