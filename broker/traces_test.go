package broker_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

const (
	traceID     = "4bf92f3577b34da6a3ce929d0e0e4736"
	parentID    = "00f067aa0ba902b7"
	traceparent = "00-" + traceID + "-" + parentID + "-01"
)

// traced returns options of a node with an in-memory exporter.
func traced(opts broker.Options) (broker.Options, *tracetest.InMemoryExporter) {
	spans := tracetest.NewInMemoryExporter()
	opts.TracerProvider = sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	return opts, spans
}

// await returns the spans once there are count.
func await(t *testing.T, spans *tracetest.InMemoryExporter, count int) tracetest.SpanStubs {
	t.Helper()
	eventually(t, fmt.Sprintf("%d spans", count), func() bool { return len(spans.GetSpans()) >= count })
	all := spans.GetSpans()
	if len(all) > count {
		t.Errorf("%d spans, want %d", len(all), count)
	}
	spans.Reset()
	return all
}

// show shows a span: its parent, kind, name, attributes but those that all
// have, events, and status.
func show(s tracetest.SpanStub) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s/%s", s.SpanKind, s.Name, s.Parent.TraceID(), s.Parent.SpanID())
	for _, a := range s.Attributes {
		switch a.Key {
		case "messaging.system", "messaging.operation.name", "messaging.destination.name", "cantus.node":
		default:
			fmt.Fprintf(&b, " %s=%v", a.Key, a.Value.String())
		}
	}
	for _, e := range s.Events {
		b.WriteString(" " + e.Name)
	}
	if s.Status.Code == codes.Error {
		b.WriteString(" error")
	}
	return b.String()
}

func wantSpan(t *testing.T, s tracetest.SpanStub, want string) {
	t.Helper()
	if got := show(s); got != want {
		t.Errorf("span\n got %s\nwant %s", got, want)
	}
	for _, e := range s.Events {
		if e.Time.Before(s.StartTime) || e.Time.After(s.EndTime) {
			t.Errorf("event %s at %v is not between %v and %v", e.Name, e.Time, s.StartTime, s.EndTime)
		}
	}
}

// A sampled append is one span below its writer's, whose events are the stages,
// and a refused one has the lock and the txid.
func TestAppendsAreTraced(t *testing.T) {
	opts, spans := traced(broker.Options{Partitions: 1})
	n, nc := one(t, opts)
	const parent = traceID + "/" + parentID
	appendTx(t, nc, "cantus.append.0", "a", "Traceparent", traceparent, write, "x", subjects.HeaderHighWaterMark, "0", "Nats-Msg-Id", "id-1", "Cantus-Kind", "pay")
	const committed = "server append cantus " + parent + " messaging.destination.partition.id=0 cantus.kind=pay messaging.message.id=id-1 " +
		"cantus.txid=1 cantus.duplicate=false cantus.batch.transactions=1 dequeued certified proposed synced committed applied answered"
	wantSpan(t, await(t, spans, 1)[0], committed)

	feed := subscribe(t, nc, "cantus.feed.0.pay")
	eventually(t, "the node knows the subscriber", func() bool {
		appendTx(t, nc, "cantus.append.0", "b", "Cantus-Kind", "pay")
		m, err := feed.NextMsg(patience / 100)
		return err == nil && len(m.Data) == 1
	})
	appendTx(t, nc, "cantus.append.0", "c", "traceparent", traceparent, "Cantus-Kind", "pay")
	if got := show(await(t, spans, 1)[0]); !strings.HasSuffix(got, " published") && !strings.HasSuffix(got, " published answered") && !strings.HasSuffix(got, " answered published") {
		t.Errorf("published: %s", got)
	}

	refused := ask(t, nc, "cantus.append.0", "d", "traceparent", traceparent, write, "x", subjects.HeaderHighWaterMark, "0")
	wantRefusal(t, refused, subjects.Conflict)
	s := await(t, spans, 1)[0]
	wantSpan(t, s, "server append cantus "+parent+" messaging.destination.partition.id=0 cantus.kind=tx error.type=conflict "+
		"cantus.conflict.lock=x cantus.conflict.txid=1 dequeued answered error")
	if !strings.HasPrefix(s.Status.Description, `conflict: write lock "x" was recorded by txid 1`) {
		t.Errorf("status %q", s.Status.Description)
	}
	appendTx(t, nc, "cantus.append.0", "a", "traceparent", traceparent, "Nats-Msg-Id", "id-1")
	if got := show(await(t, spans, 1)[0]); !strings.Contains(got, " cantus.txid=1 cantus.duplicate=true dequeued answered") {
		t.Errorf("a duplicate: %s", got)
	}
	if dropped := broker.Metric(t, n, "cantus_spans_dropped_total"); dropped != 0 {
		t.Errorf("%v spans dropped", dropped)
	}
}

