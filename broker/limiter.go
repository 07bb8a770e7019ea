package broker

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/subjects"
)

// limiter holds a partition, on its leader, to the limits of its namespace. It
// refuses a message as it arrives: what is refused enters no queue, and takes
// nothing that partitions share but the refusal itself.
//
// A rate is a bucket that holds what may be appended in a second, and fills as
// time passes. A message passes while the bucket has anything, and takes all
// that it needs, so that the bucket may be in debt afterwards: a message of any
// size passes at last, and over a longer time the rate is exact.
type limiter struct {
	partition int
	now       func() time.Time // a clock that is not set back
	facts     func() (cluster.Facts, <-chan struct{})
	kept      func() uint64 // the size of the log
	refusals  *prometheus.CounterVec

	// limits are those in force, nil for none: most partitions have none, and
	// pay nothing else.
	limits atomic.Pointer[cluster.Limits]

	mu      sync.Mutex
	at      time.Time // when the buckets were filled
	buckets [2]bucket
	latest  limited // the last refusal
}

// The names of limits, on the wire and as labels of metrics.
const (
	limitTransactions = "transactions"
	limitBytes        = "bytes"
	limitKept         = "kept"
)

var limitNames = []string{limitTransactions, limitBytes, limitKept}

// bucket is what a rate allows now.
type bucket struct{ rate, level float64 }

// limited is a refusal because of a limit.
type limited struct {
	at   time.Time
	text string
}

// limitedTime is how long after its last refusal a partition counts as limited.
const limitedTime = 10 * time.Second

// run keeps the limits as the facts have them until ctx ends.
func (l *limiter) run(ctx context.Context) {
	defer l.limits.Store(nil)
	for {
		facts, changed := l.facts()
		_, limits := facts.PartOf(l.partition)
		l.set(limits)
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// set sets the limits. Buckets whose rate stays keep their level.
func (l *limiter) set(limits cluster.Limits) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fill()
	for i, rate := range []uint64{limits.Transactions, limits.Bytes} {
		if r := float64(rate); r != l.buckets[i].rate {
			l.buckets[i] = bucket{r, r}
		}
	}
	if limits == (cluster.Limits{}) {
		l.limits.Store(nil)
		l.latest = limited{}
		return
	}
	l.limits.Store(&limits)
}

// fill fills the buckets with what time has brought; mu is held.
func (l *limiter) fill() {
	now := l.now()
	passed := max(0, now.Sub(l.at).Seconds())
	if l.at.IsZero() {
		passed = 0
	}
	l.at = now
	for i := range l.buckets {
		b := &l.buckets[i]
		b.level = min(b.rate, b.level+b.rate*passed)
	}
}

// admit takes a message of a number of transactions, or says why it is refused.
// The size of the log does not hold back what passesFull: a write that frees
// room, as a cursor's may, and what the partition itself refuses later.
func (l *limiter) admit(limits *cluster.Limits, transactions, bytes int, passesFull bool) *subjects.Error {
	if e := l.full(limits); e != nil && !passesFull {
		l.count(e, 1)
		return e
	}
	l.mu.Lock()
	l.fill()
	for i, b := range l.buckets {
		if b.rate == 0 || b.level > 0 {
			continue
		}
		wait := time.Duration(math.Ceil(-b.level/b.rate*1000)+1) * time.Millisecond
		l.mu.Unlock()
		what := fmt.Sprintf("%d transactions", limits.Transactions)
		if limitNames[i] == limitBytes {
			what = humanize.IBytes(limits.Bytes)
		}
		e := subjects.Errorf(subjects.Busy, "the namespace allows %s a second in each partition, and this one has taken more: try again in %v", what, wait)
		e.Limit, e.RetryAfter = limitNames[i], wait.Seconds()
		l.count(e, 1)
		return e
	}
	l.buckets[0].level -= float64(transactions)
	l.buckets[1].level -= float64(bytes)
	l.mu.Unlock()
	return nil
}

// full returns an error if the log is as large as limits allow.
func (l *limiter) full(limits *cluster.Limits) *subjects.Error {
	if limits == nil || limits.Kept == 0 || l.kept() < limits.Kept {
		return nil
	}
	e := subjects.Errorf(subjects.StorageFull, "the partition's log has %s, and its namespace allows %s: nothing is appended until some of it is trimmed",
		humanize.IBytes(l.kept()), humanize.IBytes(limits.Kept))
	e.Limit = limitKept
	return e
}

// count counts n refusals with an error of the limiter; others don't count.
func (l *limiter) count(e *subjects.Error, n int) {
	if e.Limit == "" {
		return
	}
	l.refusals.WithLabelValues(label(l.partition), e.Limit).Add(float64(n))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.latest = limited{l.now(), e.Message}
}

// text says which limit refuses appends, as text for people; "" if none has
// done so lately.
func (l *limiter) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.latest.text == "" || l.now().Sub(l.latest.at) > limitedTime {
		return ""
	}
	return l.latest.text
}

// info describes the limits that are in force, nil for none.
func (l *limiter) info() *subjects.LimitInfo {
	limits := l.limits.Load()
	if limits == nil {
		return nil
	}
	return &subjects.LimitInfo{NamespaceLimits: shownLimits(*limits), Size: l.kept(), Refusing: l.text()}
}

func shownLimits(l cluster.Limits) subjects.NamespaceLimits {
	return subjects.NamespaceLimits{Transactions: l.Transactions, Bytes: l.Bytes, Kept: l.Kept}
}

// messageTransactions returns how many transactions a batch message has, at
// least 1, as far as its frame is well-formed.
func messageTransactions(batch bool, payload []byte) int {
	if !batch {
		return 1
	}
	n := 0
	for len(payload) >= 8 && n < subjects.MaxBatch {
		size := 8 + uint64(binary.BigEndian.Uint32(payload)) + uint64(binary.BigEndian.Uint32(payload[4:]))
		if size > uint64(len(payload)) {
			break
		}
		payload = payload[size:]
		n++
	}
	return max(n, 1)
}

// admitMessage is admit for an append or a batch. What may repeat a transaction
// that was committed before passes a full log: the partition answers with that
// one's outcome, and refuses what is new.
func (l *limiter) admitMessage(limits *cluster.Limits, m *natslink.Message, batch bool) *subjects.Error {
	mayRepeat := batch || limits.Kept > 0 && msgID(m.Header) != nil
	return l.admit(limits, messageTransactions(batch, m.Payload), len(m.Header)+len(m.Payload), mayRepeat)
}
