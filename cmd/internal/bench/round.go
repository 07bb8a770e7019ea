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

// stallTimeout is how long requests may be in flight without any answer.
const stallTimeout = 30 * time.Second

// system is a system under test: a cluster, with clients for the workload.
type system struct {
	*cluster
	// settings describes its settings for the report.
	settings string
	// clients are the ways to put the load on it; the fastest is used.
	clients []driver
	// prepare is called before each round, if set.
	prepare func(ctx context.Context) error
}

// driver makes the workers of a round.
type driver struct {
	name   string
	worker func(at workerConfig) (worker, error)
	// reader, if not nil, makes one of readers workers that receive the
	// appended transactions.
	reader  func(at workerConfig) (reader, error)
	readers int
}

// limits say when a round ends.
type limits struct {
	warmUp, duration time.Duration
	count            int64 // 0 for no limit but time
}

// task describes a round.
type task struct {
	label string
	conns int
	level loadLevel
	size  int // payload of a unit, which the device's bytes are set against; 0 if that is not wanted
	limits
}

// tallies is the most sets of latencies of a round.
const tallies = 16

// round is one measurement of a system.
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
func measure(ctx context.Context, t task, c *system, cl driver, errOut io.Writer) (Sample, error) {
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
	if err := r.makeWorkers(cl); err != nil {
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
	c := &clock{began: time.Now(), from: int64(t.warmUp), until: int64(t.warmUp + t.duration), openLoop: t.level.Rate > 0}
	if t.count > 0 {
		c.from, c.until, c.budget = 0, math.MaxInt64, &atomic.Int64{}
		c.budget.Store(t.count)
	}
	return c
}

// makeWorkers makes the round's workers and readers.
func (r *round) makeWorkers(cl driver) error {
	for range min(r.conns, tallies) {
		r.tallies = append(r.tallies, &tally{})
	}
	at := func(i int) workerConfig {
		return workerConfig{
			conn: i, url: r.cluster.url(i), inFlight: r.level.InFlight, clock: r.clock,
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

// answered passes an append's answer to the readers.
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

// run starts the workers and waits until they have ended.
func (r *round) run(ctx context.Context) (Sample, error) {
	// The round's time begins now: connections were opened since the clock was
	// made. No worker has read the clock yet.
	r.clock.began = time.Now()
	for _, w := range r.workers {
		if err := w.start(); err != nil {
			return Sample{}, err
		}
	}
	stopPacer, err := r.startRate()
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

// startRate starts an open loop if the round has a fixed rate. stop waits for
// its end.
func (r *round) startRate() (stop func(), err error) {
	if !r.clock.openLoop {
		return func() {}, nil
	}
	p := &openLoop{clock: r.clock, rate: r.level.Rate}
	for _, w := range r.workers {
		pw, ok := w.(openLoopWorker)
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

// resources is the resources used so far at some moment.
type resources struct {
	servers []usage
	load    usage
}

func (r *round) resources() resources {
	return resources{servers: r.cluster.usage(), load: processUsage(os.Getpid())}
}

// watch prints a line each second, measures the resources used at both ends of
// the window, and returns when the workers have ended.
func (r *round) watch(ctx context.Context, all <-chan struct{}) (before, after resources, err error) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	begin := time.NewTimer(time.Duration(r.clock.from - r.clock.now()))
	end := time.NewTimer(time.Duration(r.clock.until - r.clock.now()))
	defer begin.Stop()
	defer end.Stop()
	before = r.resources()
	var last uint64
	var ended bool
	for {
		select {
		case <-begin.C:
			before = r.resources()
		case <-end.C:
			after, ended = r.resources(), true
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
				after = r.resources()
			}
			return before, after, ctx.Err()
		}
	}
}

// progress prints what was done since the last call, which returned last.
func (r *round) progress(last uint64) uint64 {
	done, refused, busy := r.done(), uint64(0), uint64(0)
	for _, w := range r.workers {
		refused += w.counters().refused.Load()
		busy += w.counters().busy.Load()
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
		n += w.counters().done.Load()
	}
	return n
}

func (r *round) lastAt() int64 {
	var at int64
	for _, w := range r.workers {
		at = max(at, w.counters().lastAt.Load())
	}
	return at
}

// sample summarizes the counters of the workers, which have ended.
func (r *round) sample(before, after resources) Sample {
	var s Sample
	for _, w := range r.workers {
		m := w.counters()
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
