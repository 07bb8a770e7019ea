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

// contestant is a cluster with a workload on it.
type contestant struct {
	*cluster
	// settings says how it was run, in words.
	settings string
	// clients are the ways to put the load on it; the quickest is used.
	clients []driver
	// prepare is called before each round, if set.
	prepare func(ctx context.Context) error
}

// driver makes the workers of a round.
type driver struct {
	name   string
	worker func(at seat) (worker, error)
	// reader makes a worker beside them that sees what they append; there
	// are readers of them. nil if there is none.
	reader  func(at seat) (reader, error)
	readers int
}

// limits are what ends a round.
type limits struct {
	warmUp, duration time.Duration
	count            int64 // 0 if only time ends it
}

// task is what a round is asked for.
type task struct {
	label string
	conns int
	point point
	size  int // payload of a unit, which the device's bytes are set against; 0 if that is not wanted
	limits
}

// tallies is how many sets of latencies a round has at most.
const tallies = 16

// round is one contestant under load.
type round struct {
	task
	errOut  io.Writer
	clock   *clock
	cluster *cluster
	workers []worker
	readers []reader
	tallies []*tally
	failure failure
}

// measure runs one round with a client.
func measure(ctx context.Context, t task, c *contestant, cl driver, errOut io.Writer) (Sample, error) {
	if err := c.lead(ctx); err != nil {
		return Sample{}, err
	}
	if c.prepare != nil {
		if err := c.prepare(ctx); err != nil {
			return Sample{}, err
		}
	}
	disk := deviceOf(c.dir)
	wroteBefore, known := disk.written()
	r := &round{task: t, errOut: errOut, cluster: c.cluster, clock: newClock(t), failure: failure{hit: make(chan struct{})}}
	defer r.close()
	if err := r.seat(cl); err != nil {
		return Sample{}, err
	}
	s, err := r.run(ctx)
	if err != nil {
		return Sample{}, err
	}
	s.Written = -1
	if wrote, ok := disk.written(); ok && known && r.done() > 0 && t.size > 0 {
		s.Written = float64(wrote-wroteBefore) / float64(r.done()) / float64(t.size)
	}
	return s, nil
}

func newClock(t task) *clock {
	c := &clock{epoch: time.Now(), from: int64(t.warmUp), until: int64(t.warmUp + t.duration), paced: t.point.Rate > 0}
	if t.count > 0 {
		c.from, c.until, c.budget = 0, math.MaxInt64, &atomic.Int64{}
		c.budget.Store(t.count)
	}
	return c
}

// seat makes the round's workers and readers.
func (r *round) seat(cl driver) error {
	for range min(r.conns, tallies) {
		r.tallies = append(r.tallies, &tally{})
	}
	at := func(i int) seat {
		return seat{
			conn: i, url: r.cluster.url(i), inFlight: r.point.InFlight, clock: r.clock,
			tally: r.tallies[i%len(r.tallies)], fail: r.failure.set, answered: r.answered,
		}
	}
	for i := range cl.readers {
		rd, err := cl.reader(at(i))
		if err != nil {
			return err
		}
		r.readers = append(r.readers, rd)
	}
	for i := range r.conns {
		w, err := cl.worker(at(i))
		if err != nil {
			return err
		}
		r.workers = append(r.workers, w)
	}
	return nil
}

// answered tells the readers of an append's answer.
func (r *round) answered(sent, now int64) {
	for _, rd := range r.readers {
		rd.answered(sent, now)
	}
}

func (r *round) close() {
	for _, w := range r.workers {
		w.close()
	}
	for _, rd := range r.readers {
		rd.close()
	}
}

// run lets the workers loose and waits until they have ended.
func (r *round) run(ctx context.Context) (Sample, error) {
	// Connections were opened since the clock was made; the round's time
	// begins only now. No worker has looked at the clock yet.
	r.clock.epoch = time.Now()
	for _, w := range r.workers {
		if err := w.start(); err != nil {
			return Sample{}, err
		}
	}
	stopPacer, err := r.pace()
	if err != nil {
		return Sample{}, err
	}
	defer stopPacer()
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
	before, after, err := r.watch(ctx, all)
	if err != nil {
		return Sample{}, err
	}
	for _, rd := range r.readers {
		rd.catchUp(r.done())
	}
	return r.sample(before, after), nil
}

// pace starts a pacer if the round has a fixed rate; what it returns waits
// for its end.
func (r *round) pace() (stop func(), err error) {
	if !r.clock.paced {
		return func() {}, nil
	}
	p := &pacer{clock: r.clock, rate: r.point.Rate}
	for _, w := range r.workers {
		pw, ok := w.(pacedWorker)
		if !ok {
			return nil, fmt.Errorf("%w: this client has no fixed rate: leave --rate and --sweep-rate out", ErrFlags)
		}
		p.workers = append(p.workers, pw)
	}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		p.run(end)
	}()
	return func() { close(end); <-ended }, nil
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

// standing is what had been used at a moment.
type standing struct {
	servers []usage
	load    usage
}

func (r *round) stand() standing {
	return standing{servers: r.cluster.usage(), load: processUsage(os.Getpid())}
}

// watch prints a line each second, takes what was used at both ends of the
// window, and returns when the workers have ended.
func (r *round) watch(ctx context.Context, all <-chan struct{}) (before, after standing, err error) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	begin := time.NewTimer(time.Duration(r.clock.from - r.clock.now()))
	end := time.NewTimer(time.Duration(r.clock.until - r.clock.now()))
	defer begin.Stop()
	defer end.Stop()
	before = r.stand()
	var last uint64
	var ended bool
	for {
		select {
		case <-begin.C:
			before = r.stand()
		case <-end.C:
			after, ended = r.stand(), true
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
				after = r.stand()
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
	var s Sample
	for _, w := range r.workers {
		m := w.meter()
		s.Done += m.counted
		s.Refused += m.countedRefused
		s.Busy += m.countedBusy
		s.Missed += m.missed
		s.Unknown += m.unknown
		s.Silent += m.silent
	}
	for o := range ops {
		s.latency[o] = newLatencies()
		for _, t := range r.tallies {
			t.addTo(o, s.latency[o])
		}
	}
	s.Quantiles = quantiles(s.latency[mainOp])
	window := r.clock.until - r.clock.from
	if r.clock.budget != nil {
		window = r.lastAt()
	}
	if s.Seconds = time.Duration(window).Seconds(); s.Seconds > 0 {
		s.Rate = float64(s.Done) / s.Seconds
	}
	if before.load.Known && after.load.Known {
		s.LoadCPU = (after.load.CPU - before.load.CPU).Seconds()
	}
	s.useOf(before.servers, after.servers)
	return s
}