// A span has the cluster's number of a partition of a namespace, as the prefix
// that it names is the cluster's, and as the spans of other replicas do.
func TestSpansOfANamespace(t *testing.T) {
	opts, spans := traced(broker.Options{Partitions: 2})
	_, nc := openNode(t, t.TempDir(), opts)
	setNamespace(t, nc, `{"name":"orders","partitions":[1]}`)
	askNamespace(t, nc, "cantus.ns.orders.append.0", "untraced")
	appendTx(t, nc, "cantus.ns.orders.append.0", "a", "traceparent", traceparent)
	if got := show(await(t, spans, 1)[0]); !strings.Contains(got, "append cantus") || !strings.Contains(got, "partition.id=1 ") {
		t.Errorf("%s", got)
	}
}

// Whatever bytes a client sends as a name, and wherever a long one is cut, a
// span has text: a collector takes no message with anything else in it, so that
// the spans of others would be lost too.
func TestSpansHaveText(t *testing.T) {
	opts, spans := traced(broker.Options{Partitions: 1})
	_, nc := one(t, opts)
	for _, name := range []string{"\xff", "x" + strings.Repeat("ä", 40)} {
		_ = ask(t, nc, "cantus.append.0", "a", "traceparent", traceparent, "Nats-Msg-Id", name)
		for _, s := range await(t, spans, 1) {
			if text := show(s) + s.Status.Description; !utf8.ValidString(text) {
				t.Errorf("%q", text)
			}
		}
	}
}

// Each transaction of a batch message has a trace of its own, and what is not
// sampled, or malformed, has none. All commit, and keep what was sent.
func TestTracesOfABatch(t *testing.T) {
	opts, spans := traced(broker.Options{Partitions: 1})
	_, nc := one(t, opts)
	unsampled := strings.TrimSuffix(traceparent, "1") + "0"
	sent := []string{traceparent, unsampled, "junk", strings.ToUpper(traceparent), traceparent + "-x", traceparent}
	var body []byte
	for _, v := range sent {
		body = append(body, item("x", "traceparent", v, "tracestate", "a=b")...)
	}
	body = append(body, item("x", "traceparent", traceparent, "Traceparent", traceparent)...) // ambiguous
	body = append(body, item("x")...)
	answer := ask(t, nc, "cantus.batch.0", string(body))
	if !strings.Contains(string(answer.Data), `"count":8,"txid":1`) {
		t.Fatalf("answer %s", answer.Data)
	}
	all := await(t, spans, 2)
	for i, txid := range []int64{1, 6} {
		if got, ok := attributeOf(all[i], "cantus.txid"); !ok || got.AsInt64() != txid {
			t.Errorf("span %d is of txid %v", i, got.String())
		}
	}
	for i, want := range sent {
		m := ask(t, nc, "cantus.get.0", fmt.Sprintf(`{"txid":%d}`, i+1))
		if got := m.Header.Get("traceparent"); got != want || m.Header.Get("tracestate") != "a=b" {
			t.Errorf("txid %d has %q and %q", i+1, got, m.Header.Get("tracestate"))
		}
	}
}

