package loglimit

import (
	"sync"
	"time"
)

// Interval lets through one thing in a while, and counts the others.
type Interval struct {
	mu   sync.Mutex
	last time.Time
	more int
}

// interval is how often something that strangers can bring about is logged.
const interval = 10 * time.Second

// Allow reports whether it is time again, and how many were not let through since.
func (l *Interval) Allow(now time.Time) (ok bool, withheld int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.last.IsZero() && now.Sub(l.last) < interval {
		l.more++
		return false, 0
	}
	withheld, l.more, l.last = l.more, 0, now
	return true, withheld
}

// Repeats lets each text through once in a while.
type Repeats struct {
	mu  sync.Mutex
	all map[string]*repeat
}

type repeat struct {
	last time.Time
	more int
}

const (
	// repeatInterval is how often the same text is logged.
	repeatInterval = time.Minute
	// maxRepeats bounds the texts that are remembered.
	maxRepeats = 256
)

// Allow reports whether it is time for a text again, and how often it was not let
// through since.
func (r *Repeats) Allow(text string, now time.Time) (ok bool, withheld int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if q := r.all[text]; q != nil {
		if now.Sub(q.last) < repeatInterval {
			q.more++
			return false, 0
		}
		withheld, q.more, q.last = q.more, 0, now
		return true, withheld
	}
	if r.all == nil || len(r.all) >= maxRepeats {
		r.all = map[string]*repeat{}
	}
	r.all[text] = &repeat{last: now}
	return true, 0
}

// Once remembers what was complained of. When there is too much it forgets.
type Once struct {
	mu   sync.Mutex
	said map[string]bool
}

// maxOnce bounds what is remembered.
const maxOnce = 256

// First reports whether it is asked for key the first time.
func (o *Once) First(key string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.said[key] {
		return false
	}
	if o.said == nil || len(o.said) >= maxOnce {
		o.said = map[string]bool{}
	}
	o.said[key] = true
	return true
}
