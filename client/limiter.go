package client

import (
	"context"
	"sync"
)

// room bounds what is in flight, in transactions and bytes. Waiters are let in
// in the order in which they came.
type limiter struct {
	mu        sync.Mutex
	freeCount int // free
	freeBytes int // free; negative while one larger than all is in
	maxCount  int
	maxBytes  int // bytes
	waiters   []*limiterWaiter
	idle      chan struct{} // not nil: nobody may enter any more; closed once nobody is in
	isIdle    bool          // idle is closed
}

type limiterWaiter struct {
	size    int
	granted chan struct{} // closed when let in
}

func newLimiter(count, bytes int) *limiter {
	return &limiter{freeCount: count, maxCount: count, freeBytes: bytes, maxBytes: bytes}
}

// taken returns how many transactions are in.
func (l *limiter) inUse() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.maxCount - l.freeCount
}

// drain refuses all that would enter from now on, and returns a channel that is
// closed once nobody is in or waits.
func (l *limiter) drain() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.idle == nil {
		l.idle = make(chan struct{})
	}
	l.grant()
	return l.idle
}

// fits reports whether size may enter; mu is held.
func (l *limiter) fits(size int) bool {
	return l.freeCount > 0 && (size <= l.freeBytes || l.freeBytes == l.maxBytes)
}

// enter takes room for one transaction and waits for it unless fail is set.
// Closing closed ends the wait with ErrClosed. After drain it returns ErrDraining.
func (l *limiter) acquire(ctx context.Context, size int, fail bool, closed <-chan struct{}) error {
	l.mu.Lock()
	if l.idle != nil {
		l.mu.Unlock()
		return ErrDraining
	}
	if len(l.waiters) == 0 && l.fits(size) {
		l.freeCount--
		l.freeBytes -= size
		l.mu.Unlock()
		return nil
	}
	if fail {
		l.mu.Unlock()
		return ErrFull
	}
	w := &limiterWaiter{size, make(chan struct{})}
	l.waiters = append(l.waiters, w)
	l.mu.Unlock()
	select {
	case <-w.granted:
		return nil
	case <-ctx.Done():
		return l.abandon(w, context.Cause(ctx))
	case <-closed:
		return l.abandon(w, ErrClosed)
	}
}

// giveUp takes w out of the line, or gives its room back if it was let in
// meanwhile.
func (l *limiter) abandon(w *limiterWaiter, err error) error {
	l.mu.Lock()
	for i, o := range l.waiters {
		if o == w {
			l.waiters = append(l.waiters[:i], l.waiters[i+1:]...)
			l.grant()
			l.mu.Unlock()
			return err
		}
	}
	l.mu.Unlock()
	l.release(1, w.size)
	return err
}

// leave gives the room of count transactions back.
func (l *limiter) release(count, bytes int) {
	l.mu.Lock()
	l.freeCount += count
	l.freeBytes += bytes
	l.grant()
	l.mu.Unlock()
}

// admit lets in the first waiters that fit, and notes when nobody is left after
// drain; mu is held.
func (l *limiter) grant() {
	for len(l.waiters) > 0 && l.fits(l.waiters[0].size) {
		w := l.waiters[0]
		l.waiters = l.waiters[1:]
		l.freeCount--
		l.freeBytes -= w.size
		close(w.granted)
	}
	// With nobody in, nobody waits: the first waiter fits.
	if l.idle != nil && !l.isIdle && l.freeCount == l.maxCount {
		l.isIdle = true
		close(l.idle)
	}
}
