package broker

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/subjects"
)

// A rate is exact over time, whatever the size of messages, and a refusal says
// when it allows more.
func TestLimiterRates(t *testing.T) {
	at, kept := time.Unix(1000, 0), uint64(0)
	l := &limiter{now: func() time.Time { return at }, kept: func() uint64 { return kept }, refusals: newMetrics().limited}
	l.set(cluster.Limits{Transactions: 10, Bytes: 1000, Kept: 5000})
	admit := func(transactions, bytes int) *subjects.Error {
		return l.admit(l.limits.Load(), transactions, bytes, false)
	}
	took := 0
	for range 1000 { // 100 ms each
		for admit(7, 1) == nil {
			took += 7
		}
		at = at.Add(100 * time.Millisecond)
	}
	if took < 1000 || took > 1000+10+7 { // in 100 s, after a burst of one second
		t.Errorf("%d transactions were taken in 100 s at 10 a second", took)
	}
	at = at.Add(time.Minute)
	if e := admit(35, 0); e != nil {
		t.Errorf("a message larger than the rate: %v", e)
	}
	e := admit(1, 0)
	if e == nil || e.Reason != subjects.Busy || e.Limit != "transactions" || e.RetryAfter < 2.5 || e.RetryAfter > 2.51 {
		t.Fatalf("%+v", e)
	}
	if l.text() != e.Message {
		t.Errorf("%q", l.text())
	}
	at = at.Add(time.Duration(e.RetryAfter * float64(time.Second)))
	if e := admit(1, 2500); e != nil {
		t.Errorf("after the time that the refusal named: %v", e)
	}
	at = at.Add(time.Second)
	if e := admit(1, 0); e == nil || e.Limit != "bytes" {
		t.Errorf("%+v", e)
	}
	at = at.Add(time.Minute)
	if l.text() != "" {
		t.Errorf("it counts as limited after a minute: %q", l.text())
	}
	kept = 5000
	if e := admit(1, 0); e == nil || e.Limit != "kept" || e.Reason != subjects.StorageFull || e.RetryAfter != 0 {
		t.Errorf("%+v", e)
	}
	if e := l.admit(l.limits.Load(), 1, 0, true); e != nil {
		t.Errorf("a write that frees room: %v", e)
	}
	// Other limits leave what a rate has allowed so far as it is.
	l.set(cluster.Limits{Transactions: 10, Kept: 9000})
	_ = admit(30, 0)
	l.set(cluster.Limits{Transactions: 10})
	if e := admit(1, 0); e == nil {
		t.Error("a change of another limit has filled the bucket")
	}
	if l.set(cluster.Limits{}); l.limits.Load() != nil || l.text() != "" {
		t.Error("limits that were removed are there")
	}
}

// The transactions of a batch message are counted without trusting its frame.
func TestMessageTransactions(t *testing.T) {
	one := []byte{0, 0, 0, 0, 0, 0, 0, 1, 'x'}
	for _, c := range []struct {
		payload []byte
		want    int
	}{
		{nil, 1}, {one, 1}, {append(append([]byte{}, one...), one...), 2}, {append([]byte{255, 255, 255, 255, 255, 255, 255, 255}, one...), 1},
		{make([]byte, 8*(subjects.MaxBatch+5)), subjects.MaxBatch}, {append(one, 1, 2, 3), 1},
	} {
		if got := messageTransactions(true, c.payload); got != c.want {
			t.Errorf("%d bytes: %d transactions, want %d", len(c.payload), got, c.want)
		}
	}
	if messageTransactions(false, one) != 1 {
		t.Error("an append has one")
	}
}

// What a limit refuses is answered as it arrives, and enters no queue: the
// partition takes no slot in flight for it, and no sync.
func TestWhatALimitRefusesEntersNoQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDataPath(t)
		d.stop() // nothing takes from the queue
		d.p.limiter.set(cluster.Limits{Transactions: 3})
		for range 1000 {
			d.send("inbox", "x")
		}
		if n, _ := d.p.queue.waiting(); n != 3 {
			t.Errorf("%d messages wait, want 3", n)
		}
		refused := d.replies.take()
		if len(refused) != 997 || !strings.Contains(refused[0], `"reason":"busy"`) || !strings.Contains(refused[0], `"limit":"transactions","retry_after":0.00`) {
			t.Errorf("%d answers, the first is %q", len(refused), refused[:min(1, len(refused))])
		}
	})
}
