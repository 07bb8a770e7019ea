package client_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/client"
)

// tracer is a Tracer that notes what it is asked for.
type tracer struct {
	mu     sync.Mutex
	noted  []string
	header nats.Header // of appends
}

type handling struct{}

func (r *tracer) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.noted = append(r.noted, fmt.Sprintf(format, args...))
}

// take returns what was noted since the last call.
func (r *tracer) take() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := strings.Join(r.noted, "; ")
	r.noted = nil
	return all
}

func (r *tracer) Append(_ context.Context, prefix string, req *client.Request) (nats.Header, func(client.Receipt, error)) {
	r.note("append %s %s", prefix, req.Payload)
	return r.header, func(receipt client.Receipt, err error) {
		var refused *client.RefusedError
		switch {
		case errors.As(err, &refused):
			r.note("refused %s", refused.Reason)
		case err != nil:
			r.note("failed")
		default:
			r.note("committed %d", receipt.Txid)
		}
	}
}

func (r *tracer) Handle(ctx context.Context, h client.Handling) (context.Context, func(error)) {
	r.note("handle %s %s %d from %d", h.Prefix, h.Group, len(h.Transactions), h.Transactions[0].Txid)
	return context.WithValue(ctx, handling{}, "its context"), func(err error) { r.note("handled %v", err) }
}

// A Tracer sees each append with its outcome, and its headers go with the
// transaction, after the application's own.
func TestATracerSeesAppends(t *testing.T) {
	n, plain := newLog(t)
	r := &tracer{header: nats.Header{"traceparent": {"a context"}}}
	c := newClient(t, connect(t, n), client.Options{Tracer: r})
	ctx := soon(t)
	want := func(step, want string) {
		t.Helper()
		if got := r.take(); got != want {
			t.Errorf("%s: %s, want %s", step, got, want)
		}
	}
	mustAppend(t, c, client.Request{Payload: []byte("1"), WriteLocks: []string{"a"}, Header: nats.Header{"X": {"y"}}})
	want("a commit", "append cantus 1; committed 1")
	mustAppend(t, c, client.Request{Payload: []byte("2"), Header: nats.Header{"traceparent": {"the application's"}}})
	want("a commit with a header of its own", "append cantus 2; committed 2")
	_, err := c.Append(ctx, &client.Request{Payload: []byte("3"), WriteLocks: []string{"a"}})
	wantErr(t, err, client.ErrConflict)
	want("a conflict", "append cantus 3; refused conflict")
	_, err = c.Append(ctx, &client.Request{Payload: []byte("4"), Partition: 77})
	wantErr(t, err, client.ErrNoPartition)
	want("no such partition", "append cantus 4; failed")
	_, err = c.Append(ctx, &client.Request{Payload: []byte("5"), Kind: "a.b"})
	wantErr(t, err, client.ErrBadRequest)
	want("a malformed request", "append cantus 5; refused bad_request")
	r.header = nats.Header{"bad": {"line\r\nCantus-Kind: x"}}
	_, err = c.Append(ctx, &client.Request{Payload: []byte("6")})
	wantErr(t, err, client.ErrBadRequest)
	want("a malformed header", "append cantus 6; refused bad_request")
	stored := readAll(t, plain, 0)
	if got := stored[0].Header; got.Get("traceparent") != "a context" || got.Get("X") != "y" {
		t.Errorf("headers %v", got)
	}
	if got := stored[1].Header["traceparent"]; len(got) != 1 || got[0] != "the application's" {
		t.Errorf("headers %v", got)
	}
}

// A Tracer sees each transaction of an atomic batch.
func TestATracerSeesAtomicBatches(t *testing.T) {
	n, plain := newLog(t)
	r := &tracer{header: nats.Header{"traceparent": {"a context"}}}
	c := newClient(t, connect(t, n), client.Options{Tracer: r})
	mustAppendAtomic(t, c, booking(3))
	if got, want := r.take(), "append cantus 0; append cantus 1; append cantus 2; committed 1; committed 2; committed 3"; got != want {
		t.Errorf("a commit: %s, want %s", got, want)
	}
	for _, tx := range readAll(t, plain, 0) {
		if tx.Header.Get("traceparent") != "a context" {
			t.Errorf("%d has the headers %v", tx.Txid, tx.Header)
		}
	}
	b := booking(2)
	b.Transactions[1].WriteLock("booked")
	_, err := c.AppendAtomic(soon(t), b)
	wantErr(t, err, client.ErrConflict)
	if got, want := r.take(), "append cantus 0; append cantus 1; refused conflict; refused conflict"; got != want {
		t.Errorf("a conflict: %s, want %s", got, want)
	}
	b.Transactions[1] = nil
	_, err = c.AppendAtomic(soon(t), b)
	wantErr(t, err, client.ErrBadRequest)
	if got, want := r.take(), "append cantus 0; refused bad_request"; got != want {
		t.Errorf("a malformed batch: %s, want %s", got, want)
	}
}

// A Tracer sees each call of a handler, retries included, and gives it its
// context.
func TestATracerSeesHandlers(t *testing.T) {
	n, plain := newLog(t)
	mustAppend(t, plain, client.Request{Payload: []byte("1")})
	r := &tracer{}
	c := newClient(t, connect(t, n), client.Options{Tracer: r})
	ctx, stop := context.WithCancel(soon(t))
	calls := 0
	_ = c.Follow(ctx, client.Positions{0: 0}, func(ctx context.Context, _ *client.Transaction) error {
		if ctx.Value(handling{}) != "its context" {
			t.Error("the handler has not the tracer's context")
		}
		if calls++; calls == 1 {
			return errors.New("not yet")
		}
		stop()
		return nil
	}, client.FollowOptions{Group: "billing", OnError: func(*client.Transaction, error, int) client.Decision { return client.DecideRetry }})
	if got, want := r.take(), "handle cantus billing 1 from 1; handled not yet; handle cantus billing 1 from 1; handled <nil>"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
