package bench

import (
	"sync/atomic"
	"testing"
	"time"
)

func TestLatenciesGiveQuantilesWithinAThousandth(t *testing.T) {
	a, b := newLatencies(), newLatencies()
	for i := 1; i <= 500; i++ {
		a.record(time.Duration(i) * time.Millisecond)
		b.record(time.Duration(500+i) * time.Millisecond)
	}
	a.merge(b)
	for q, want := range map[float64]time.Duration{50: 500 * time.Millisecond, 99: 990 * time.Millisecond, 100: time.Second} {
		got := a.quantile(q)
		if diff := (got - want).Abs(); diff > want/500 {
			t.Errorf("quantile %v: %v, want about %v", q, got, want)
		}
	}
	if got := a.max(); (got - time.Second).Abs() > 2*time.Millisecond {
		t.Errorf("max %v, want about 1s", got)
	}
}

func TestLatenciesOutOfRangeCountAsTheEnds(t *testing.T) {
	l := newLatencies()
	if l.quantile(50) != 0 || l.max() != 0 {
		t.Errorf("empty: %v, %v, want 0", l.quantile(50), l.max())
	}
	l.record(-time.Second)
	if got := l.max(); got < shortest || got > 2*shortest {
		t.Errorf("too short: %v, want %v", got, shortest)
	}
	l.record(time.Hour)
	if got := l.max(); got < longest || got > longest+longest/500 {
		t.Errorf("too long: %v, want %v", got, longest)
	}
}

func TestMeterCountsWithinTheWindowOnly(t *testing.T) {
	m := newCounters(&clock{from: 100, until: 200}, &tally{})
	for _, now := range []int64{99, 100, 199, 200} {
		m.add(now, 2)
		m.addRefused(now, 3)
		m.addBusy(now)
		m.addLatency(mainOp, now-50, now)
		m.addMissed(now, now+50)
	}
	if n := m.tally.latency[mainOp].count(); m.counted != 4 || m.countedRefused != 6 || m.countedBusy != 2 || n != 2 {
		t.Errorf("counted %d done, %d refused, %d busy, %d latencies; want 4, 6, 2, 2",
			m.counted, m.countedRefused, m.countedBusy, n)
	}
	if m.done.Load() != 8 || m.refused.Load() != 12 || m.busy.Load() != 4 || m.lastAt.Load() != 200 {
		t.Errorf("in all %d done, %d refused, %d busy, last at %d; want 8, 12, 4, 200",
			m.done.Load(), m.refused.Load(), m.busy.Load(), m.lastAt.Load())
	}
	if m.missed != 0 {
		t.Errorf("%d missed: in a closed loop nothing falls due", m.missed)
	}
}

// TestPacedLatencyCountsByWhenItWasDue checks that coordinated omission hides
// nothing: answers that come after the window count, and so do requests that
// were never sent.
func TestPacedLatencyCountsByWhenItWasDue(t *testing.T) {
	m := newCounters(&clock{from: 100_000, until: 200_000, openLoop: true}, &tally{})
	m.addLatency(mainOp, 99_999, 150_000)
	m.addLatency(mainOp, 150_000, 9_150_000)
	m.addMissed(199_999, 5_199_999)
	m.addMissed(200_000, 5_200_000)
	l := m.tally.latency[mainOp]
	if l.count() != 2 || m.missed != 1 {
		t.Fatalf("%d latencies and %d missed, want 2 and 1", l.count(), m.missed)
	}
	if got := l.max(); (got - 9*time.Millisecond).Abs() > 10*time.Microsecond {
		t.Errorf("longest %v, want the 9ms of the answer that came after the window", got)
	}
}

func TestClockEndsByTimeOrBudget(t *testing.T) {
	c := clock{until: 10}
	if !c.take(9, 1000) || c.take(10, 0) {
		t.Error("time alone: want leave before the end and none at it")
	}
	c.budget = &atomic.Int64{}
	c.budget.Store(5)
	if !c.take(0, 3) || c.take(0, 3) {
		t.Error("budget of 5: want leave for 3, and none for 3 more")
	}
	c.giveBack(4)
	if !c.take(0, 3) {
		t.Error("want leave for what was given back")
	}
}
