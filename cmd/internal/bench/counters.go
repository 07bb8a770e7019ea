package bench

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// The range of latencies: those that are shorter or longer count as the nearest
// end.
const (
	shortest = time.Microsecond
	longest  = 5 * time.Minute
)

// latencies is a histogram of durations with three significant digits. It is
// not safe for concurrent use.
type latencies struct {
	h *hdrhistogram.Histogram
}

func newLatencies() *latencies {
	return &latencies{hdrhistogram.New(int64(shortest), int64(longest), 3)}
}

func (l *latencies) record(d time.Duration) {
	// The error is for values out of range, and the value is within it.
	_ = l.h.RecordValue(int64(min(max(d, shortest), longest)))
}

func (l *latencies) merge(from *latencies) { l.h.Merge(from.h) }

// quantile returns the latency that a share of q percent does not exceed; 0 if
// nothing was recorded.
func (l *latencies) quantile(q float64) time.Duration {
	if l.h.TotalCount() == 0 {
		return 0
	}
	return time.Duration(l.h.ValueAtQuantile(q))
}

// max returns the longest latency; 0 if nothing was recorded.
func (l *latencies) max() time.Duration { return l.quantile(100) }

func (l *latencies) count() int64 { return l.h.TotalCount() }

// op is a kind of request with latencies of its own.
type op uint8

const (
	mainOp     op = iota // the workload's main request
	lookupOp             // a lookup between appends
	deliveryOp           // from when an append was sent, or due, to when a reader had it
	afterOp              // from when an append's answer arrived to then, 0 if the reader was first
	ops
)

// tally holds the latencies of one or more workers: with thousands of
// connections, a set for each would take gigabytes.
type tally struct {
	mu      sync.Mutex
	latency [ops]*latencies // nil where nothing was recorded
}

func (t *tally) record(o op, d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.latency[o] == nil {
		t.latency[o] = newLatencies()
	}
	t.latency[o].record(d)
}

// addTo adds the recorded latencies to sum. Readers may still be recording.
func (t *tally) addTo(o op, sum *latencies) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.latency[o] != nil {
		sum.merge(t.latency[o])
	}
}

// clock is a round's time, in nanoseconds since its start. Its fields do not
// change while workers use it.
type clock struct {
	began time.Time
	from  int64 // when counting begins
	until int64 // when counting and sending end
	// openLoop is true at a fixed rate. Latencies then count by when the request
	// was due, not by when it was answered: otherwise answers that a pause has
	// delayed beyond the end would be left out.
	openLoop bool
	// budget is how many units may still be sent; nil for no limit but time.
	budget *atomic.Int64
}

func (c *clock) now() int64 { return int64(time.Since(c.began)) }

// take reports whether a request of n units may be sent at now, and takes it
// off the budget.
func (c *clock) take(now int64, n int) bool {
	if now >= c.until {
		return false
	}
	if c.budget == nil || c.budget.Add(-int64(n)) >= 0 {
		return true
	}
	c.budget.Add(int64(n))
	return false
}

// spent reports whether the budget is used up.
func (c *clock) spent() bool { return c.budget != nil && c.budget.Load() <= 0 }

// giveBack returns n units to the budget.
func (c *clock) giveBack(n int) {
	if c.budget != nil {
		c.budget.Add(int64(n))
	}
}

// counters counts the results of one worker. The atomic fields may be read at
// any time; the others belong to the worker until it has ended.
type counters struct {
	clock *clock
	tally *tally

	// Over the whole round, warm-up included.
	done, refused, busy atomic.Uint64
	// lastAt is when the last answer arrived.
	lastAt atomic.Int64

	// Within the round's window.
	counted, countedRefused, countedBusy uint64
	// missed counts the requests that were due and not done at the end.
	missed uint64
	// Requests with an unknown outcome: of unknown the answer says so, silent
	// had no answer.
	unknown, silent uint64
}

func newCounters(c *clock, t *tally) *counters { return &counters{clock: c, tally: t} }

func (m *counters) inWindow(now int64) bool { return now >= m.clock.from && now < m.clock.until }

// add counts n units done at now.
func (m *counters) add(now int64, n int) {
	m.done.Add(uint64(n))
	m.lastAt.Store(now)
	if m.inWindow(now) {
		m.counted += uint64(n)
	}
}

// addRefused counts n refusals at now.
func (m *counters) addRefused(now int64, n int) {
	m.refused.Add(uint64(n))
	m.lastAt.Store(now)
	if m.inWindow(now) {
		m.countedRefused += uint64(n)
	}
}

// addBusy counts an answer at now that says to try again later.
func (m *counters) addBusy(now int64) {
	m.busy.Add(1)
	if m.inWindow(now) {
		m.countedBusy++
	}
}

// addLatency records that a request sent, or due, at sent was done at now.
func (m *counters) addLatency(o op, sent, now int64) { m.addLatencyFrom(o, sent, sent, now) }

// addLatencyFrom records a latency from from to now for a request sent, or due,
// at sent.
func (m *counters) addLatencyFrom(o op, sent, from, now int64) {
	at := now
	if m.clock.openLoop {
		at = sent
	}
	if m.inWindow(at) {
		m.tally.record(o, time.Duration(now-from))
	}
}

// addUnknown records at now that a request's outcome is unknown. It counts with
// the time until it was given up.
func (m *counters) addUnknown(sent, now int64, silent bool) {
	if silent {
		m.silent++
	} else {
		m.unknown++
	}
	m.addLatency(mainOp, sent, now)
}

// addMissed records, at a fixed rate, that a request due at due was not done
// when the round ended at now: its latency is at least that time.
func (m *counters) addMissed(due, now int64) {
	if m.clock.openLoop && m.inWindow(due) {
		m.missed++
		m.tally.record(mainOp, time.Duration(now-due))
	}
}
