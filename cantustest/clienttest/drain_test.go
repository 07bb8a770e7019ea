package client_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/cantuslog/cantus/cantustest"
	"github.com/cantuslog/cantus/client"
)

// draining is a client whose appends the log delays until release is called,
// and a call of Drain.
type draining struct {
	log     *cantustest.Log
	c       *client.Client
	release func()
	futures []*client.Future // accepted before the drain
	done    chan error       // of Drain
}

func drain(t *testing.T, ctx context.Context) *draining {
	t.Helper()
	d := &draining{log: cantustest.New(t, cantustest.Options{}), done: make(chan error, 1)}
	d.c = d.log.NewClient(t, client.Options{})
	held := make(chan struct{})
	d.release = func() { close(held) }
	d.log.FailNext(1, cantustest.Append, cantustest.Hold(held))
	d.append(t, nil)
	if err := d.log.Await(soon(t), cantustest.Append, 1); err != nil {
		t.Fatal(err)
	}
	d.append(t, nil)
	if n := d.c.Pending(); n != 2 {
		t.Fatalf("%d are pending", n)
	}
	go func() { d.done <- d.c.Drain(ctx) }()
	await(t, "a refused append", func() bool { return d.append(t, client.ErrDraining) })
	return d
}

// append appends, and reports whether that failed with refusal.
func (d *draining) append(t *testing.T, refusal error) bool {
	t.Helper()
	f, err := d.c.AppendAsync(soon(t), &client.Request{Payload: fmt.Append(nil, len(d.futures))})
	if err == nil {
		d.futures = append(d.futures, f)
		return false
	}
	if refusal == nil || !errors.Is(err, refusal) {
		t.Fatal(err)
	}
	return true
}

// check checks that everything accepted is in the log and has a receipt.
func (d *draining) check(t *testing.T) {
	t.Helper()
	for i, f := range d.futures {
		select {
		case <-f.Done():
		default:
			t.Fatalf("transaction %d has no outcome after Drain", i)
		}
		if r, err := f.Wait(soon(t)); err != nil || r.Txid == 0 {
			t.Fatalf("transaction %d: %+v, %v", i, r, err)
		}
	}
	if n := d.c.Pending(); n != 0 {
		t.Errorf("%d are pending after Drain", n)
	}
	all, err := d.log.Transactions(soon(t), 0)
	if err != nil || len(all) != len(d.futures) {
		t.Errorf("%d of %d are in the log, %v", len(all), len(d.futures), err)
	}
}

func TestDrainWaitsForOutcomesAndCloses(t *testing.T) {
	d := drain(t, soon(t))
	if _, err := d.c.HighWaterMark(soon(t), 0); err != nil {
		t.Errorf("a read while draining: %v", err)
	}
	select {
	case err := <-d.done:
		t.Fatalf("drained with %d in flight: %v", d.c.Pending(), err)
	default:
	}
	d.release()
	if err := <-d.done; err != nil {
		t.Fatal(err)
	}
	d.check(t)
	if _, err := d.c.AppendAsync(soon(t), &client.Request{}); !errors.Is(err, client.ErrClosed) {
		t.Errorf("an append after Drain: %v", err)
	}
	if err := d.c.Drain(soon(t)); err != nil {
		t.Errorf("a second Drain: %v", err)
	}
}

func TestDrainEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(soon(t))
	d := drain(t, ctx)
	cancel()
	if err := <-d.done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if !d.append(t, client.ErrDraining) {
		t.Error("accepted an append after a Drain that was given up")
	}
	go func() { d.done <- d.c.Drain(soon(t)) }()
	d.release()
	if err := <-d.done; err != nil {
		t.Fatal(err)
	}
	d.check(t)
}

func TestCloseEndsADrain(t *testing.T) {
	d := drain(t, soon(t))
	if err := d.c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-d.done; !errors.Is(err, client.ErrClosed) {
		t.Errorf("Drain: %v", err)
	}
	var unknown *client.UnknownOutcomeError
	if _, err := d.futures[0].Wait(soon(t)); !errors.As(err, &unknown) {
		t.Errorf("what was sent: %v", err)
	}
	d.release()
}

func TestDrainOfAnIdleClientCloses(t *testing.T) {
	_, c := newLog(t)
	if err := c.Drain(soon(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Append(soon(t), &client.Request{}); !errors.Is(err, client.ErrClosed) {
		t.Errorf("an append after Drain: %v", err)
	}
}
