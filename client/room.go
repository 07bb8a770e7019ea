package client

import (
	"context"
	"sync"
)

// room bounds what is in flight, in transactions and bytes. Who waits is let
// in in turn.
type room struct {
	mu      sync.Mutex
	count   int // free
	bytes   int // free; negative while one larger than all is in
	all     int
	waiting []*roomWaiter
}

type roomWaiter struct {
	size int
	in   chan struct{} // closed when let in
}

func newRoom(count, bytes int) *room { return &room{count: count, bytes: bytes, all: bytes} }

// fits tells whether size may enter; mu is held.
func (r *room) fits(size int) bool {
	return r.count > 0 && (size <= r.bytes || r.bytes == r.all)
}

// enter takes room for one transaction and waits for it unless fail is set.
// Closing closed ends the wait with ErrClosed.
func (r *room) enter(ctx context.Context, size int, fail bool, closed <-chan struct{}) error {
	r.mu.Lock()
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

// admit lets in who fits, in turn; mu is held.
func (r *room) admit() {
	for len(r.waiting) > 0 && r.fits(r.waiting[0].size) {
		w := r.waiting[0]
		r.waiting = r.waiting[1:]
		r.count--
		r.bytes -= w.size
		close(w.in)
	}
}
