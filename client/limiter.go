package client

import (
	"context"
	"sync"
)

// limiter limits the transactions in flight, by number and by bytes. Waiters
// are served in order of arrival.
type limiter struct {
	mu        sync.Mutex
	freeCount int
	freeBytes int // negative while a transaction larger than maxBytes is in flight
	maxCount  int
	maxBytes  int
	waiters   []*limiterWaiter
	idle      chan struct{} // non-nil after drain; closed once nothing is in flight
	isIdle    bool          // idle is closed
}

type limiterWaiter struct {
	size    int
	granted chan struct{} // closed when acquired
}

func newLimiter(count, bytes int) *limiter {
	return &limiter{freeCount: count, maxCount: count, freeBytes: bytes, maxBytes: bytes}
}

// inUse returns the number of transactions in flight.
func (l *limiter) inUse() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.maxCount - l.freeCount
}

// drain makes later calls of acquire fail, and returns a channel that is closed
// once nothing is in flight and nobody waits.
func (l *limiter) drain() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.idle == nil {
		l.idle = make(chan struct{})
	}
	l.grant()
	return l.idle
}

// fits reports whether a transaction of size can be admitted now. The caller
// holds mu.
func (l *limiter) fits(size int) bool {
	return l.freeCount > 0 && (size <= l.freeBytes || l.freeBytes == l.maxBytes)
}

// acquire admits one transaction of size bytes. If a limit is reached it waits,
// or returns ErrFull if fail is set. Closing closed ends the wait with
// ErrClosed. After drain it returns ErrDraining.
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

// abandon removes w from the waiters, or releases what w acquired in the
// meantime, and returns err.
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

// release returns the capacity of count transactions.
func (l *limiter) release(count, bytes int) {
	l.mu.Lock()
	l.freeCount += count
	l.freeBytes += bytes
	l.grant()
	l.mu.Unlock()
}

// grant serves the first waiters that fit, and closes idle if drain was called
// and nothing is in flight. The caller holds mu.
func (l *limiter) grant() {
	for len(l.waiters) > 0 && l.fits(l.waiters[0].size) {
		w := l.waiters[0]
		l.waiters = l.waiters[1:]
		l.freeCount--
		l.freeBytes -= w.size
		close(w.granted)
	}
	// If nothing is in flight nobody waits, because the first waiter would fit.
	if l.idle != nil && !l.isIdle && l.freeCount == l.maxCount {
		l.isIdle = true
		close(l.idle)
	}
}
