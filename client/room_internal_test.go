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

// Those that wait when the room is drained are let in; those that come later
// are not.
func TestADrainedRoomLetsWaitersIn(t *testing.T) { synctest.Test(t, drainedRoomLetsWaitersIn) }

func drainedRoomLetsWaitersIn(t *testing.T) {
	r, ctx, never := newRoom(1, 10), t.Context(), make(chan struct{})
	if err := r.enter(ctx, 1, false, never); err != nil || r.taken() != 1 {
		t.Fatal(err, r.taken())
	}
	leaving, leave := context.WithCancel(ctx)
	entered, left := make(chan error), make(chan error)
	go func() { entered <- r.enter(ctx, 1, false, never) }()
	synctest.Wait() // it waits
	go func() { left <- r.enter(leaving, 1, false, never) }()
	synctest.Wait()

	idle := r.drain()
	if err := r.enter(ctx, 1, false, never); !errors.Is(err, ErrDraining) {
		t.Errorf("entered a drained room: %v", err)
	}
	r.leave(1, 1)
	if err := <-entered; err != nil {
		t.Errorf("a waiter: %v", err)
	}
	if closed(idle) || closed(r.drain()) || r.taken() != 1 {
		t.Errorf("idle with %d in", r.taken())
	}
	r.leave(1, 1) // lets the second in, unless it has left
	leave()
	if err := <-left; err == nil {
		r.leave(1, 1)
	}
	if !closed(idle) || !closed(r.drain()) || r.taken() != 0 {
		t.Errorf("not idle with %d in", r.taken())
	}
}

// A waiter that gives up may be the last that is waited for.
func TestADrainedRoomIsIdleWhenItsLastWaiterLeaves(t *testing.T) {
	synctest.Test(t, drainedRoomIsIdleWhenItsLastWaiterLeaves)
}

func drainedRoomIsIdleWhenItsLastWaiterLeaves(t *testing.T) {
	r, never := newRoom(1, 10), make(chan struct{})
	if err := r.enter(t.Context(), 1, false, never); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	go func() { left <- r.enter(ctx, 10, false, never) }()
	synctest.Wait() // it waits
	idle := r.drain()
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) || closed(idle) {
		t.Errorf("%v, idle: %v", err, closed(idle))
	}
	r.leave(1, 1)
	if !closed(idle) {
		t.Error("not idle with nobody in")
	}
}

func TestAnEmptyRoomIsIdleAtOnce(t *testing.T) {
	if r := newRoom(1, 1); !closed(r.drain()) {
		t.Error("not idle")
	}
}
