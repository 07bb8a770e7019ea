package client

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Calls of acquire that wait when the limiter is drained succeed; later ones do
// not.
func TestADrainedLimiterServesWaiters(t *testing.T) { synctest.Test(t, drainedLimiterServesWaiters) }

func drainedLimiterServesWaiters(t *testing.T) {
	l, ctx, never := newLimiter(1, 10), t.Context(), make(chan struct{})
	if err := l.acquire(ctx, 1, false, never); err != nil || l.inUse() != 1 {
		t.Fatal(err, l.inUse())
	}
	leaving, leave := context.WithCancel(ctx)
	acquired, left := make(chan error), make(chan error)
	go func() { acquired <- l.acquire(ctx, 1, false, never) }()
	synctest.Wait() // it waits
	go func() { left <- l.acquire(leaving, 1, false, never) }()
	synctest.Wait()

	idle := l.drain()
	if err := l.acquire(ctx, 1, false, never); !errors.Is(err, ErrDraining) {
		t.Errorf("acquired from a drained limiter: %v", err)
	}
	l.release(1, 1)
	if err := <-acquired; err != nil {
		t.Errorf("a waiter: %v", err)
	}
	if closed(idle) || closed(l.drain()) || l.inUse() != 1 {
		t.Errorf("idle with %d in", l.inUse())
	}
	l.release(1, 1) // serves the second waiter, unless it has given up
	leave()
	if err := <-left; err == nil {
		l.release(1, 1)
	}
	if !closed(idle) || !closed(l.drain()) || l.inUse() != 0 {
		t.Errorf("not idle with %d in", l.inUse())
	}
}

// A waiter that gives up may be the last one.
func TestADrainedLimiterIsIdleWhenItsLastWaiterLeaves(t *testing.T) {
	synctest.Test(t, drainedLimiterIsIdleWhenItsLastWaiterLeaves)
}

func drainedLimiterIsIdleWhenItsLastWaiterLeaves(t *testing.T) {
	l, never := newLimiter(1, 10), make(chan struct{})
	if err := l.acquire(t.Context(), 1, false, never); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	go func() { left <- l.acquire(ctx, 10, false, never) }()
	synctest.Wait() // it waits
	idle := l.drain()
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) || closed(idle) {
		t.Errorf("%v, idle: %v", err, closed(idle))
	}
	l.release(1, 1)
	if !closed(idle) {
		t.Error("not idle with nothing in flight")
	}
}

func TestAnUnusedLimiterIsIdleAtOnce(t *testing.T) {
	if l := newLimiter(1, 1); !closed(l.drain()) {
		t.Error("not idle")
	}
}
