package client

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

// Options configures a Client. The zero value has every default.
type Options struct {
	// Prefix begins every subject, as the nodes' option. Default "cantus".
	Prefix string

	// FeedKey is the key that the packed feed is verified with, as cantus.info and
	// `cantus status --json` show it. Without one the client asks cantus.info: a
	// stranger that can answer there in the nodes' place can then forge the feed.
	FeedKey string

	// MaxInFlight is how many transactions may wait for their outcome, over all
	// partitions. Default 8,192.
	MaxInFlight int
	// MaxInFlightBytes bounds them in bytes. One larger transaction is let
	// through alone. Default 32 MiB.
	MaxInFlightBytes int
	// FailWhenFull makes appends fail with ErrFull where they would wait for
	// room.
	FailWhenFull bool

	// MaxBatch is how many transactions go into one message, 1 to 5,000.
	// Default 2,000.
	MaxBatch int
	// MaxBatchBytes bounds a message; the server's max_payload does too. One
	// larger transaction goes alone. Default 512 KiB.
	MaxBatchBytes int

	// AttemptTimeout is how long one try may go without an answer, unless there are
	// signs that the answer is lost. Default 5 s.
	AttemptTimeout time.Duration
	// Timeout is how long a transaction is tried, waiting included, from when
	// it was accepted. It has to stay below the time for which nodes remember
	// message ids, 2 minutes unless the operator chose otherwise. Default 1 minute.
	Timeout time.Duration
	// MinBackoff and MaxBackoff bound the wait between tries, which doubles
	// and has some chance in it. Default 50 ms and 2 s.
	MinBackoff, MaxBackoff time.Duration
}

// withDefaults fills and checks o.
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
		name         string
		value        *int
		normal, most int
	}{
		{"MaxInFlight", &o.MaxInFlight, 8192, 1 << 30},
		{"MaxInFlightBytes", &o.MaxInFlightBytes, 32 << 20, 1 << 40},
		{"MaxBatch", &o.MaxBatch, 2000, subjects.MaxBatch},
		{"MaxBatchBytes", &o.MaxBatchBytes, 512 << 10, 64 << 20},
	} {
		if *f.value == 0 {
			*f.value = f.normal
		}
		if *f.value < 0 || *f.value > f.most {
			return o, fmt.Errorf("%w: %s is %d: 1 to %d", ErrOptions, f.name, *f.value, f.most)
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

// backoff is how long to wait after n failures in a row (1 is the first):
// doubling between least and most, and of that half to all by chance, so that
// clients that failed together don't come back together.
func backoff(n int, least, most time.Duration) time.Duration {
	d := most
	if n-1 < 32 && least<<(n-1) < most && least<<(n-1) > 0 {
		d = least << (n - 1)
	}
	return d/2 + rand.N(d/2+1)
}
