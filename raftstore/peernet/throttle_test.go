package peernet

import (
	"context"
	"testing"

	"golang.org/x/time/rate"
)

func TestThrottle(t *testing.T) {
	n := &Network{limiter: rate.NewLimiter(0.001, 1000)}
	for _, c := range []struct{ bytes, left int }{{0, 1000}, {400, 600}, {600, 0}} {
		if err := n.Throttle(t.Context(), c.bytes); err != nil || int(n.limiter.Tokens()) != c.left {
			t.Errorf("%v, %v bytes left, want %d", err, n.limiter.Tokens(), c.left)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.Throttle(ctx, 1); err == nil {
		t.Error("Throttle exceeded the rate")
	}
	n.SetCatchUpRate(0)
	if n.limiter.Limit() != defaultCatchUpRate {
		t.Errorf("the default is %v", n.limiter.Limit())
	}
	n.SetCatchUpRate(1)
	if n.limiter.Limit() != minCatchUpRate {
		t.Errorf("the minimum is %v", n.limiter.Limit())
	}
	unbound := &Network{limiter: newLimiter(-1)}
	unbound.SetCatchUpRate(1)
	if err := unbound.Throttle(t.Context(), 1<<40); err != nil {
		t.Error(err)
	}
}
