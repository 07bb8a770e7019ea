package proof

import (
	"context"
	"fmt"
	"sync/atomic"
)

// progress counts what a test has done.
type progress struct {
	done atomic.Int64
	more chan struct{} // capacity 1: done has increased
}

func newProgress() *progress { return &progress{more: make(chan struct{}, 1)} }

func (p *progress) add() {
	p.done.Add(1)
	select {
	case p.more <- struct{}{}:
	default:
	}
}

// fail makes the leader fail at even intervals of a test that does total.
func (p *progress) fail(ctx context.Context, log Log, failures, total int) error {
	for i := range failures {
		at := int64((i + 1) * total / (failures + 1))
		for p.done.Load() < at {
			select {
			case <-p.more:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if err := log.Fail(ctx); err != nil {
			return fmt.Errorf("failure %d: %w", i+1, err)
		}
	}
	return nil
}
