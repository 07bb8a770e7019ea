package traces

import (
	"context"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

const sampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

func TestParse(t *testing.T) {
	for value, want := range map[string]string{
		sampled: "sampled",
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00":      "not sampled",
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03":      "sampled",
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-02":      "not sampled",
		"cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01":      "sampled",
		"cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more": "sampled",
		"cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.more": "",
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more": "",
		"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01":      "",
		"00-4BF92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01":      "",
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0g":      "",
		"00-00000000000000000000000000000000-00f067aa0ba902b7-01":      "",
		"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01":      "",
		"00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01":      "",
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1":       "",
		"": "",
	} {
		c, ok := Parse([]byte(value))
		got := ""
		switch {
		case ok && c.TraceFlags.IsSampled():
			got = "sampled"
		case ok:
			got = "not sampled"
		}
		if got != want {
			t.Errorf("%q is %q, want %q", value, got, want)
		}
	}
}

// An append that is not sampled costs nothing that a collection of garbage
// would notice.
func TestUnsampledAppendsAllocateNothing(t *testing.T) {
	tracer := New(Options{Provider: noop.NewTracerProvider()})
	for _, headers := range []string{"", "Other: x\r\n", "Other: x\r\nTraceParent: " + sampled[:flagsAt] + "00\r\n", "traceparent: junk\r\n"} {
		block := []byte(headers)
		if n := testing.AllocsPerRun(100, func() {
			if tracer.Append(0, Find(block)) != nil {
				t.Fatal("it is traced")
			}
		}); n != 0 {
			t.Errorf("%q: %v allocations", headers, n)
		}
	}
	if tracer.Append(0, Find([]byte("traceparent: "+sampled))) == nil {
		t.Error("a sampled one is not traced")
	}
}

func TestFind(t *testing.T) {
	for headers, want := range map[string]string{
		"traceparent: a\r\n":                           "a",
		"x: y\r\nTRACEPARENT: a\r\ntracestate: b\r\n":  "a",
		"traceparent: a\r\nTraceparent: b\r\n":         "",
		"traceparent: a\r\nx: y\r\ntraceparent: a\r\n": "",
		"xtraceparent: a\r\ntraceparen: b\r\n":         "",
		"":                                             "",
	} {
		if got := string(Find([]byte(headers))); got != want {
			t.Errorf("%q: %q, want %q", headers, got, want)
		}
	}
}

// FuzzParse compares Parse with the propagator of OpenTelemetry.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{sampled, "cc" + sampled[2:] + "-x", strings.ToUpper(sampled), ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		c, ok := Parse([]byte(value))
		ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{header: value})
		want := trace.SpanContextFromContext(ctx)
		if ok && value[:2] == "00" && value[flagsAt:] > "03" {
			return // flags without a meaning, for which the propagator refuses the whole
		}
		if ok != want.IsValid() {
			t.Fatalf("%q: %t, want %t", value, ok, want.IsValid())
		}
		if got := trace.NewSpanContext(c); ok && (got.TraceID() != want.TraceID() || got.SpanID() != want.SpanID() || got.IsSampled() != want.IsSampled()) {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	})
}
