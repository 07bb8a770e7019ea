package broker

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
	"github.com/cantuslog/cantus/wal/nameindex"
)

// query is a read request, checked and with its defaults.
type query struct {
	from     uint64
	fromTime int64 // in Unix nanoseconds, math.MinInt64 if there is none
	max      int
	maxBytes int
	wait     time.Duration
	kinds    []string // all if empty
	lock     string
	items    []queryItem // one of them must apply, unless there are none
	msgID    string      // for a get, "" for any
	session  string      // for a get, "" for any; then with the number in it
	seq      uint64
	newest   bool // the newest transaction comes first
	payload  bool
	packed   bool
	cluster  string // from which the client read the transactions before from
	limit    uint64 // the last transaction that may be shown, 0 for no limit
}

// readBody is the body of a read. What is nil was left out.
type readBody struct {
	From     *uint64  `json:"from"`
	FromTime *string  `json:"from_time"`
	Max      *int     `json:"max"`
	MaxBytes *int     `json:"max_bytes"`
	Wait     *string  `json:"wait"`
	Kinds    []string `json:"kinds"`
	Lock     *string  `json:"lock"`
	Query    []struct {
		Kinds []string `json:"kinds"`
		Locks []string `json:"locks"`
	} `json:"query"`
	NewestFirst bool    `json:"newest_first"`
	HeadersOnly bool    `json:"headers_only"`
	Packed      bool    `json:"packed"`
	Cluster     *string `json:"cluster"`
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
	if err := checkKinds("kinds", r.Kinds); err != nil {
		return q, err
	}
	q.kinds = r.Kinds
	if err := q.setItems(&r); err != nil {
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
	return q, q.setOrder(&r)
}

// setOrder sets whether the newest transaction comes first.
func (q *query) setOrder(r *readBody) error {
	if q.newest = r.NewestFirst; !q.newest {
		return nil
	}
	switch {
	case r.Wait != nil:
		return subjects.Errorf(subjects.BadRequest, "newest_first and wait: a read that begins with the newest transaction has nothing to wait for")
	case r.Cluster != nil:
		return subjects.Errorf(subjects.BadRequest, "newest_first and cluster: the cluster is that of the transaction before from, and this read goes the other way")
	case r.From == nil:
		q.from = 0
	}
	return nil
}

// setItems sets the items of which one must apply.
func (q *query) setItems(r *readBody) error {
	if n := len(r.Query); n > subjects.MaxQueryItems {
		return subjects.Errorf(subjects.BadRequest, "query has %d items: at most %d are allowed", n, subjects.MaxQueryItems)
	}
	for i, item := range r.Query {
		item := queryItem{kinds: item.Kinds, locks: item.Locks}
		if err := item.check(fmt.Sprintf("query[%d]", i)); err != nil {
			return err
		}
		q.items = append(q.items, item)
	}
	return nil
}

// queryItem applies to transactions of one of the kinds, if there are any, that
// have recorded a lock overlapping each of the locks.
type queryItem struct {
	kinds []string
	locks []string
	// besides is a session whose transactions don't match, "" for none.
	besides string
}

// text describes the item for people.
func (i *queryItem) text() string {
	var parts []string
	if len(i.kinds) > 0 {
		parts = append(parts, "kind "+strings.Join(i.kinds, " or "))
	}
	if len(i.locks) > 0 {
		parts = append(parts, "lock "+strings.Join(i.locks, " and "))
	}
	return strings.Join(parts, ", ")
}

// check checks an item, which messages call by a name.
func (i *queryItem) check(name string) error {
	switch n := len(i.locks); {
	case n == 0 && len(i.kinds) == 0:
		return subjects.Errorf(subjects.BadRequest, "%s has neither kinds nor locks: every transaction has no such name; leave it out for all", name)
	case n > subjects.MaxQueryLocks:
		return subjects.Errorf(subjects.BadRequest, "%s.locks has %d names: at most %d are allowed", name, n, subjects.MaxQueryLocks)
	}
	if err := checkKinds(name+".kinds", i.kinds); err != nil {
		return err
	}
	for _, l := range i.locks {
		if err := subjects.CheckLock(l); err != nil {
			return err
		}
	}
	return nil
}

func (i *queryItem) matches(t *wal.Transaction) bool {
	if !isOneOf(i.kinds, t.Kind) || i.besides != "" && i.besides == text(t.Session) {
		return false
	}
	for _, l := range i.locks {
		if !recorded(t, l) {
			return false
		}
	}
	return true
}

// isOneOf reports whether a kind is one of kinds, or may be any.
func isOneOf(kinds []string, kind []byte) bool {
	return len(kinds) == 0 || slices.Contains(kinds, text(kind))
}

// recorded reports whether a transaction has recorded a lock that overlaps one.
func recorded(t *wal.Transaction, lock string) bool {
	for _, l := range t.Locks {
		if l.Mode != wal.ReadLock && subjects.Overlap(lock, text(l.Name)) {
			return true
		}
	}
	return false
}

// terms returns what the item asks of an index. It has none if every
// transaction may be asked for.
func (i *queryItem) terms(h nameindex.Hasher) (terms nameindex.Item) {
	if len(i.kinds) > 0 {
		var kinds nameindex.Term
		for _, k := range i.kinds {
			kinds = append(kinds, h.Kind(k))
		}
		terms = append(terms, kinds)
	}
	for _, l := range i.locks {
		if keys := h.Overlapping(nil, l); keys != nil {
			terms = append(terms, keys)
		}
	}
	return terms
}

// indexed returns what the query asks of an index, nil if every transaction may
// be asked for.
func (q *query) indexed(h nameindex.Hasher) (items []nameindex.Item) {
	if q.msgID != "" {
		return []nameindex.Item{{{h.MsgID(q.msgID)}}}
	}
	if q.session != "" {
		return []nameindex.Item{{{h.Number(numberText(q.session, q.seq))}}}
	}
	all := queryItem{kinds: q.kinds}
	if q.lock != "" {
		all.locks = []string{q.lock}
	}
	base := all.terms(h)
	for _, i := range q.items {
		terms := slices.Concat(base, i.terms(h))
		if len(terms) == 0 {
			return nil
		}
		items = append(items, terms)
	}
	if len(q.items) == 0 && len(base) > 0 {
		items = append(items, base)
	}
	return items
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

// checkKinds checks the kinds in a field of a body.
func checkKinds(field string, kinds []string) error {
	if len(kinds) > subjects.MaxKinds {
		return subjects.Errorf(subjects.BadRequest, "%s has %d names: at most %d are allowed; leave it out for all", field, len(kinds), subjects.MaxKinds)
	}
	for _, k := range kinds {
		if err := subjects.CheckKind(k); err != nil {
			return err
		}
	}
	return nil
}

// matches reports whether the query asks for t.
func (q *query) matches(t *wal.Transaction) bool {
	switch {
	case t.Time < q.fromTime, !isOneOf(q.kinds, t.Kind), q.lock != "" && !recorded(t, q.lock):
		return false
	case q.msgID != "":
		return q.msgID == text(t.MsgID)
	case q.session != "":
		return q.session == text(t.Session) && q.seq == t.SessionSeq && t.Atomic.Index == 0
	}
	return len(q.items) == 0 || slices.ContainsFunc(q.items, func(i queryItem) bool { return i.matches(t) })
}
