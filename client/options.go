package client

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

// Options configures a [Client]. The zero value selects the defaults.
type Options struct {
	// Prefix is the first token of every subject, as configured on the nodes.
	// Default "cantus".
	Prefix string

	// FeedKey is the public key that verifies the packed feed, as shown by
	// cantus.info and `cantus status --json`. If it is empty, the client asks
	// cantus.info for the key. An attacker that can answer that request can
	// then forge the feed.
	FeedKey string

	// Tracer makes traces of appends and of handlers. Default: none are made.
	Tracer Tracer

	// MaxInFlight limits the number of transactions without an outcome, over
	// all partitions. Default 8,192.
	MaxInFlight int
	// MaxInFlightBytes limits their size. A transaction larger than the limit
	// is sent while no other is in flight. Default 32 MiB.
	MaxInFlightBytes int
	// FailWhenFull makes appends fail with ErrFull instead of waiting while a
	// limit is reached.
	FailWhenFull bool

	// MaxBatch limits the number of transactions in a message, 1 to 5,000.
	// Default 2,000.
	MaxBatch int
	// MaxBatchBytes limits the size of a message, as the server's max_payload
	// does. A larger transaction is sent alone. Default 512 KiB.
	MaxBatchBytes int

	// AttemptTimeout is how long one attempt waits for its answer. The wait is
	// shorter if something indicates that the answer is lost. Default 5 s.
	AttemptTimeout time.Duration
	// Timeout is how long the client attempts to append a transaction, from the
	// moment it is accepted, waits included. If the operator has nodes remember
	// message ids for a time only, it must be shorter. Default 1 minute.
	Timeout time.Duration
	// MinBackoff and MaxBackoff bound the wait between attempts, which doubles
	// with each failure and is randomized. Defaults 50 ms and 2 s.
	MinBackoff, MaxBackoff time.Duration
}

// withDefaults returns o with defaults filled in, or an error for an option out
// of its range.
func (o Options) withDefaults() (Options, error) {
	if o.Prefix == "" {
		o.Prefix = subjects.DefaultPrefix
	}
	if err := subjects.CheckPrefix(o.Prefix); err != nil {
		return o, fmt.Errorf("%w: prefix: %w", ErrOptions, err)
	}
	if o.FeedKey != "" {
		if _, err := subjects.ParseFeedKey(o.FeedKey); err != nil {
			return o, fmt.Errorf("%w: FeedKey: %w", ErrOptions, err)
		}
	}
	for _, f := range []struct {
		name       string
		value      *int
		def, limit int
	}{
		{"MaxInFlight", &o.MaxInFlight, 8192, 1 << 30},
		{"MaxInFlightBytes", &o.MaxInFlightBytes, 32 << 20, 1 << 40},
		{"MaxBatch", &o.MaxBatch, 2000, subjects.MaxBatch},
		{"MaxBatchBytes", &o.MaxBatchBytes, 512 << 10, 64 << 20},
	} {
		if *f.value == 0 {
			*f.value = f.def
		}
		if *f.value < 0 || *f.value > f.limit {
			return o, fmt.Errorf("%w: %s is %d: 1 to %d", ErrOptions, f.name, *f.value, f.limit)
		}
	}
	return o, fillDurations(map[string]duration{
		"AttemptTimeout": {&o.AttemptTimeout, 5 * time.Second}, "Timeout": {&o.Timeout, time.Minute},
		"MinBackoff": {&o.MinBackoff, 50 * time.Millisecond}, "MaxBackoff": {&o.MaxBackoff, 2 * time.Second},
	})
}

type duration struct {
	value *time.Duration
	def   time.Duration
}

func fillDurations(all map[string]duration) error {
	for name, d := range all {
		if *d.value == 0 {
			*d.value = d.def
		}
		if *d.value < 0 {
			return fmt.Errorf("%w: %s is %v", ErrOptions, name, *d.value)
		}
	}
	return nil
}

// backoff returns the wait after n consecutive failures, n from 1. The wait
// doubles from least to most, and a random part of up to a half is subtracted,
// so that clients that failed together do not retry together.
func backoff(n int, least, most time.Duration) time.Duration {
	d := most
	if n-1 < 32 && least<<(n-1) < most && least<<(n-1) > 0 {
		d = least << (n - 1)
	}
	return d/2 + rand.N(d/2+1)
}
