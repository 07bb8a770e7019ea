package e2e_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/client/oteltrace"
	"github.com/cantuslog/cantus/internal/otlptest"
	"github.com/cantuslog/cantus/internal/testkit"
)

// TestATraceThroughACluster follows a transaction from a request through three
// nodes to a follower's handler. Each process sends its spans to a collector,
// where they are one trace. When the collector is gone, appends go on.
func TestATraceThroughACluster(t *testing.T) {
	collector := otlptest.Start(t)
	exporter, err := otlptracehttp.New(t.Context(), otlptracehttp.WithEndpointURL(collector.URL+"/v1/traces"))
	if err != nil {
		t.Fatal(err)
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter))
	c := startCluster(t, 3, "--partitions", "1", "--traces", collector.URL)
	newClient := func(tracer client.Tracer) *client.Client {
		api, err := client.New(c.dial("n2").Conn, client.Options{Tracer: tracer})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = api.Close() })
		return api
	}
	api, plain := newClient(oteltrace.New(provider, oteltrace.Options{})), newClient(nil)
	if _, err := plain.Append(testkit.Soon(t), &client.Request{}); err != nil {
		t.Fatal(err)
	}
	following, stop := context.WithCancel(testkit.Soon(t))
	followed := make(chan struct{}, 2)
	var follower sync.WaitGroup
	follower.Go(func() {
		_ = api.Follow(following, client.Positions{0: 0}, func(context.Context, *client.Transaction) error {
			followed <- struct{}{}
			return nil
		}, client.FollowOptions{})
	})
	<-followed
	ctx, request := provider.Tracer("web").Start(testkit.Soon(t), "request")
	if _, err := api.Append(ctx, &client.Request{Payload: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	request.End()
	<-followed
	stop()
	follower.Wait()
	trace := request.SpanContext().TraceID().String()
	want := "request: append cantus producer; append cantus producer: append cantus server, apply cantus internal, apply cantus internal, process cantus consumer [n1 n2 n3]"
	if err := c.until(t.Context(), "one trace", func(context.Context) string {
		if got := describeTrace(collector.Spans(), trace); got != want {
			return got
		}
		return ""
	}); err != nil {
		t.Fatal(err)
	}
	if testing.Verbose() {
		logTrace(t, collector.Spans(), trace)
	}

	collector.CloseClientConnections()
	collector.Close()
	traced := nats.Header{"traceparent": {"00-" + trace + "-00f067aa0ba902b7-01"}}
	for range 20 {
		if _, err := plain.Append(testkit.Soon(t), &client.Request{Header: traced}); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Until(t, "a node says that spans are lost", func() bool {
		return slices.ContainsFunc(c.nodes, func(n *node) bool { return strings.Contains(n.running().stderr.String(), "spans are lost") })
	})
}

// describeTrace describes what is below the root of a trace, and below the
// client's append, and which nodes made spans.
func describeTrace(all []otlptest.Span, trace string) string {
	var root, appended string
	var below, nodes []string
	for _, s := range all {
		switch {
		case s.Trace != trace:
		case s.Parent == "":
			root = s.ID
		case s.Kind == "producer":
			appended = s.ID
		}
	}
	top := "nothing"
	for _, s := range all {
		switch {
		case s.Trace != trace || s.ID == root:
		case s.ID == appended && s.Parent == root:
			top = s.Name + " " + s.Kind
		case s.Parent == appended:
			below = append(below, s.Name+" "+s.Kind)
		default:
			below = append(below, "elsewhere: "+s.Name+" "+s.Kind)
		}
		if node := s.Attributes["cantus.node"]; s.Trace == trace && node != "" {
			if node != s.Service || s.Program != "cantus" {
				node = fmt.Sprintf("%s of %s %s", node, s.Program, s.Service)
			}
			nodes = append(nodes, node)
		}
	}
	slices.Sort(below)
	slices.Sort(nodes)
	return fmt.Sprintf("request: %s; %s: %s %v", top, top, strings.Join(below, ", "), nodes)
}

// logTrace logs a trace as lines, in microseconds since its beginning.
func logTrace(t *testing.T, all []otlptest.Span, trace string) {
	t.Helper()
	all = slices.DeleteFunc(all, func(s otlptest.Span) bool { return s.Trace != trace })
	slices.SortFunc(all, func(a, b otlptest.Span) int { return int(int64(a.Start) - int64(b.Start)) })
	for _, s := range all {
		t.Logf("%6d to %6d µs  %-8s %s %v", (s.Start-all[0].Start)/1000, (s.End-all[0].Start)/1000, s.Attributes["cantus.node"], s.Name, s.Events)
	}
}
