package broker

import (
	"math"
	"time"

	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// query is a read request, checked and with its defaults.
type query struct {
	from     uint64
	fromTime int64 // in Unix nanoseconds, math.MinInt64 if there is none
	max      int
	maxBytes int
	wait     time.Duration
	kinds    map[string]bool // all if nil
	lock     string
	payload  bool
	packed   bool
	cluster  string // from which the client read the transactions before from
	limit    uint64 // the last transaction that may be shown, 0 for no limit
}

// readBody is the body of a read. What is nil was left out.
type readBody struct {
	From        *uint64  `json:"from"`
	FromTime    *string  `json:"from_time"`
	Max         *int     `json:"max"`
	MaxBytes    *int     `json:"max_bytes"`
	Wait        *string  `json:"wait"`
	Kinds       []string `json:"kinds"`
	Lock        *string  `json:"lock"`
	HeadersOnly bool     `json:"headers_only"`
	Packed      bool     `json:"packed"`
	Cluster     *string  `json:"cluster"`
}

func parseQuery(body []byte) (query, error) {
	q := query{from: 1, fromTime: math.MinInt64, max: subjects.DefaultReadCount, maxBytes: subjects.DefaultReadBytes, payload: true}
	var r readBody
	if len(body) > subjects.MaxReadBody {
		return q, subjects.Errorf(subjects.TooLarge, "the body has %d bytes: at most %d are allowed", len(body), subjects.MaxReadBody)
	}
	if err := strictJSON(body, &r); err != nil {
		return q, err
	}
	if err := q.bound(&r); err != nil {
		return q, err
	}
	if err := q.only(r.Kinds); err != nil {
		return q, err
	}
	if r.Lock != nil {
		if err := subjects.CheckLock(*r.Lock); err != nil {
			return q, err
		}
		q.lock = *r.Lock
	}
	if r.Cluster != nil {
		if err := checkClusterID(*r.Cluster); err != nil {
			return q, err
		}
		q.cluster = *r.Cluster
	}
	q.payload, q.packed = !r.HeadersOnly, r.Packed
	return q, nil
}

// bound sets where the query begins, and how much it may return and wait.
func (q *query) bound(r *readBody) error {
	bad := func(format string, args ...any) error {
		return subjects.Errorf(subjects.BadRequest, format, args...)
	}
	if r.From != nil {
		if q.from = *r.From; q.from == 0 {
			return bad("from is 0: txids begin at 1")
		}
	}
	if r.FromTime != nil {
		t, err := subjects.ParseTime(*r.FromTime)
		if err != nil {
			return bad("from_time: %v", err)
		}
		q.fromTime = t.UnixNano()
	}
	if r.Max != nil {
		if q.max = *r.Max; q.max < 1 || q.max > subjects.MaxReadCount {
			return bad("max is %d: 1 to %d is allowed", q.max, subjects.MaxReadCount)
		}
	}
	if r.MaxBytes != nil {
		if q.maxBytes = *r.MaxBytes; q.maxBytes < 1 || q.maxBytes > subjects.MaxReadBytes {
			return bad("max_bytes is %d: 1 to %d is allowed", q.maxBytes, subjects.MaxReadBytes)
		}
	}
	if r.Wait != nil {
		d, err := subjects.ParseDuration(*r.Wait)
		if err != nil || d > subjects.MaxReadWaitSeconds*time.Second {
			return bad("wait is %q: a duration from 0s to %ds, such as \"5s\", is allowed", *r.Wait, subjects.MaxReadWaitSeconds)
		}
		q.wait = d
	}
	return nil
}

// only limits the query to some kinds, unless none are named.
func (q *query) only(kinds []string) error {
	if len(kinds) > subjects.MaxKinds {
		return subjects.Errorf(subjects.BadRequest, "kinds has %d names: at most %d are allowed; leave it out for all", len(kinds), subjects.MaxKinds)
	}
	for _, k := range kinds {
		if err := subjects.CheckKind(k); err != nil {
			return err
		}
		if q.kinds == nil {
			q.kinds = make(map[string]bool, len(kinds))
		}
		q.kinds[k] = true
	}
	return nil
}

// matches reports whether the query asks for t.
func (q *query) matches(t *wal.Transaction) bool {
	if t.Time < q.fromTime {
		return false
	}
	if q.kinds != nil && !q.kinds[string(t.Kind)] {
		return false
	}
	if q.lock == "" {
		return true
	}
	for _, l := range t.Locks {
		if l.Mode != wal.ReadLock && subjects.Overlap(q.lock, text(l.Name)) {
			return true
		}
	}
	return false
}
