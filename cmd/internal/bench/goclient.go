package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/subjects"
)

// goAppend appends with the Go client, which merges transactions into the next
// batch while batches are in flight. One goroutine appends, another waits for
// the outcomes in order: an outcome that arrives before an earlier
// transaction's counts as late as that one.
type goAppend struct {
	nc       *nats.Conn
	client   *client.Client
	clock    *clock
	counts   *counters
	answered func(sent, now int64)
	fail     func(error)
	schedule *schedule // nil in a closed loop

	pool     pool
	rng      *rand.Rand
	payloads *payloads
	marks    []atomic.Uint64 // by partition

	window   chan *goRequest // those that are not in flight
	requests chan *goRequest
	ended    chan struct{}
	cancel   context.CancelFunc
}

// goRequest is a transaction in flight. There are thousands, and they are small
// so that they fit in the processor's cache.
type goRequest struct {
	partition int
	sent      int64
	keys      []int // that it locks
	payload   []byte
	future    *client.Future
}

func newGoAppend(at workerConfig, w *workload, prefix string, keys pool, marks []uint64) (*goAppend, error) {
	nc, err := connect(at.url, at.fail)
	if err != nil {
		return nil, err
	}
	cl, err := client.New(nc, client.Options{Prefix: prefix, MaxInFlight: max(at.inFlight, 8192)})
	if err != nil {
		nc.Close()
		return nil, err
	}
	rng := newRand(at.conn)
	a := &goAppend{
		nc: nc, client: cl, clock: at.clock, counts: newCounters(at.clock, at.tally), answered: at.answered, fail: at.fail,
		pool: keys, rng: rng, payloads: newPayloads(rng, w.Size, w.Kind == tailLoad),
		marks:  make([]atomic.Uint64, w.Partitions),
		window: make(chan *goRequest, at.inFlight), requests: make(chan *goRequest, at.inFlight),
		ended: make(chan struct{}), cancel: func() {},
	}
	for p, mark := range marks {
		a.marks[p].Store(mark)
	}
	requests, keyed := make([]goRequest, at.inFlight), make([]int, at.inFlight*w.Locks)
	for i := range requests {
		f := &requests[i]
		f.partition, f.keys = i%w.Partitions, keyed[i*w.Locks:(i+1)*w.Locks]
		a.window <- f
	}
	if at.clock.openLoop {
		a.schedule = newSchedule()
	}
	return a, nil
}

func (a *goAppend) start() error {
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel = cancel
	go func() {
		defer close(a.requests)
		if err := a.submit(ctx); err != nil && ctx.Err() == nil {
			a.fail(err)
		}
	}()
	go func() {
		defer close(a.ended)
		if err := a.collect(ctx); err != nil && ctx.Err() == nil {
			a.fail(err)
		}
	}()
	return nil
}

