package traceexport

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/internal/otlptest"
	"github.com/cantuslog/cantus/internal/testkit"
)

func TestCheckURL(t *testing.T) {
	for text, want := range map[string]string{
		"http://127.0.0.1:4318":           "http://127.0.0.1:4318/v1/traces",
		"http://127.0.0.1:4318/":          "http://127.0.0.1:4318/v1/traces",
		"https://otel.example.com/traces": "https://otel.example.com/traces",
	} {
		if got, err := CheckURL(text); err != nil || got != want {
			t.Errorf("%s: %s, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "a:4318", "ftp://a", "http://", "http://a?x", "http://a#x", "http://me:secret@a", "http://me:secret@", "http://a\n"} {
		if _, err := CheckURL(text); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// open opens an exporter with a log.
func open(t *testing.T, url string) (*Exporter, *lines) {
	t.Helper()
	log := &lines{}
	e, err := Open(t.Context(), Options{URL: url, Node: "n7", Version: "1.2.3", Logger: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	return e, log
}

func (e *Exporter) span(name string) {
	_, s := e.Provider().Tracer("test").Start(context.Background(), name)
	s.End()
}

// A collector gets the spans, with the node as their resource and the headers
// of the environment.
func TestSpansArrive(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20t")
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=ledger")
	t.Setenv("OTEL_TRACES_SAMPLER", "always_off") // the node decides
	c := otlptest.Start(t)
	e, _ := open(t, c.URL)
	e.span("a")
	e.Close()
	all := c.Spans()
	if len(all) != 1 || all[0].Name != "a" || all[0].Service != "n7" || all[0].Program != "ledger" || e.Lost() != 0 {
		t.Fatalf("%+v, %d lost", all, e.Lost())
	}
	if h := c.Headers()[0].Get("Authorization"); h != "Bearer t" {
		t.Errorf("authorization %q", h)
	}
}

// What a collector that is away does not get is counted, and said once.
func TestSpansAreLostAndCounted(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	e, log := open(t, "http://"+address)
	e.span("a")
	e.span("b")
	_ = e.provider.ForceFlush(t.Context())
	testkit.Until(t, "two spans are lost", func() bool { return e.Lost() == 2 })
	e.Close()
	if text := log.String(); strings.Count(text, "level=WARN") != 1 || !strings.Contains(text, "spans are lost") {
		t.Errorf("log %s", text)
	}
}

// While the collector does not answer, spans are bounded: the others are lost
// at once.
func TestSpansThatWaitAreBounded(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // it accepts, and never answers
	if err != nil {
		t.Fatal(err)
	}
	e, _ := open(t, "http://"+l.Addr().String())
	for range most + 100 {
		e.span("x")
	}
	if lost := e.Lost(); lost != 100 {
		t.Errorf("%d spans lost", lost)
	}
	_ = l.Close()
	e.Close()
}
