package client

import (
	"context"
	"sync"
)

// room bounds what is in flight, in transactions and bytes. Waiters are let in
// in the order in which they came.
type room struct {
	mu       sync.Mutex
	count    int // free
	bytes    int // free; negative while one larger than all is in
	allCount int
	all      int // bytes
	waiting  []*roomWaiter
	idle     chan struct{} // not nil: nobody may enter any more; closed once nobody is in
	isIdle   bool          // idle is closed
}

type roomWaiter struct {
	size int
	in   chan struct{} // closed when let in
}

func newRoom(count, bytes int) *room {
	return &room{count: count, allCount: count, bytes: bytes, all: bytes}
}

// taken returns how many transactions are in.
func (r *room) taken() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.allCount - r.count
}

// drain refuses all that would enter from now on, and returns a channel that is
// closed once nobody is in or waits.
func (r *room) drain() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.idle == nil {
		r.idle = make(chan struct{})
	}
	r.admit()
	return r.idle
}

// fits reports whether size may enter; mu is held.
func (r *room) fits(size int) bool {
	return r.count > 0 && (size <= r.bytes || r.bytes == r.all)
}

// enter takes room for one transaction and waits for it unless fail is set.
// Closing closed ends the wait with ErrClosed. After drain it returns ErrDraining.
func (r *room) enter(ctx context.Context, size int, fail bool, closed <-chan struct{}) error {
	r.mu.Lock()
	if r.idle != nil {
		r.mu.Unlock()
		return ErrDraining
	}
	if len(r.waiting) == 0 && r.fits(size) {
		r.count--
		r.bytes -= size
		r.mu.Unlock()
		return nil
	}
	if fail {
		r.mu.Unlock()
		return ErrFull
	}
	w := &roomWaiter{size, make(chan struct{})}
	r.waiting = append(r.waiting, w)
	r.mu.Unlock()
	select {
	case <-w.in:
		return nil
	case <-ctx.Done():
		return r.giveUp(w, context.Cause(ctx))
	case <-closed:
		return r.giveUp(w, ErrClosed)
	}
}

// giveUp takes w out of the line, or gives its room back if it was let in
// meanwhile.
func (r *room) giveUp(w *roomWaiter, err error) error {
	r.mu.Lock()
	for i, o := range r.waiting {
		if o == w {
			r.waiting = append(r.waiting[:i], r.waiting[i+1:]...)
			r.admit()
			r.mu.Unlock()
			return err
		}
	}
	r.mu.Unlock()
	r.leave(1, w.size)
	return err
}

// leave gives the room of count transactions back.
func (r *room) leave(count, bytes int) {
	r.mu.Lock()
	r.count += count
	r.bytes += bytes
	r.admit()
	r.mu.Unlock()
}

// admit lets in the first waiters that fit, and notes when nobody is left after
// drain; mu is held.
func (r *room) admit() {
	for len(r.waiting) > 0 && r.fits(r.waiting[0].size) {
		w := r.waiting[0]
		r.waiting = r.waiting[1:]
		r.count--
		r.bytes -= w.size
		close(w.in)
	}
	// With nobody in, nobody waits: the first waiter fits.
	if r.idle != nil && !r.isIdle && r.count == r.allCount {
		r.isIdle = true
		close(r.idle)
	}
}
