package bench

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// stallTimeout is how long nothing may be answered while something is in
// flight.
const stallTimeout = 30 * time.Second

// contestant is a server with a workload on it.
type contestant struct {
	name   string
	server *server
	dir    string // where the server's data is; "" if not known
	// clients are the ways to put the load on it; the quickest is used.
	clients []client
	// prepare is called before each round, if set.
	prepare func(ctx context.Context) error
}

// client makes the workers of a round.
type client struct {
	name   string
	worker func(conn int, c *clock, fail func(error)) (worker, error)
}

// limits are what ends a round.
type limits struct {
	warmUp, duration time.Duration
	count            int64 // 0 if only time ends it
}

// Sample is one round of one contestant.
type Sample struct {
	Seconds float64 `json:"seconds"`
	Done    uint64  `json:"done"`
	Refused uint64  `json:"refused"`
	Busy    uint64  `json:"busy"`
	// Rate is in transactions a second.
	Rate float64 `json:"rate"`
	// ServerCPU and LoadCPU are processor seconds within the window, or 0
	// where they cannot be known.
	ServerCPU float64 `json:"server_cpu_seconds"`
	LoadCPU   float64 `json:"load_cpu_seconds"`
	// RSS and Anon are the server's resident memory at the end, in bytes.
	RSS  int64 `json:"rss_bytes"`
	Anon int64 `json:"rss_anon_bytes"`
	// Written is bytes that the device wrote, over the whole round and its
	// sync, for each byte of payload; negative if it is not known.
	Written float64 `json:"device_bytes_per_payload_byte"`

	latency *latencies
}

// failure is a round's first error.
type failure struct {
	once sync.Once
	err  error
	hit  chan struct{}
}

func (f *failure) set(err error) {
	f.once.Do(func() {
		f.err = err
		close(f.hit)
	})
}

// round is one contestant under load.
type round struct {
	label   string
	errOut  io.Writer
	clock   *clock
	workers []worker
	failure failure
}

// measure runs one round of conns workers of a client.
func measure(ctx context.Context, label string, c *contestant, cl client, conns, size int, lim limits, errOut io.Writer) (Sample, error) {
	if c.prepare != nil {
		if err := c.prepare(ctx); err != nil {
			return Sample{}, err
		}
	}
	disk := deviceOf(c.dir)
	wroteBefore, known := disk.written()
	r := &round{label: label, errOut: errOut, failure: failure{hit: make(chan struct{})}}
	r.clock = &clock{epoch: time.Now(), from: int64(lim.warmUp), until: math.MaxInt64}
	if lim.count > 0 {
		r.clock.from, r.clock.budget = 0, &atomic.Int64{}
		r.clock.budget.Store(lim.count)
	} else {
		r.clock.until = int64(lim.warmUp + lim.duration)
	}
	defer r.close()
	for i := range conns {
		w, err := cl.worker(i, r.clock, r.failure.set)
		if err != nil {
			return Sample{}, err
		}
		r.workers = append(r.workers, w)
	}
	s, err := r.run(ctx, c.server)
	if err != nil {
		return Sample{}, err
	}
	s.Written = -1
	if wrote, ok := disk.written(); ok && known && r.done() > 0 && size > 0 {
		s.Written = float64(wrote-wroteBefore) / float64(r.done()) / float64(size)
	}
	return s, nil
}

func (r *round) close() {
	for _, w := range r.workers {
		w.close()
	}
}

// run lets the workers loose and waits until they have ended.
func (r *round) run(ctx context.Context, srv *server) (Sample, error) {
	// Connections were opened since the clock was made; the round's time
	// begins only now. No worker has looked at the clock yet.
	r.clock.epoch = time.Now()
	for _, w := range r.workers {
		if err := w.start(); err != nil {
			return Sample{}, err
		}
	}
	all := make(chan struct{})
	go func() {
		defer close(all)
		for _, w := range r.workers {
			select {
			case <-w.done():
			case <-r.failure.hit:
				return
			case <-ctx.Done():
				return
			}
		}
	}()
	before, after, err := r.watch(ctx, srv, all)
	if err != nil {
		return Sample{}, err
	}
	return r.sample(before, after), nil
}

// standing is what had been used at a moment.
type standing struct{ server, load usage }

func stand(srv *server) standing {
	return standing{server: srv.usage(), load: processUsage(os.Getpid())}
}

// watch prints a line each second, takes what was used at both ends of the
// window, and returns when the workers have ended.
func (r *round) watch(ctx context.Context, srv *server, all <-chan struct{}) (before, after standing, err error) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	begin := time.NewTimer(time.Duration(r.clock.from - r.clock.now()))
	end := time.NewTimer(time.Duration(r.clock.until - r.clock.now()))
	defer begin.Stop()
	defer end.Stop()
	before = stand(srv)
	var last uint64
	var ended bool
	for {
		select {
		case <-begin.C:
			before = stand(srv)
		case <-end.C:
			after, ended = stand(srv), true
		case <-tick.C:
			last = r.progress(last)
			if idle := r.clock.now() - r.lastAt(); idle > int64(stallTimeout) {
				return before, after, fmt.Errorf("%w from %s for %v", ErrStalled, r.label, stallTimeout)
			}
		case <-r.failure.hit:
			return before, after, r.failure.err
		case <-ctx.Done():
			return before, after, ctx.Err()
		case <-all:
			select {
			case <-r.failure.hit:
				return before, after, r.failure.err
			default:
			}
			if !ended {
				after = stand(srv)
			}
			return before, after, ctx.Err()
		}
	}
}

// progress prints what was done since the last time, when done was last.
func (r *round) progress(last uint64) uint64 {
	done, refused, busy := r.done(), uint64(0), uint64(0)
	for _, w := range r.workers {
		refused += w.meter().refused.Load()
		busy += w.meter().busy.Load()
	}
	phase := ""
	if r.clock.now() < r.clock.from {
		phase = " (warm-up)"
	}
	fmt.Fprintf(r.errOut, "%s: %4.0fs %10d/s%s", r.label, time.Duration(r.clock.now()).Seconds(), done-last, phase)
	if refused+busy > 0 {
		fmt.Fprintf(r.errOut, ", %d refused, %d busy so far", refused, busy)
	}
	fmt.Fprintln(r.errOut)
	return done
}

func (r *round) done() uint64 {
	var n uint64
	for _, w := range r.workers {
		n += w.meter().done.Load()
	}
	return n
}

func (r *round) lastAt() int64 {
	var at int64
	for _, w := range r.workers {
		at = max(at, w.meter().lastAt.Load())
	}
	return at
}

// sample draws the meters of ended workers together.
func (r *round) sample(before, after standing) Sample {
	s := Sample{latency: newLatencies()}
	for _, w := range r.workers {
		m := w.meter()
		s.Done += m.counted
		s.Refused += m.countedRefused
		s.Busy += m.countedBusy
		s.latency.merge(m.latency)
	}
	window := r.clock.until - r.clock.from
	if r.clock.budget != nil {
		window = r.lastAt()
	}
	if s.Seconds = time.Duration(window).Seconds(); s.Seconds > 0 {
		s.Rate = float64(s.Done) / s.Seconds
	}
	if before.server.Known && after.server.Known {
		s.ServerCPU = (after.server.CPU - before.server.CPU).Seconds()
	}
	if before.load.Known && after.load.Known {
		s.LoadCPU = (after.load.CPU - before.load.CPU).Seconds()
	}
	s.RSS, s.Anon = after.server.RSS, after.server.Anon
	return s
}
