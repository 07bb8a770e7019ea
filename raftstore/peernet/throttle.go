package peernet

import (
	"context"

	"golang.org/x/time/rate"
)

const (
	defaultCatchUpRate = 16 << 20
	minCatchUpRate     = 1 << 20
)

// newLimiter returns a limiter of bytes per second, or nil if the rate is
// negative.
func newLimiter(bytes int64) *rate.Limiter {
	if bytes < 0 {
		return nil
	}
	l := rate.NewLimiter(0, 1)
	setRate(l, bytes)
	return l
}

func setRate(l *rate.Limiter, bytes int64) {
	if bytes == 0 {
		bytes = defaultCatchUpRate
	}
	bytes = max(bytes, minCatchUpRate)
	l.SetLimit(rate.Limit(bytes))
	l.SetBurst(int(min(bytes/4, 4<<20)))
}

// SetCatchUpRate changes the bound that Options.CatchUpRate has set; 0 means
// the default. It has no effect if the options set no bound.
func (n *Network) SetCatchUpRate(bytes int64) {
	if n.limiter != nil {
		setRate(n.limiter, bytes)
	}
}

// Throttle blocks until the node may send this many bytes of old entries. It
// returns an error only if ctx ends.
func (n *Network) Throttle(ctx context.Context, bytes int) error {
	for n.limiter != nil && bytes > 0 {
		part := min(bytes, n.limiter.Burst())
		if err := n.limiter.WaitN(ctx, part); err != nil {
			return err
		}
		bytes -= part
	}
	return nil
}
