package bench

import (
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// The range of latencies that are told apart: what is shorter or longer
// counts as the nearest end.
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

// quantile gives the latency that a share of q percent does not exceed; 0 if
// nothing was recorded.
func (l *latencies) quantile(q float64) time.Duration {
	if l.h.TotalCount() == 0 {
		return 0
	}
	return time.Duration(l.h.ValueAtQuantile(q))
}

// max gives the longest latency; 0 if nothing was recorded.
func (l *latencies) max() time.Duration { return l.quantile(100) }

// clock is a round's time, in nanoseconds since it began. It does not change
// while workers use it.
type clock struct {
	epoch time.Time
	from  int64 // answers count from here on
	until int64 // and up to here, when sending ends
	// budget is how many units may still be sent; nil if only time limits.
	budget *atomic.Int64
}

func (c *clock) now() int64 { return int64(time.Since(c.epoch)) }

// take asks for leave to send a request of n units at now.
func (c *clock) take(now int64, n int) bool {
	if now >= c.until {
		return false
	}
	return c.budget == nil || c.budget.Add(-int64(n)) >= 0
}

// giveBack takes back the leave to send n units.
func (c *clock) giveBack(n int) {
	if c.budget != nil {
		c.budget.Add(int64(n))
	}
}

// meter counts what one worker got done. The atomic fields may be read at any
// time; the others belong to the worker until it has ended.
type meter struct {
	clock *clock

	// Over the whole round, warm-up included.
	done, refused, busy atomic.Uint64
	// lastAt is when the last answer came.
	lastAt atomic.Int64

	// Within the round's window.
	counted, countedRefused, countedBusy uint64
	latency                              *latencies
}

func newMeter(c *clock) *meter { return &meter{clock: c, latency: newLatencies()} }

func (m *meter) counts(now int64) bool { return now >= m.clock.from && now < m.clock.until }

// add counts n units done at now.
func (m *meter) add(now int64, n int) {
	m.done.Add(uint64(n))
	m.lastAt.Store(now)
	if m.counts(now) {
		m.counted += uint64(n)
	}
}

// refuse counts a refusal at now.
func (m *meter) refuse(now int64) {
	m.refused.Add(1)
	m.lastAt.Store(now)
	if m.counts(now) {
		m.countedRefused++
	}
}

// hold counts an answer at now that asks to come again later.
func (m *meter) hold(now int64) {
	m.busy.Add(1)
	if m.counts(now) {
		m.countedBusy++
	}
}

// took notes that a request sent at sent was done with at now.
func (m *meter) took(sent, now int64) {
	if m.counts(now) {
		m.latency.record(time.Duration(now - sent))
	}
}
