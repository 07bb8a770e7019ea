package bench

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// pullBuffer is how many messages the ordered consumer buffers. Of 500 (the
// client's default), 2,000, 10,000 and 50,000 it is where catching up stops
// getting quicker.
const pullBuffer = 10_000

// streamReader reads a stream from its first message to its last with an
// ordered consumer, the Go client's interface for that, and begins again at
// the end.
type streamReader struct {
	nc     *nats.Conn
	js     jetstream.JetStream
	stream string
	last   uint64 // the stream's last sequence
	push   bool   // the older, pushing ordered consumer
	clock  *clock
	counts *meter
	fail   func(error)

	cancel context.CancelFunc
	ended  chan struct{}
}

func newStreamReader(url, stream string, last uint64, push bool, c *clock, fail func(error)) (*streamReader, error) {
	nc, err := connect(url, func(error) {})
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("jetstream: %w", err)
	}
	return &streamReader{
		nc: nc, js: js, stream: stream, last: last, push: push, clock: c, counts: newMeter(c), fail: fail,
		cancel: func() {}, ended: make(chan struct{}),
	}, nil
}

func (r *streamReader) start() error {
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go func() {
		defer close(r.ended)
		for r.clock.take(r.clock.now(), 0) {
			pass := r.pull
			if r.push {
				pass = r.pushed
			}
			if err := pass(ctx); err != nil {
				if ctx.Err() == nil {
					r.fail(err)
				}
				return
			}
		}
	}()
	return nil
}

// pass reads the stream once: it counts messages until the last, or the end
// of the round.
type pass struct {
	reader *streamReader
	once   sync.Once
	over   atomic.Bool
	end    chan struct{}
	began  int64
}

func (r *streamReader) newPass() *pass {
	return &pass{reader: r, end: make(chan struct{}), began: r.clock.now()}
}

func (p *pass) message(last bool) {
	if p.over.Load() {
		return
	}
	r := p.reader
	now := r.clock.now()
	more := r.clock.take(now, 1)
	if more {
		r.counts.add(now, 1)
	}
	if last && more {
		r.counts.took(p.began, now)
	}
	if last || !more {
		p.over.Store(true)
		p.once.Do(func() { close(p.end) })
	}
}

func (r *streamReader) pull(ctx context.Context) error {
	consumer, err := r.js.OrderedConsumer(ctx, r.stream, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return fmt.Errorf("ordered consumer of %s: %w", r.stream, err)
	}
	p := r.newPass()
	// A sequence of its own would come from the message's reply subject, at a
	// cost; the order is the consumer's promise, so counting is enough.
	seen := uint64(0)
	consuming, err := consumer.Consume(func(jetstream.Msg) {
		seen++
		p.message(seen == r.last)
	}, jetstream.PullMaxMessages(pullBuffer))
	if err != nil {
		return fmt.Errorf("consume %s: %w", r.stream, err)
	}
	defer consuming.Stop()
	return p.wait(ctx)
}

func (r *streamReader) pushed(ctx context.Context) error {
	js, err := r.nc.JetStream()
	if err != nil {
		return fmt.Errorf("jetstream: %w", err)
	}
	p := r.newPass()
	seen := uint64(0)
	sub, err := js.Subscribe(r.stream+".>", func(*nats.Msg) {
		seen++
		p.message(seen == r.last)
	}, nats.OrderedConsumer(), nats.BindStream(r.stream))
	if err != nil {
		return fmt.Errorf("ordered consumer of %s: %w", r.stream, err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	return p.wait(ctx)
}

func (p *pass) wait(ctx context.Context) error {
	select {
	case <-p.end:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *streamReader) done() <-chan struct{} { return r.ended }
func (r *streamReader) meter() *meter         { return r.counts }
func (r *streamReader) close()                { r.cancel(); r.nc.Close() }
