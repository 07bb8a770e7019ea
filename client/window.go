package client

import (
	"slices"
	"sync"
	"time"
)

const (
	// windowBytes bounds what the reads of a client have asked for and not been
	// given, of all partitions together. Over a quarter of a NATS server's usual
	// max_pending (64 MiB) it would be the node that waits; and on a slow line
	// each read waits behind all others.
	windowBytes = 16 << 20
	// firstRead is how many bytes the first read of a stream asks for: many find
	// that they are level. Each further one asks for twice as many.
	firstRead = 64 << 10
	// quietFactor is how many AttemptTimeouts a read may be silent while others are
	// answered.
	quietFactor = 4
)

// window is the room that the reads of a client share. Streams that find none wait
// in turn; each is kicked when it has a place.
type window struct {
	mu         sync.Mutex
	used       int
	lastAnswer time.Time // an answer to any read
	waiters    []waiter
	grants     map[*stream]int // places that were not taken yet
}

type waiter struct {
	s    *stream
	cost int
}

// enter takes room for a read, or has the stream wait for it. cost is what was
// taken, which may be more or less than what is wanted now.
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

// fits is called with mu held. One read always does.
func (w *window) fits(cost int) bool { return w.used == 0 || w.used+cost <= windowBytes }

// granted reports whether the stream has a place that it has not taken.
func (w *window) hasGrant(s *stream) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.grants[s]
	return ok
}

// release gives the room of a read back.
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

// leave takes a stream out of those that wait.
func (w *window) cancel(s *stream) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiters = slices.DeleteFunc(w.waiters, func(o waiter) bool { return o.s == s })
	if cost, ok := w.grants[s]; ok {
		delete(w.grants, s)
		w.releaseLocked(cost)
	}
}

// hear notes that a read was answered.
func (w *window) noteAnswer(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lastAnswer = now
}

// silent returns when a read that was last heard of at heard counts as lost. While
// other reads are answered the line may just be slow.
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
