package oteltrace_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/client/group"
	"github.com/cantuslog/cantus/client/oteltrace"
	"github.com/cantuslog/cantus/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// soon returns a context that ends a test that would hang.
var soon = testkit.Soon

// world is a node with a client, whose spans go to one exporter.
type world struct {
	spans    *tracetest.InMemoryExporter
	provider *sdktrace.TracerProvider
	c        *client.Client
	plain    *client.Client // without a tracer
}

func newWorld(t *testing.T, opts oteltrace.Options, sampler sdktrace.Sampler) *world {
	t.Helper()
	w := &world{spans: tracetest.NewInMemoryExporter()}
	w.provider = sdktrace.NewTracerProvider(sdktrace.WithSyncer(w.spans), sdktrace.WithSampler(sampler))
	n, err := broker.Open(soon(t), t.TempDir(), broker.Options{Partitions: 1, TracerProvider: w.provider})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() }) // the directory goes too
	nc, err := n.Conn()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	newClient := func(tracer client.Tracer) *client.Client {
		c, err := client.New(nc, client.Options{Tracer: tracer})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	w.c, w.plain = newClient(oteltrace.New(w.provider, opts)), newClient(nil)
	return w
}

// await returns the spans of the given names, sorted, once they have arrived.
func (w *world) await(t *testing.T, names ...string) (found []tracetest.SpanStub) {
	t.Helper()
	testkit.Until(t, fmt.Sprint("spans ", names), func() bool {
		found = w.spans.GetSpans()
		return len(found) >= len(names)
	})
	slices.SortFunc(found, func(a, b tracetest.SpanStub) int { return strings.Compare(full(a), full(b)) })
	var got []string
	for _, s := range found {
		got = append(got, full(s))
	}
	if !slices.Equal(got, names) {
		t.Fatalf("spans %q, want %q", got, names)
	}
	w.spans.Reset()
	return found
}

func full(s tracetest.SpanStub) string { return s.Name + " " + s.SpanKind.String() }

// wantAttributes checks some of a span's attributes, given as "key=value".
func wantAttributes(t *testing.T, s tracetest.SpanStub, want ...string) {
	t.Helper()
	var got []string
	for _, a := range s.Attributes {
		got = append(got, fmt.Sprintf("%s=%s", a.Key, a.Value.String()))
	}
	for _, w := range want {
		if !slices.Contains(got, w) {
			t.Errorf("%s has %q, and not %s", full(s), got, w)
		}
	}
}

