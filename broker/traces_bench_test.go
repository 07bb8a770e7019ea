package broker

import (
	"log/slog"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/broker/internal/traces"
	"github.com/cantuslog/cantus/subjects"
)

// BenchmarkDecodeTraced decodes an append as the sequencer does, with and
// without a tracer and a trace context.
func BenchmarkDecodeTraced(b *testing.B) {
	const sampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	tracer := traces.New(traces.Options{Provider: sdktrace.NewTracerProvider(), Log: slog.New(slog.DiscardHandler)})
	for _, v := range []struct {
		name   string
		tracer *traces.Tracer
		header []string
	}{
		{"off", nil, nil}, {"off/header", nil, []string{"traceparent", sampled}},
		{"on", tracer, nil}, {"on/unsampled", tracer, []string{"traceparent", sampled[:54] + "0"}}, {"on/sampled", tracer, []string{"traceparent", sampled}},
	} {
		b.Run(v.name, func(b *testing.B) {
			h := subjects.AppendField(subjects.AppendField(subjects.AppendBlockStart(nil), subjects.HeaderMsgID, "0123456789"), subjects.HeaderAppendLock, "account.42")
			for i := 0; i < len(v.header); i += 2 {
				h = subjects.AppendField(h, v.header[i], v.header[i+1])
			}
			m := &natslink.Message{Subject: "cantus.append.0", Reply: "r", Header: subjects.AppendBlockEnd(h), Payload: make([]byte, 100), Received: time.Now()}
			s := &sequencer{direct: m.Subject, limits: fakeNATS{}, tracer: v.tracer}
			rs := make([]*request, 0, 1)
			b.ReportAllocs()
			for b.Loop() {
				batch := batch{requests: newRequestArena()}
				s.decode(&batch, rs, m)
				batch.requests.free()
			}
		})
	}
}
