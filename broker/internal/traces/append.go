package traces

import (
	"context"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/cantuslog/cantus/subjects"
)

// Append is what is noted of an append that is traced. One goroutine at a time
// writes it.
type Append struct {
	partition int
	parent    trace.SpanContext // invalid if the node began the trace
	Received  time.Time
	Kind, ID  string // ID is the message id

	// The outcome: a txid, or why there is none.
	Txid      uint64
	Duplicate bool
	Err       *subjects.Error
}

// Batch is what is noted of a batch with appends that are traced: when it
// passed which stage. A zero time means that it did not, or that it is not
// known. The stages are those of the metric cantus_append_stage_seconds.
type Batch struct {
	Passed    int // transactions in the batch's entry of the log
	Certified time.Time
	Proposed  time.Time
	Taken     time.Time
	Synced    time.Time
	Committed time.Time
	Applied   time.Time
	Answered  time.Time
	Published time.Time
}

// Appends makes the spans of appends that were in one batch.
func (t *Tracer) Appends(b Batch, all []*Append) {
	t.enqueue(len(all), func() {
		for _, a := range all {
			t.append(&b, a)
		}
	})
}

// append makes the span of one append: from its arrival until it is answered
// and, if anybody follows, published. Its events are the ends of the stages.
func (t *Tracer) append(b *Batch, a *Append) {
	_, span := t.start("append", a.parent, trace.SpanKindServer, a.Received, a.partition)
	if !span.IsRecording() {
		return
	}
	if a.Kind != "" {
		span.SetAttributes(attribute.String("cantus.kind", text(a.Kind)))
	}
	if a.ID != "" {
		span.SetAttributes(attribute.String("messaging.message.id", text(a.ID)))
	}
	committed := a.Err == nil && !a.Duplicate
	if a.Err != nil {
		refused(span, a.Err)
	} else {
		span.SetAttributes(txid(a.Txid), attribute.Bool("cantus.duplicate", a.Duplicate))
	}
	if committed {
		span.SetAttributes(attribute.Int("cantus.batch.transactions", b.Passed))
	}
	end := b.Answered
	for _, e := range [...]struct {
		name     string
		at       time.Time
		ofCommit bool // it happens to what commits only
	}{
		{"dequeued", b.Certified, false}, {"certified", b.Proposed, false}, {"proposed", b.Taken, true}, {"synced", b.Synced, true},
		{"committed", b.Committed, true}, {"applied", b.Applied, true}, {"answered", b.Answered, false}, {"published", b.Published, true},
	} {
		if e.at.IsZero() || e.ofCommit && !committed {
			continue
		}
		span.AddEvent(e.name, trace.WithTimestamp(e.at))
		if e.at.After(end) {
			end = e.at
		}
	}
	span.End(trace.WithTimestamp(end))
}

// refused notes on a span that its transaction was refused.
func refused(span trace.Span, e *subjects.Error) {
	span.SetStatus(codes.Error, text(string(e.Reason)+": "+e.Message))
	span.SetAttributes(attribute.String("error.type", string(e.Reason)))
	if e.Lock != "" {
		span.SetAttributes(attribute.String("cantus.conflict.lock", text(e.Lock)))
	}
	if e.Txid > 0 {
		span.SetAttributes(attribute.Int64("cantus.conflict.txid", int64(e.Txid)))
	}
}

// start starts a span of this node, below parent.
func (t *Tracer) start(operation string, parent trace.SpanContext, kind trace.SpanKind, at time.Time, partition int) (context.Context, trace.Span) {
	ctx := context.Background()
	if parent.IsValid() {
		ctx = trace.ContextWithRemoteSpanContext(ctx, parent)
	}
	return t.spans.Start(ctx, operation+" "+t.opts.Prefix, trace.WithSpanKind(kind), trace.WithTimestamp(at), trace.WithAttributes(
		attribute.String("messaging.system", "cantus"),
		attribute.String("messaging.operation.name", operation),
		attribute.String("messaging.destination.name", t.opts.Prefix),
		attribute.String("messaging.destination.partition.id", strconv.Itoa(partition)),
		attribute.String("cantus.node", t.opts.Node),
	))
}

func txid(n uint64) attribute.KeyValue { return attribute.Int64("cantus.txid", int64(n)) }

// text returns what a client has sent as text. Clients send any bytes, and
// messages are cut within characters, but in the message to the collector a
// text that is not UTF-8 loses all spans.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
