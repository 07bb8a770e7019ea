package loglimit

import (
	"maps"
	"slices"
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

// Repeats allows each text once a minute, and less and less often while it
// keeps coming: the wait doubles up to a quarter of an hour.
type Repeats struct {
	mu  sync.Mutex
	all map[string]*repeat
}

type repeat struct {
	last     time.Time     // when the text was last allowed
	seen     time.Time     // when it last came
	wait     time.Duration // after last
	withheld int           // how often it was not allowed, since
}

const (
	// repeatInterval is the minimum time between two uses of a text that are
	// allowed, at first and after as long without it; maxRepeatInterval is what
	// it grows to.
	repeatInterval    = time.Minute
	maxRepeatInterval = 15 * time.Minute
	// maxRepeats bounds the texts that are kept. Beyond it all are discarded.
	maxRepeats = 256
)

// Allow reports whether a text is allowed. If so, it also returns how often the
// text was not allowed since the last time.
func (r *Repeats) Allow(text string, now time.Time) (ok bool, withheld int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if q := r.all[text]; q != nil {
		paused := now.Sub(q.seen) >= repeatInterval
		q.seen = now
		switch {
		case paused:
			q.wait = repeatInterval
		case now.Sub(q.last) < q.wait:
			q.withheld++
			return false, 0
		default:
			q.wait = min(2*q.wait, maxRepeatInterval)
		}
		withheld, q.withheld, q.last = q.withheld, 0, now
		return true, withheld
	}
	if r.all == nil || len(r.all) >= maxRepeats {
		r.all = map[string]*repeat{}
	}
	r.all[text] = &repeat{last: now, seen: now, wait: repeatInterval}
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

// Burst logs the first of several events of a kind at once, and those that
// follow within a second in one more line.
type Burst struct {
	mu  sync.Mutex
	all map[string]*burst // by kind
}

type burst struct {
	numbers []int
	one     func()      // logs the only number
	many    func([]int) // logs several, in order
	timer   *time.Timer // flushes it
}

// burstTime is how long events are gathered.
const burstTime = time.Second

// Add adds an event of a kind. It is logged by one, which is called at once or
// later, or together with others by many. An event of another kind and the same
// number that came before it is logged before it.
func (b *Burst) Add(kind string, number int, one func(), many func([]int)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, other := range slices.Sorted(maps.Keys(b.all)) {
		if other != kind && slices.Contains(b.all[other].numbers, number) {
			b.all[other].log()
		}
	}
	q := b.all[kind]
	if q == nil {
		one()
		if b.all == nil {
			b.all = map[string]*burst{}
		}
		b.all[kind] = &burst{timer: time.AfterFunc(burstTime, func() { b.end(kind) })}
		return
	}
	q.numbers, q.one, q.many = append(q.numbers, number), one, many
}

func (b *Burst) end(kind string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.flush(kind)
}

// flush logs what was gathered of a kind. mu is held.
func (b *Burst) flush(kind string) {
	q := b.all[kind]
	if q == nil {
		return
	}
	q.timer.Stop()
	delete(b.all, kind)
	q.log()
}

// log logs what was gathered.
func (q *burst) log() {
	switch len(q.numbers) {
	case 0:
	case 1:
		q.one()
	default:
		slices.Sort(q.numbers)
		q.many(slices.Compact(q.numbers))
	}
	q.numbers = nil
}

// Flush logs what was gathered.
func (b *Burst) Flush() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, kind := range slices.Sorted(maps.Keys(b.all)) {
		b.flush(kind)
	}
}
