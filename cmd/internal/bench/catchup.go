package bench

import (
	"context"
	"sync"
	"sync/atomic"
)

// catchUp is a worker that reads a log from its first transaction to the one
// that was the last when the round began, and starts again at the end.
type catchUp struct {
	clock  *clock
	counts *counters
	fail   func(error)
	last   uint64
	// read reads the log once and calls message for each transaction, until the
	// pass is over or ctx ends.
	read func(ctx context.Context, p *readPass) error
	shut func() // ends the connection

	cancel context.CancelFunc
	ended  chan struct{}
}

func newCatchUp(at workerConfig, last uint64, read func(context.Context, *readPass) error, shut func()) *catchUp {
	return &catchUp{
		clock: at.clock, counts: newCounters(at.clock, at.tally), fail: at.fail, last: last, read: read, shut: shut,
		cancel: func() {}, ended: make(chan struct{}),
	}
}

func (r *catchUp) start() error {
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go func() {
		defer close(r.ended)
		for r.clock.take(r.clock.now(), 0) && !r.clock.spent() {
			p := &readPass{reader: r, end: make(chan struct{}), began: r.clock.now()}
			if err := r.read(ctx, p); err != nil {
				if ctx.Err() == nil {
					r.fail(err)
				}
				return
			}
		}
	}()
	return nil
}

func (r *catchUp) done() <-chan struct{} { return r.ended }
func (r *catchUp) counters() *counters   { return r.counts }
func (r *catchUp) close()                { r.cancel(); r.shut() }

// readPass is one reading of a log.
type readPass struct {
	reader *catchUp
	seen   uint64 // used only by the goroutine that receives messages
	once   sync.Once
	over   atomic.Bool
	end    chan struct{} // closed after the last transaction, or when the round is over
	began  int64
}

// message counts a transaction. It relies on the client for order and
// completeness: decoding a sequence number from each message would take time.
func (p *readPass) message() {
	if p.over.Load() {
		return
	}
	r := p.reader
	now := r.clock.now()
	p.seen++
	last, more := p.seen == r.last, r.clock.take(now, 1)
	if more {
		r.counts.add(now, 1)
	}
	if last && more {
		r.counts.addLatency(mainOp, p.began, now)
	}
	if last || !more || r.clock.spent() {
		p.over.Store(true)
		p.once.Do(func() { close(p.end) })
	}
}

// wait returns when the pass is over, or with ctx's error.
func (p *readPass) wait(ctx context.Context) error {
	select {
	case <-p.end:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
