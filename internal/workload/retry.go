package workload

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"
)

// Service is a node or a cluster, as seen by a client that retries: see Retry.
type Service interface {
	// Await waits until it is time for the next attempt, and returns an error
	// only if ctx ends before. tries is 1 for the first attempt.
	Await(ctx context.Context, tries int) error
}

// Retry calls do until the outcome is known, each time once the service is up
// and there is a connection. It returns the first result of do that is neither
// an unknown outcome nor a refusal to try again, and how often it has called
// do. It returns ctx's cause when ctx ends.
func Retry(ctx context.Context, s Service, c *Client, do func() (Reply, error)) (r Reply, tries int, err error) {
	for tries = 1; ; tries++ {
		if err := s.Await(ctx, tries); err != nil {
			return Reply{}, tries, err
		}
		select {
		case <-c.standing():
		case <-ctx.Done():
			return Reply{}, tries, context.Cause(ctx)
		}
		if r, err = do(); !again(r, err) {
			return r, tries, err
		}
	}
}

// again reports whether an outcome is unknown, or a refusal to try again.
func again(r Reply, err error) bool {
	if err == nil && r.Error != nil {
		return r.Error.Reason == "busy" || r.Error.Reason == "unavailable" || r.Error.Reason == "unknown"
	}
	return errors.Is(err, ErrDropped) || errors.Is(err, ErrNoAnswer) ||
		errors.Is(err, nats.ErrNoResponders) || errors.Is(err, nats.ErrConnectionClosed)
}

// Backoff is a Service that paces a client as the protocol asks for. Each wait
// is random. They grow up to half a second.
type Backoff struct{}

// Await returns at once before the first attempt.
func (Backoff) Await(ctx context.Context, tries int) error {
	if tries == 1 {
		return nil
	}
	most := min(10*time.Millisecond<<min(tries, 6), 500*time.Millisecond)
	select {
	case <-time.After(most/2 + rand.N(most/2)):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
