package loglimit

import (
	"sync"
	"time"
)

// Interval allows one event every ten seconds, and counts the others.
type Interval struct {
	mu       sync.Mutex
	last     time.Time // of the last event that was allowed
	withheld int       // events since
}

// interval is the minimum time between two events that an Interval allows.
const interval = 10 * time.Second

// Allow reports whether an event is allowed. If so, it also returns the number
// of events that were not allowed since the last one.
func (l *Interval) Allow(now time.Time) (ok bool, withheld int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.last.IsZero() && now.Sub(l.last) < interval {
		l.withheld++
		return false, 0
	}
	withheld, l.withheld, l.last = l.withheld, 0, now
	return true, withheld
}

// Repeats allows each text once a minute.
type Repeats struct {
	mu  sync.Mutex
	all map[string]*repeat
}

type repeat struct {
	last     time.Time // when the text was last allowed
	withheld int       // how often it was not, since
}

const (
	// repeatInterval is the minimum time between two uses of a text that are
	// allowed.
	repeatInterval = time.Minute
	// maxRepeats bounds the texts that are kept. Beyond it all are discarded.
	maxRepeats = 256
)

// Allow reports whether a text is allowed. If so, it also returns how often the
// text was not allowed since the last time.
func (r *Repeats) Allow(text string, now time.Time) (ok bool, withheld int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if q := r.all[text]; q != nil {
		if now.Sub(q.last) < repeatInterval {
			q.withheld++
			return false, 0
		}
		withheld, q.withheld, q.last = q.withheld, 0, now
		return true, withheld
	}
	if r.all == nil || len(r.all) >= maxRepeats {
		r.all = map[string]*repeat{}
	}
	r.all[text] = &repeat{last: now}
	return true, 0
}

// Once records which keys were used.
type Once struct {
	mu   sync.Mutex
	seen map[string]bool
}

// maxOnce bounds the keys that are kept. Beyond it all are discarded, so a key
// may be the first again.
const maxOnce = 256

// First reports whether it is called for a key for the first time.
func (o *Once) First(key string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.seen[key] {
		return false
	}
	if o.seen == nil || len(o.seen) >= maxOnce {
		o.seen = map[string]bool{}
	}
	o.seen[key] = true
	return true
}