func (w *world) mustAppend(t *testing.T, ctx context.Context, req client.Request) client.Receipt {
	t.Helper()
	r, err := w.c.Append(ctx, &req)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

const (
	process  = "process cantus consumer"
	producer = "append cantus producer"
	server   = "append cantus server"
)

// A trace goes from a request through the client's append and the node to the
// handlers, and what these append goes on with it.
func TestATraceJoinsUp(t *testing.T) {
	w := newWorld(t, oteltrace.Options{}, sdktrace.ParentBased(sdktrace.AlwaysSample()))
	ctx, root := w.provider.Tracer("test").Start(soon(t), "request")
	w.mustAppend(t, ctx, client.Request{Payload: []byte("x"), Kind: "pay", ID: "id-1", WriteLocks: []string{"a"}})
	following, stop := context.WithCancel(soon(t))
	_ = w.c.Follow(following, client.Positions{0: 0}, func(ctx context.Context, tx *client.Transaction) error {
		if tx.Kind == "pay" {
			w.mustAppend(t, ctx, client.Request{Payload: []byte("y"), Kind: "paid"})
		} else {
			stop()
		}
		return nil
	}, client.FollowOptions{})
	root.End()
	all := w.await(t, producer, producer, server, server, process, process, "request internal")
	byParent := map[trace.SpanID][]string{}
	for _, s := range all {
		if s.SpanContext.TraceID() != root.SpanContext().TraceID() {
			t.Errorf("%s is in another trace", full(s))
		}
		byParent[s.Parent.SpanID()] = append(byParent[s.Parent.SpanID()], full(s))
	}
	below := func(of trace.SpanID, name string) trace.SpanID {
		for _, s := range all {
			if s.Parent.SpanID() == of && full(s) == name {
				return s.SpanContext.SpanID()
			}
		}
		t.Fatalf("no %s below %v; spans by parent: %v", name, of, byParent)
		return of
	}
	first := below(root.SpanContext().SpanID(), producer)
	below(first, server)
	second := below(below(first, process), producer)
	below(second, server)
	below(second, process)
	for _, s := range all {
		if full(s) == process && (len(s.Links) != 1 || s.Links[0].SpanContext.SpanID() != s.Parent.SpanID()) {
			t.Errorf("links %v", s.Links)
		}
		if full(s) == producer && s.Parent.SpanID() == root.SpanContext().SpanID() {
			wantAttributes(t, s, "messaging.system=cantus", "messaging.operation.name=append", "messaging.operation.type=send", "messaging.destination.name=cantus",
				"messaging.destination.partition.id=0", "messaging.message.id=id-1", "cantus.kind=pay", "cantus.txid=1", "cantus.duplicate=false")
		}
	}
}

// A conflict is an error of the client's span and of the node's, with the lock
// and the transaction.
func TestAConflictIsAnError(t *testing.T) {
	w := newWorld(t, oteltrace.Options{}, sdktrace.AlwaysSample())
	w.mustAppend(t, soon(t), client.Request{WriteLocks: []string{"a"}})
	w.await(t, producer, server)
	if _, err := w.c.Append(soon(t), &client.Request{WriteLocks: []string{"a"}}); !errors.Is(err, client.ErrConflict) {
		t.Fatal(err)
	}
	for _, s := range w.await(t, producer, server) {
		if s.Status.Code != codes.Error || !strings.Contains(s.Status.Description, "was recorded by txid 1") {
			t.Errorf("status %v", s.Status)
		}
		wantAttributes(t, s, "error.type=conflict", "cantus.conflict.lock=a", "cantus.conflict.txid=1")
	}
}

// A call with several transactions is linked to each of them, and below none. A
// handler's error is the span's.
func TestABatchIsLinked(t *testing.T) {
	w := newWorld(t, oteltrace.Options{}, sdktrace.AlwaysSample())
	for range 3 {
		w.mustAppend(t, soon(t), client.Request{})
	}
	appends := w.await(t, producer, producer, producer, server, server, server)
	ctx, stop := context.WithCancel(soon(t))
	f, err := w.c.NewBatchFollower(client.Positions{0: 0}, func(_ context.Context, txs []*client.Transaction) error {
		stop()
		return errors.New("no database")
	}, client.FollowOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Run(ctx)
	s := w.await(t, process)[0]
	if s.Parent.IsValid() || len(s.Links) != 3 {
		t.Fatalf("parent %v, %d links", s.Parent.SpanID(), len(s.Links))
	}
	for _, l := range s.Links {
		if !slices.ContainsFunc(appends[:3], func(a tracetest.SpanStub) bool { return a.SpanContext.SpanID() == l.SpanContext.SpanID() }) {
			t.Errorf("a link to %v", l.SpanContext.SpanID())
		}
	}
	wantAttributes(t, s, "messaging.batch.message_count=3", "cantus.first_txid=1", "cantus.last_txid=3", "messaging.operation.type=process", "error.type=_OTHER")
	if s.Status.Description != "no database" {
		t.Errorf("status %v", s.Status)
	}
}

// The members of a group are named by it.
func TestAGroupIsNamed(t *testing.T) {
	w := newWorld(t, oteltrace.Options{}, sdktrace.AlwaysSample())
	w.mustAppend(t, soon(t), client.Request{})
	w.await(t, producer, server)
	ctx, stop := context.WithCancel(soon(t))
	_ = group.Join(ctx, w.c, "billing", func(context.Context, *client.Transaction) error {
		stop()
		return nil
	}, group.Options{})
	wantAttributes(t, w.await(t, process)[0], "messaging.consumer.group.name=billing", "cantus.txid=1")
}

// What is not sampled makes no span anywhere, and is marked so in the log.
func TestWhatIsNotSampled(t *testing.T) {
	w := newWorld(t, oteltrace.Options{}, sdktrace.ParentBased(sdktrace.NeverSample()))
	w.mustAppend(t, soon(t), client.Request{})
	tx, err := w.plain.Get(soon(t), 0, 1)
	if err != nil || !strings.HasSuffix(tx.Header.Get("traceparent"), "-00") {
		t.Errorf("headers %v, %v", tx, err)
	}
	ctx, stop := context.WithCancel(soon(t))
	_ = w.c.Follow(ctx, client.Positions{0: 0}, func(ctx context.Context, _ *client.Transaction) error {
		if !trace.SpanContextFromContext(ctx).IsValid() {
			t.Error("the handler's context has no trace")
		}
		stop()
		return nil
	}, client.FollowOptions{})
	if all := w.spans.GetSpans(); len(all) != 0 {
		t.Errorf("%d spans", len(all))
	}
}

// A traceparent that the application has set stays, in any letter case and even
// if it is malformed.
func TestAnOwnTraceparentStays(t *testing.T) {
	w := newWorld(t, oteltrace.Options{}, sdktrace.AlwaysSample())
	const own = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
	for i, tt := range []struct {
		key, value string
		links      int
	}{{"traceparent", own, 1}, {"TraceParent", own, 1}, {"traceparent", "junk", 0}} {
		w.mustAppend(t, soon(t), client.Request{Header: nats.Header{tt.key: {tt.value}}})
		s := w.await(t, "append cantus client")[0]
		if len(s.Links) != tt.links || tt.links > 0 && s.Links[0].SpanContext.SpanID().String() != own[36:52] {
			t.Errorf("%s %s: links %v", tt.key, tt.value, s.Links)
		}
		tx, err := w.plain.Get(soon(t), 0, uint64(i+1))
		if err != nil || len(tx.Header) != 1 || tx.Header[tt.key][0] != tt.value {
			t.Errorf("%s %s: stored %v, %v", tt.key, tt.value, tx.Header, err)
		}
	}
}

// What is older than MaxAge is handled without a span.
func TestOldTransactionsAreNotTraced(t *testing.T) {
	w := newWorld(t, oteltrace.Options{MaxAge: time.Nanosecond}, sdktrace.AlwaysSample())
	w.mustAppend(t, soon(t), client.Request{})
	w.await(t, producer, server)
	ctx, stop := context.WithCancel(soon(t))
	_ = w.c.Follow(ctx, client.Positions{0: 0}, func(context.Context, *client.Transaction) error {
		stop()
		return nil
	}, client.FollowOptions{})
	if all := w.spans.GetSpans(); len(all) != 0 {
		t.Errorf("%d spans", len(all))
	}
}
