package client

import (
	"slices"
	"sync"
	"time"
)

const (
	// windowBytes limits the bytes that the reads of a client have requested
	// and not received, over all partitions. With more than a quarter of a NATS
	// server's usual max_pending (64 MiB), the node would have to wait; and on
	// a slow connection each read waits behind all others.
	windowBytes = 16 << 20
	// firstRead is the size of a stream's first read: many streams find that
	// they are up to date. The size doubles with each further read.
	firstRead = 64 << 10
	// quietFactor is the number of AttemptTimeouts that a read may be silent
	// while others are answered.
	quietFactor = 4
)

// window is the flow-control window that the reads of a client share. Streams
// that find it full wait in turn; each is woken when its read is granted.
type window struct {
	mu         sync.Mutex
	used       int
	lastAnswer time.Time // to any read
	waiters    []waiter
	grants     map[*stream]int // granted and not yet acquired
}

type waiter struct {
	s    *stream
	cost int
}

// acquire takes window space for a read, or queues the stream for it. cost is
// the space taken, which may differ from want if it was granted for an earlier
// want.
func (w *window) acquire(s *stream, want int) (cost int, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if cost, ok := w.grants[s]; ok {
		delete(w.grants, s)
		return cost, true
	}
	if slices.ContainsFunc(w.waiters, func(o waiter) bool { return o.s == s }) {
		return 0, false
	}
	if len(w.waiters) == 0 && w.fits(want) {
		w.used += want
		return want, true
	}
	w.waiters = append(w.waiters, waiter{s, want})
	return 0, false
}

// fits reports whether a read can start. One read always can. The caller holds
// mu.
func (w *window) fits(cost int) bool { return w.used == 0 || w.used+cost <= windowBytes }

// hasGrant reports whether the stream was granted space that it has not
// acquired.
func (w *window) hasGrant(s *stream) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.grants[s]
	return ok
}

// release returns the space of a read.
func (w *window) release(cost int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.releaseLocked(cost)
}

func (w *window) releaseLocked(cost int) {
	w.used -= cost
	for len(w.waiters) > 0 && w.fits(w.waiters[0].cost) {
		next := w.waiters[0]
		w.waiters = w.waiters[1:]
		w.used += next.cost
		if w.grants == nil {
			w.grants = map[*stream]int{}
		}
		w.grants[next.s] = next.cost
		signal(next.s.wake)
	}
}

// cancel removes a stream from the waiters and returns its grant.
func (w *window) cancel(s *stream) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiters = slices.DeleteFunc(w.waiters, func(o waiter) bool { return o.s == s })
	if cost, ok := w.grants[s]; ok {
		delete(w.grants, s)
		w.releaseLocked(cost)
	}
}

// noteAnswer notes that a read was answered.
func (w *window) noteAnswer(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lastAnswer = now
}

// lostAt returns when a read counts as lost whose last message came at heard.
// It is later while other reads are answered: the connection may just be slow.
func (w *window) lostAt(heard time.Time, timeout time.Duration) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	if last := heard.Add(quietFactor * timeout); w.lastAnswer.Add(timeout).After(last) {
		return last
	}
	if w.lastAnswer.After(heard) {
		return w.lastAnswer.Add(timeout)
	}
	return heard.Add(timeout)
}
