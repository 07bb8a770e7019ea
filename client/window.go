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
	mu      sync.Mutex
	used    int
	heard   time.Time // an answer to any read
	waiting []waiter
	given   map[*stream]int // places that were not taken yet
}

type waiter struct {
	s    *stream
	cost int
}

// enter takes room for a read, or has the stream wait for it. cost is what was
// taken, which may be more or less than what is wanted now.
func (w *window) enter(s *stream, want int) (cost int, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if cost, ok := w.given[s]; ok {
		delete(w.given, s)
		return cost, true
	}
	if slices.ContainsFunc(w.waiting, func(o waiter) bool { return o.s == s }) {
		return 0, false
	}
	if len(w.waiting) == 0 && w.fits(want) {
		w.used += want
		return want, true
	}
	w.waiting = append(w.waiting, waiter{s, want})
	return 0, false
}

// fits is called with mu held. One read always does.
func (w *window) fits(cost int) bool { return w.used == 0 || w.used+cost <= windowBytes }

// granted reports whether the stream has a place that it has not taken.
func (w *window) granted(s *stream) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.given[s]
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
	for len(w.waiting) > 0 && w.fits(w.waiting[0].cost) {
		next := w.waiting[0]
		w.waiting = w.waiting[1:]
		w.used += next.cost
		if w.given == nil {
			w.given = map[*stream]int{}
		}
		w.given[next.s] = next.cost
		signal(next.s.kick)
	}
}

// leave takes a stream out of those that wait.
func (w *window) leave(s *stream) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting = slices.DeleteFunc(w.waiting, func(o waiter) bool { return o.s == s })
	if cost, ok := w.given[s]; ok {
		delete(w.given, s)
		w.releaseLocked(cost)
	}
}

// hear notes that a read was answered.
func (w *window) hear(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.heard = now
}

// silent returns when a read that was last heard of at heard counts as lost. While
// other reads are answered the line may just be slow.
func (w *window) silent(heard time.Time, timeout time.Duration) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	if last := heard.Add(quietFactor * timeout); w.heard.Add(timeout).After(last) {
		return last
	}
	if w.heard.After(heard) {
		return w.heard.Add(timeout)
	}
	return heard.Add(timeout)
}