func attributeOf(s tracetest.SpanStub, key attribute.Key) (v attribute.Value, ok bool) {
	for _, a := range s.Attributes {
		if a.Key == key {
			return a.Value, true
		}
	}
	return v, false
}

// With a trace ratio of 1 the node begins a trace for what has none; what is
// not sampled stays so.
func TestTraceRatio(t *testing.T) {
	opts, spans := traced(broker.Options{Partitions: 1, TraceRatio: 1})
	_, nc := one(t, opts)
	appendTx(t, nc, "cantus.append.0", "x", "traceparent", strings.TrimSuffix(traceparent, "1")+"0")
	appendTx(t, nc, "cantus.append.0", "x", "traceparent", "junk")
	appendTx(t, nc, "cantus.append.0", "x")
	for i, s := range await(t, spans, 2) {
		if txid, _ := attributeOf(s, "cantus.txid"); s.Parent.IsValid() || txid.AsInt64() != int64(i+2) {
			t.Errorf("span %d: txid %v, parent %v", i, txid.String(), s.Parent.SpanID())
		}
	}
}

// Each replica tells when it has applied a sampled transaction.
func TestReplicasTraceWhatTheyApply(t *testing.T) {
	opts, spans := traced(broker.Options{Partitions: 1})
	c := openNodes(t, 3, opts)
	leader := c.leader(0, "n1")
	nc := c.conn("n1")
	keep(t, nc, 0, "x", "m0")
	eventually(t, "an append is traced", func() bool {
		_, err := nc.RequestMsg(message("cantus.append.0", "x", "traceparent", traceparent, "Nats-Msg-Id", "m1"), patience)
		return err == nil && len(spans.GetSpans()) > 0
	})
	eventually(t, "three nodes", func() bool {
		by := map[string]string{}
		for _, s := range spans.GetSpans() {
			node, _ := attributeOf(s, "cantus.node")
			by[node.AsString()] = s.Name
			if s.Parent.SpanID().String() != parentID {
				t.Fatalf("parent %v", s.Parent.SpanID())
			}
		}
		return len(by) == 3 && (by[leader] == "append cantus" || by[leader] == "apply cantus")
	})
}

// stuck is a TracerProvider's processor that takes nothing until mu is free.
type stuck struct {
	mu sync.Mutex
	sdktrace.SpanProcessor
}

func (s *stuck) OnStart(context.Context, sdktrace.ReadWriteSpan) {}
func (s *stuck) OnEnd(sdktrace.ReadOnlySpan) {
	s.mu.Lock()
	defer s.mu.Unlock()
}

// A TracerProvider that takes nothing holds up no append: spans are dropped,
// and counted.
func TestAStuckTracerProvider(t *testing.T) {
	p := &stuck{}
	p.mu.Lock()
	n, nc := one(t, broker.Options{Partitions: 1, TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(p)), SpansLost: func() uint64 { return 7 }})
	t.Cleanup(p.mu.Unlock) // before the node is closed
	body := []byte(strings.Repeat(string(item("", "traceparent", traceparent)), 4000))
	for range 4 {
		if answer := ask(t, nc, "cantus.batch.0", string(body)); !strings.Contains(string(answer.Data), `"count":4000`) {
			t.Fatalf("answer %.200s", answer.Data)
		}
	}
	eventually(t, "spans are dropped", func() bool { return broker.Metric(t, n, "cantus_spans_dropped_total") >= 4000+7 })
}

// A tracer that nobody samples for is asked nothing.
func TestUntracedAppendsMakeNoSpans(t *testing.T) {
	opts, spans := traced(broker.Options{Partitions: 1})
	_, nc := one(t, opts)
	appendTx(t, nc, "cantus.append.0", "x")
	appendTx(t, nc, "cantus.append.0", "x", "X", traceparent)
	appendTx(t, nc, "cantus.append.0", "x", "traceparent", traceparent)
	await(t, spans, 1)
}

func subscribe(t *testing.T, nc *nats.Conn, subject string) *nats.Subscription {
	t.Helper()
	sub, err := nc.SubscribeSync(subject)
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	return sub
}