// submit appends until the clock allows no more, and then waits for all
// requests, including those that are tried again.
func (a *goAppend) submit(ctx context.Context) error {
	var req client.Request
	for {
		var f *goRequest
		select {
		case f = <-a.window:
		case <-ctx.Done():
			return ctx.Err()
		}
		at, ok := a.next()
		if !ok {
			a.window <- f
			break
		}
		f.sent, f.payload = at, a.payloads.next(f.payload, at)
		a.pool.pick(a.rng, f.keys)
		if err := a.append(ctx, &req, f); err != nil {
			return err
		}
	}
	for range cap(a.window) {
		select {
		case <-a.window:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// next returns when the next transaction is, or was, due.
func (a *goAppend) next() (at int64, ok bool) {
	if a.schedule == nil {
		at = a.clock.now()
		return at, a.clock.take(at, 1)
	}
	for {
		at, ok = a.schedule.pop()
		now := a.clock.now()
		switch {
		case !ok:
			return 0, false
		case now < a.clock.until+int64(grace) && a.clock.take(at, 1):
			return at, true
		}
		a.counts.addMissed(at, now)
	}
}

// grace is how long after a round's end a request that was due in it is still
// sent.
const grace = 50 * time.Millisecond

// append appends the transaction of a request; tx is scratch.
func (a *goAppend) append(ctx context.Context, req *client.Request, f *goRequest) (err error) {
	req.Partition, req.Payload = f.partition, f.payload
	req.WriteLocks = req.WriteLocks[:0]
	for _, k := range f.keys {
		req.WriteLocks = append(req.WriteLocks, a.pool.name(k))
	}
	if len(f.keys) > 0 {
		req.HighWaterMark = a.marks[f.partition].Load()
	}
	if f.future, err = a.client.AppendAsync(ctx, req); err != nil {
		return fmt.Errorf("append: %w", err)
	}
	a.requests <- f
	return nil
}

// collect waits for outcomes until submit has ended.
func (a *goAppend) collect(ctx context.Context) error {
	var req client.Request
	for f := range a.requests {
		receipt, err := f.future.Wait(ctx)
		now := a.clock.now()
		if err == nil {
			a.saw(f.partition, receipt.Txid)
			a.counts.add(now, 1)
			a.counts.addLatency(mainOp, f.sent, now)
			a.answered(f.sent, now)
			a.window <- f
			continue
		}
		var conflict *client.ConflictError
		if !errors.As(err, &conflict) {
			return err
		}
		a.saw(f.partition, conflict.Txid)
		a.counts.addRefused(now, 1)
		if now < a.clock.until {
			if err := a.append(ctx, &req, f); err != nil {
				return err
			}
			continue
		}
		a.counts.addMissed(f.sent, now)
		a.window <- f
	}
	return nil
}

func (a *goAppend) saw(partition int, txid uint64) {
	mark := &a.marks[partition]
	for last := mark.Load(); last < txid; last = mark.Load() {
		if mark.CompareAndSwap(last, txid) {
			return
		}
	}
}

func (a *goAppend) due(at int64)          { a.schedule.push(at) }
func (a *goAppend) finish()               { a.schedule.close() }
func (a *goAppend) done() <-chan struct{} { return a.ended }
func (a *goAppend) counters() *counters   { return a.counts }

func (a *goAppend) close() {
	a.cancel()
	if a.schedule != nil {
		a.schedule.close()
	}
	_ = a.client.Close()
	a.nc.Close()
}

// schedule is a queue of the due times of requests that are not sent yet.
type schedule struct {
	mu     sync.Mutex
	some   sync.Cond
	at     []int64
	closed bool
}

func newSchedule() *schedule {
	d := &schedule{}
	d.some.L = &d.mu
	return d
}

func (d *schedule) push(at int64) {
	d.mu.Lock()
	d.at = append(d.at, at)
	d.mu.Unlock()
	d.some.Signal()
}

// close ends the schedule: no more due times are pushed.
func (d *schedule) close() {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.some.Broadcast()
}

// pop waits for a due time and returns the oldest. ok is false when the
// schedule is closed and empty.
func (d *schedule) pop() (at int64, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.at) == 0 && !d.closed {
		d.some.Wait()
	}
	if len(d.at) == 0 {
		return 0, false
	}
	at, d.at = d.at[0], d.at[1:]
	return at, true
}

// newFollowCatchUp reads a partition with the Go client from its oldest
// transaction to its last.
func newFollowCatchUp(at workerConfig, prefix string, info subjects.PartitionInfo) (*catchUp, error) {
	nc, err := connect(at.url, at.fail)
	if err != nil {
		return nil, err
	}
	cl, err := client.New(nc, client.Options{Prefix: prefix})
	if err != nil {
		nc.Close()
		return nil, err
	}
	start := max(info.FirstTxid, 1) - 1
	read := func(ctx context.Context, p *readPass) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		ended := make(chan error, 1)
		go func() {
			ended <- cl.Follow(ctx, client.Positions{info.Partition: start}, func(context.Context, *client.Transaction) error {
				p.message()
				return nil
			}, client.FollowOptions{})
		}()
		select {
		case <-p.end:
			cancel()
			<-ended
			return nil
		case err := <-ended:
			return fmt.Errorf("follow: %w", err)
		}
	}
	return newCatchUp(at, info.HighWaterMark-start, read, func() {
		_ = cl.Close()
		nc.Close()
	}), nil
}
