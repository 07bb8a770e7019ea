package oteltrace

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/cantuslog/cantus/client"
)

// Options configures a [Tracer]. The zero value selects the defaults.
type Options struct {
	// MaxAge is how old a transaction may be for the call of its handler to be
	// traced. A follower that catches up handles transactions whose traces
	// ended long ago. Negative for no limit. Default 1 hour.
	MaxAge time.Duration
}

// Tracer is a [client.Tracer].
type Tracer struct {
	spans  trace.Tracer
	maxAge time.Duration
}

var _ client.Tracer = (*Tracer)(nil)

const name = "github.com/cantuslog/cantus/client/oteltrace"

// New returns a Tracer whose spans go to provider, which also decides what is
// sampled.
func New(provider trace.TracerProvider, opts Options) *Tracer {
	if opts.MaxAge == 0 {
		opts.MaxAge = time.Hour
	}
	return &Tracer{spans: provider.Tracer(name), maxAge: opts.MaxAge}
}

// w3c writes and reads the headers, by the W3C recommendation Trace Context.
var w3c propagation.TraceContext

// Append starts the span of an append. If the application has set a traceparent
// itself, the request stays as it is, and the span is linked to that context.
func (t *Tracer) Append(ctx context.Context, prefix string, req *client.Request) (nats.Header, func(client.Receipt, error)) {
	opts := append(describe("append", "send", prefix, req.Partition), trace.WithSpanKind(trace.SpanKindProducer))
	set := carrier(req.Header).count(traceparent) > 0
	if set {
		opts = append(opts, trace.WithSpanKind(trace.SpanKindClient))
	}
	if own := contextOf(req.Header); own.IsValid() {
		opts = append(opts, trace.WithLinks(trace.Link{SpanContext: own}))
	}
	ctx, span := t.spans.Start(ctx, "append "+prefix, opts...)
	var header nats.Header
	if !set {
		header = nats.Header{}
		w3c.Inject(ctx, carrier(header))
	}
	if !span.IsRecording() {
		return header, nil
	}
	if req.Kind != "" {
		span.SetAttributes(attribute.String("cantus.kind", req.Kind))
	}
	if req.ID != "" {
		span.SetAttributes(attribute.String("messaging.message.id", req.ID))
	}
	return header, func(r client.Receipt, err error) {
		if err != nil {
			fail(span, err)
		} else {
			span.SetAttributes(attribute.Int64("cantus.txid", int64(r.Txid)), attribute.Bool("cantus.duplicate", r.Duplicate))
		}
		span.End()
	}
}

// Handle starts the span of a handler's call.
func (t *Tracer) Handle(ctx context.Context, h client.Handling) (context.Context, func(error)) {
	first, last := h.Transactions[0], h.Transactions[len(h.Transactions)-1]
	if t.maxAge > 0 && time.Since(last.Time) > t.maxAge {
		return ctx, nil
	}
	opts := append(describe("process", "process", h.Prefix, first.Partition), trace.WithSpanKind(trace.SpanKindConsumer))
	if h.Group != "" {
		opts = append(opts, trace.WithAttributes(attribute.String("messaging.consumer.group.name", h.Group)))
	}
	for _, tx := range h.Transactions {
		if from := contextOf(tx.Header); from.IsValid() {
			opts = append(opts, trace.WithLinks(trace.Link{SpanContext: from}))
		}
	}
	if first != last {
		opts = append(opts, trace.WithAttributes(
			attribute.Int("messaging.batch.message_count", len(h.Transactions)),
			attribute.Int64("cantus.first_txid", int64(first.Txid)), attribute.Int64("cantus.last_txid", int64(last.Txid))))
	} else {
		opts = append(opts, describeOne(first))
		if from := contextOf(first.Header); from.IsValid() {
			ctx = trace.ContextWithRemoteSpanContext(ctx, from)
		}
	}
	ctx, span := t.spans.Start(ctx, "process "+h.Prefix, opts...)
	return ctx, func(err error) {
		var moved *client.MovedError
		if err != nil && !errors.As(err, &moved) {
			fail(span, err)
		}
		span.End()
	}
}

// describe returns the attributes that every span has.
func describe(operation, kind, prefix string, partition int) []trace.SpanStartOption {
	return []trace.SpanStartOption{trace.WithAttributes(
		attribute.String("messaging.system", "cantus"),
		attribute.String("messaging.operation.name", operation),
		attribute.String("messaging.operation.type", kind),
		attribute.String("messaging.destination.name", prefix),
		attribute.String("messaging.destination.partition.id", strconv.Itoa(partition)),
	)}
}

// describeOne returns the attributes of a handler's only transaction.
func describeOne(tx *client.Transaction) trace.SpanStartOption {
	all := []attribute.KeyValue{attribute.Int64("cantus.txid", int64(tx.Txid)), attribute.String("cantus.kind", tx.Kind)}
	if tx.ID != "" {
		all = append(all, attribute.String("messaging.message.id", tx.ID))
	}
	return trace.WithAttributes(all...)
}

// fail notes an error: a refusal with its reason, and a conflict with the lock
// and the transaction that it names.
func fail(span trace.Span, err error) {
	span.SetStatus(codes.Error, err.Error())
	var refused *client.RefusedError
	switch {
	case errors.Is(err, client.ErrUnknown):
		span.SetAttributes(attribute.String("error.type", "unknown"))
	case errors.As(err, &refused):
		span.SetAttributes(attribute.String("error.type", string(refused.Reason)))
		if refused.Lock != "" {
			span.SetAttributes(attribute.String("cantus.conflict.lock", refused.Lock))
		}
		if refused.Txid > 0 {
			span.SetAttributes(attribute.Int64("cantus.conflict.txid", int64(refused.Txid)))
		}
	case errors.Is(err, context.Canceled):
		span.SetAttributes(attribute.String("error.type", "canceled"))
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, client.ErrTimeout):
		span.SetAttributes(attribute.String("error.type", "timeout"))
	default:
		span.SetAttributes(attribute.String("error.type", "_OTHER"))
	}
}

// contextOf returns the trace context in a transaction's headers, invalid if
// there is none or it is malformed. More than one traceparent is malformed.
func contextOf(header nats.Header) trace.SpanContext {
	if len(header) == 0 {
		return trace.SpanContext{}
	}
	return trace.SpanContextFromContext(w3c.Extract(context.Background(), carrier(header)))
}

// carrier is a transaction's headers as OpenTelemetry reads and writes them.
// The names of the W3C's headers may be in any letter case.
type carrier nats.Header

const traceparent = "traceparent"

// Get returns the value of a header, "" for one that occurs more than once.
func (c carrier) Get(key string) string {
	if c.count(key) != 1 {
		return ""
	}
	for k, values := range c {
		if strings.EqualFold(k, key) && len(values) > 0 {
			return values[0]
		}
	}
	return ""
}

// count returns how often a header occurs.
func (c carrier) count(key string) (n int) {
	for k, values := range c {
		if strings.EqualFold(k, key) {
			n += len(values)
		}
	}
	return n
}

func (c carrier) Set(key, value string) { c[key] = []string{value} }

func (c carrier) Keys() (all []string) {
	for k := range c {
		all = append(all, k)
	}
	return all
}
