package traceexport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/cantuslog/cantus/broker/internal/loglimit"
)

// Options configures an [Exporter].
type Options struct {
	// URL is that of the collector, as [CheckURL] accepts it.
	URL string
	// Node and Version are the node's, which the spans' resource names.
	Node, Version string
	// Logger receives what goes wrong, once in a while. Default: it is
	// discarded.
	Logger *slog.Logger
}

// Exporter sends spans to a collector. Spans that wait are bounded: while the
// collector is slow or away, further ones are lost.
type Exporter struct {
	log      *slog.Logger
	provider *sdktrace.TracerProvider
	room     atomic.Int64 // for spans that end
	lost     atomic.Uint64
	logged   loglimit.Repeats
}

// most bounds the spans that wait to be sent.
const most = 2048

const (
	batchTime  = time.Second      // for which spans wait at most to share a message
	exportTime = 30 * time.Second // that a message may take, all tries included
)

// defaultPath is where collectors take traces.
const defaultPath = "/v1/traces"

// CheckURL returns the URL that a collector's address stands for: without a
// path, that is /v1/traces.
func CheckURL(text string) (string, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Fragment != "" || u.RawQuery != "":
		return "", fmt.Errorf("%q is not the URL of a collector, such as http://127.0.0.1:4318", shown(u, text))
	case u.User != nil:
		return "", fmt.Errorf("%q names a user: give credentials as headers, in OTEL_EXPORTER_OTLP_HEADERS", u.Redacted())
	case u.Path == "" || u.Path == "/":
		u.Path = defaultPath
	}
	return u.String(), nil
}

// shown returns a URL without its password.
func shown(u *url.URL, text string) string {
	if u == nil {
		return text
	}
	return u.Redacted()
}

// Open returns an Exporter. It does not connect yet. What the variables of
// OpenTelemetry say of headers, certificates, compression, timeouts and the
// resource counts; docs/traces.md lists them.
func Open(ctx context.Context, o Options) (*Exporter, error) {
	at, err := CheckURL(o.URL)
	if err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	client, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(at))
	if err != nil {
		return nil, fmt.Errorf("traces to %s: %w", at, err)
	}
	r, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithAttributes(
		attribute.String("service.name", "cantus"), attribute.String("service.instance.id", o.Node), attribute.String("service.version", o.Version),
	), resource.WithFromEnv())
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, fmt.Errorf("traces: %w", err)
	}
	e := &Exporter{log: o.Logger}
	e.room.Store(most)
	e.provider = sdktrace.NewTracerProvider(
		sdktrace.WithResource(r),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.AlwaysSample())), // the node has decided
		sdktrace.WithSpanProcessor(&bounded{e, sdktrace.NewBatchSpanProcessor(&counted{e, client},
			sdktrace.WithMaxQueueSize(most), sdktrace.WithBatchTimeout(batchTime), sdktrace.WithExportTimeout(exportTime))}),
	)
	return e, nil
}

// Provider returns what makes spans.
func (e *Exporter) Provider() trace.TracerProvider { return e.provider }

// Lost returns how many spans were not sent.
func (e *Exporter) Lost() uint64 { return e.lost.Load() }

// closeTime is how long Close tries to send what is left.
const closeTime = 2 * time.Second

// Close sends what is left, as far as that is done within two seconds.
func (e *Exporter) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	if err := e.provider.Shutdown(ctx); err != nil {
		e.log.Warn("the last spans were not sent", "err", err)
	}
}

// lose counts spans that are lost, and logs why once in a while.
func (e *Exporter) lose(n int, why string, err error) {
	all := e.lost.Add(uint64(n))
	text := why
	if err != nil {
		text = err.Error()
	}
	if ok, _ := e.logged.Allow(text, time.Now()); ok {
		e.log.Warn(why, "lost", all, "err", err)
	}
}

// bounded passes on no more spans than may wait, so that the processor behind
// it never drops any uncounted.
type bounded struct {
	e *Exporter
	sdktrace.SpanProcessor
}

func (b *bounded) OnEnd(s sdktrace.ReadOnlySpan) {
	if !s.SpanContext().IsSampled() {
		return
	}
	if b.e.room.Add(-1) < 0 {
		b.e.room.Add(1)
		b.e.lose(1, "spans are lost: the collector does not take them in time", nil)
		return
	}
	b.SpanProcessor.OnEnd(s)
}

// counted counts the spans that the collector did not take.
type counted struct {
	e *Exporter
	sdktrace.SpanExporter
}

func (c *counted) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	defer c.e.room.Add(int64(len(spans)))
	if err := c.SpanExporter.ExportSpans(ctx, spans); err != nil {
		c.e.lose(len(spans), "spans are lost: the collector did not take them", err)
	}
	return nil // it is counted and logged
}
