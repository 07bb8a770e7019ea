package broker

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cantuslog/cantus/broker/internal/traces"
)

// tracing runs a node's tracer, if it has one.
type tracing struct {
	tracer *traces.Tracer // nil for none
	end    context.CancelFunc
}

// startTracing starts the tracer that a node's options ask for, and registers
// the metric of spans that are dropped.
func startTracing(o *Options, registry *prometheus.Registry) *tracing {
	t := &tracing{}
	if o.TracerProvider != nil {
		t.tracer = traces.New(traces.Options{
			Provider: o.TracerProvider, Ratio: o.TraceRatio, Node: o.Name, Version: o.Version, Prefix: o.Prefix, Log: o.Logger,
		})
		var ctx context.Context
		ctx, t.end = context.WithCancel(context.Background())
		go t.tracer.Run(ctx)
	}
	registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Namespace: "cantus", Name: "spans_dropped_total",
		Help: "Spans of traces that were dropped: too many were waiting, or the collector did not take them.",
	}, func() (dropped float64) {
		if t.tracer != nil {
			dropped = float64(t.tracer.Dropped())
		}
		if o.SpansLost != nil {
			dropped += float64(o.SpansLost())
		}
		return dropped
	}))
	return t
}

// tracingPatience is how long a node that stops waits for a TracerProvider to
// take the last spans.
const tracingPatience = time.Second

// stop hands the last spans to the TracerProvider. The tenures have ended.
func (t *tracing) stop() {
	if t.tracer == nil {
		return
	}
	t.end()
	select {
	case <-t.tracer.Ended():
	case <-time.After(tracingPatience):
	}
}
