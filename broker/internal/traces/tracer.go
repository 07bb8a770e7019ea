package traces

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/cantuslog/cantus/broker/internal/loglimit"
)

// Options configures a [Tracer].
type Options struct {
	// Provider receives the spans. It may be slow: spans are dropped then.
	Provider trace.TracerProvider
	// Ratio is the share of the appends without a trace context for which a
	// trace is begun, 0 to 1.
	Ratio float64
	// Node, Version and Prefix are the node's.
	Node, Version, Prefix string
	Log                   *slog.Logger
}

// Tracer makes a node's spans.
type Tracer struct {
	opts    Options
	spans   trace.Tracer
	queue   chan work
	pending atomic.Int64  // spans in queue, or being made
	dropped atomic.Uint64 // spans
	logged  loglimit.Interval
	ended   chan struct{} // closed when run returns
}

// work makes a number of spans.
type work struct {
	count int
	make  func()
}

// maxPending bounds the spans that wait to be made.
const maxPending = 8192

// New returns a Tracer, which makes spans while Run runs.
func New(o Options) *Tracer {
	return &Tracer{
		opts:  o,
		spans: o.Provider.Tracer("github.com/cantuslog/cantus/broker", trace.WithInstrumentationVersion(o.Version)),
		queue: make(chan work, maxPending), ended: make(chan struct{}),
	}
}

// Run makes spans until ctx ends, and then those that wait.
func (t *Tracer) Run(ctx context.Context) {
	defer close(t.ended)
	for {
		select {
		case w := <-t.queue:
			t.do(w)
		case <-ctx.Done():
			for {
				select {
				case w := <-t.queue:
					t.do(w)
				default:
					return
				}
			}
		}
	}
}

func (t *Tracer) do(w work) {
	w.make()
	t.pending.Add(-int64(w.count))
}

// Ended returns a channel that is closed when Run has returned.
func (t *Tracer) Ended() <-chan struct{} { return t.ended }

// enqueue has count spans made by fn. It never blocks: if too many wait, they
// are dropped.
func (t *Tracer) enqueue(count int, fn func()) {
	if t.pending.Add(int64(count))-int64(count) < maxPending {
		select {
		case t.queue <- work{count, fn}:
			return
		default:
		}
	}
	t.pending.Add(-int64(count))
	t.drop(count)
}

func (t *Tracer) drop(count int) {
	all := t.dropped.Add(uint64(count))
	if ok, _ := t.logged.Allow(time.Now()); ok {
		t.opts.Log.Warn("spans are dropped: they come faster than they are taken", "dropped", all)
	}
}

// Dropped returns how many spans were dropped because too many were waiting.
func (t *Tracer) Dropped() uint64 { return t.dropped.Load() }

// Append returns the notes on an append to a partition with the given
// traceparent, nil if it is not traced. A malformed traceparent counts as none.
func (t *Tracer) Append(partition int, traceparent []byte) *Append {
	if len(traceparent) > 0 {
		if c, ok := Parse(traceparent); ok {
			if !c.TraceFlags.IsSampled() {
				return nil
			}
			return &Append{partition: partition, parent: trace.NewSpanContext(c)}
		}
	}
	if t.opts.Ratio <= 0 || rand.Float64() >= t.opts.Ratio {
		return nil
	}
	return &Append{partition: partition}
}
