package broker

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/lockmgr"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// TestRandomHistoriesOfConditions compares each verdict on locks and conditions
// with that of a model, which looks through all transactions that were
// certified before: with marks of any age, a table and recent transactions that
// forget almost everything, messages of several transactions, leader changes,
// rebuilds and trims. CANTUS_HISTORIES sets how many histories there are.
func TestRandomHistoriesOfConditions(t *testing.T) {
	histories := uint64(1500)
	if n, err := strconv.ParseUint(os.Getenv("CANTUS_HISTORIES"), 10, 64); err == nil {
		histories = n
	}
	tally := map[string]int{}
	for seed := range histories {
		h := newConditionHistory(t, seed, tally)
		for range 60 {
			h.step()
		}
	}
	t.Logf("%v", tally)
	if tally["parked twice"] == 0 {
		t.Error("no message was parked twice")
	}
	for _, what := range []string{
		"passed", "passed with a condition", "conflict", "matched", "matched in flight", "too long", "matched in the same batch", "parked", "found in the log", "trimmed",
		"commit", "foreign", "rollback", "rebuild", "trim",
		"passed in a session", "own lock", "own condition", "repeat", "wrong number", "forgotten session", "conflict in a session",
	} {
		if uint64(tally[what]) < histories/20 {
			t.Errorf("%q came up %d times only", what, tally[what])
		}
	}
}

type conditionHistory struct {
	*certifierHistory
	trimmed uint64
	parked  [][]*request // the requests of each message, to be certified again
	locks   []string
	kinds   []string

	sessions  bool // some requests are in a session
	forgetful bool // sessions may be forgotten: the log was trimmed, or the table built anew
}

func newConditionHistory(t *testing.T, seed uint64, tally map[string]int) *conditionHistory {
	h := &conditionHistory{certifierHistory: newCertifierHistory(t, seed, tally)}
	h.locks = []string{"a", "b", "a.a", "a.b", "b.a.c", "a.>", "b.a.>", ">"}[:3+h.rand.IntN(6)]
	h.kinds = []string{"K", "L", "M"}[:1+h.rand.IntN(3)]
	h.sessions = h.rand.IntN(2) == 0
	h.c.recent.most = 1 + h.rand.Uint64N(12)
	if h.rand.IntN(3) == 0 {
		h.c.recent.steps = 1 + h.rand.IntN(2*transactionSteps)
	}
	return h
}

func (h *conditionHistory) step() {
	switch n := h.rand.IntN(100); {
	case n < 50:
		h.certify()
	case n < 80:
		h.commit()
	case n < 86:
		h.record(h.foreign(), "foreign")
		h.parked = nil
	case n < 90:
		h.c.rollback()
		h.rolledBack()
		h.parked = nil
		h.tally["rollback"]++
	case n < 94:
		h.rebuild()
		h.forgetful = true
		h.c.forget(h.trimmed + 1)
		h.parked = nil
	case n < 96:
		h.trimmed += h.rand.Uint64N(1 + uint64(len(h.log))/2 - min(h.trimmed, uint64(len(h.log))/2))
		h.c.forget(h.trimmed + 1)
		h.tally["trim"]++
		h.forgetful = true
	default:
		h.c.advance(h.c.table.Time() + h.rand.Int64N(20))
	}
}

func pick[T any](r *rand.Rand, from []T, most int) (some []T) {
	for range r.IntN(most + 1) {
		some = append(some, from[r.IntN(len(from))])
	}
	return some
}

// request makes a request as a client sends it.
func (h *conditionHistory) request(last uint64) *request {
	whole := subjects.AppendBlockStart(nil)
	for range h.rand.IntN(3) {
		item := subjects.QueryItem{Kinds: pick(h.rand, h.kinds, 2), Locks: pick(h.rand, h.locks, 3)}
		if len(item.Kinds)+len(item.Locks) == 0 {
			continue
		}
		value := "{"
		if len(item.Kinds) > 0 {
			value += fmt.Sprintf(`"kinds":["%s"],`, strings.Join(item.Kinds, `","`))
		}
		if len(item.Locks) > 0 {
			value += fmt.Sprintf(`"locks":["%s"],`, strings.Join(item.Locks, `","`))
		}
		whole = subjects.AppendField(whole, subjects.HeaderUnless, strings.TrimSuffix(value, ",")+"}")
	}
	mark := last - min(last, uint64(h.rand.ExpFloat64()*6))
	if h.rand.IntN(8) == 0 {
		mark = h.rand.Uint64N(last + 2)
	}
	whole = subjects.AppendField(whole, subjects.HeaderHighWaterMark, fmt.Sprint(mark))
	if h.sessions && h.rand.IntN(3) > 0 {
		whole = h.addSession(whole)
	}
	return h.decode(whole, func(block []byte) ([]byte, []byte) {
		for _, header := range []string{subjects.HeaderWriteLock, subjects.HeaderReadLock, subjects.HeaderAppendLock} {
			if h.rand.IntN(3) == 0 {
				block = subjects.AppendField(block, header, h.locks[h.rand.IntN(len(h.locks))])
			}
		}
		return subjects.AppendField(block, subjects.HeaderKind, h.kinds[h.rand.IntN(len(h.kinds))]), nil
	})
}

// all returns all transactions that were certified.
func (h *conditionHistory) all() []*wal.Transaction {
	var all []*wal.Transaction
	for i := range h.log {
		all = append(all, &h.log[i])
	}
	for _, b := range h.inFlight {
		for _, r := range b.passed {
			all = append(all, &r.tx)
		}
	}
	return all
}

// certify certifies messages, some of which the log was searched for.
func (h *conditionHistory) certify() {
	all := h.all()
	var rs []*request
	for len(h.parked) > 0 && h.rand.IntN(2) == 0 {
		rs = append(rs, h.parked[0]...)
		h.parked = h.parked[1:]
	}
	for range h.rand.IntN(3) {
		m := &natslink.Message{}
		for range 1 + h.rand.IntN(3)/2*h.rand.IntN(4) {
			r := h.request(uint64(len(all)))
			r.message = m
			for _, t := range r.items {
				t.message = m
			}
			if rs = append(rs, r); r.items != nil {
				h.tally["atomic batch"]++
				m = &natslink.Message{} // it is a message of its own
			}
		}
	}
	before := len(all)
	c := h.c.certify(h.term, rs)
	passed, notPassed := c.passed, c.notPassed
	for _, r := range rs {
		if slices.Contains(c.parked, r.message) {
			continue
		}
		switch {
		case len(passed) > 0 && passed[0] == r.stored()[0]:
			h.checkPassed(r, all)
			for i, t := range r.stored() {
				if len(passed) == 0 || passed[0] != t {
					h.fatalf("transaction %d of an atomic batch of %d has not passed with the others", i, len(r.items))
				}
				all, passed = append(all, &t.tx), passed[1:]
			}
		case len(notPassed) > 0 && notPassed[0].r == r:
			h.checkRefused(notPassed[0], all, before)
			notPassed = notPassed[1:]
		default:
			h.fatalf("a request has no verdict in its turn")
		}
	}
	if len(c.passed) > 0 {
		h.inFlight = append(h.inFlight, c)
	}
	if start := h.c.recent.start; start > uint64(len(h.log)) {
		h.fatalf("what is remembered begins after %d, in flight", start)
	}
	for _, m := range c.parked {
		var some []*request
		for _, r := range rs {
			if r.message == m {
				h.search(r)
				some = append(some, r)
			}
		}
		h.parked = append(h.parked, some)
		h.tally["parked"]++
	}
}

// search does what a logChecker does.
func (h *conditionHistory) search(r *request) {
	committed := h.all()[:len(h.log)]
	after := r.base()
	need := h.c.unremembered(r)
	if need.isNone() {
		return
	}
	if r.finding != nil {
		h.tally["parked twice"]++
	}
	f := &logFinding{checks: 1, through: uint64(len(committed)), locks: need.locks, unless: make([]subjects.MatchedCondition, len(r.unless))}
	newest := func(item queryItem) lockmgr.Recorder {
		if txid := newestMatch(&item, committed, max(after, h.trimmed)); txid > 0 {
			h.tally["found in the log"]++
			return lockmgr.Recorder{Txid: txid}
		}
		if after < h.trimmed {
			h.tally["trimmed"]++
			return lockmgr.Recorder{Txid: h.trimmed, Forgotten: true}
		}
		return lockmgr.Recorder{}
	}
	for _, i := range need.unknown {
		f.locks[i] = newest(r.lockItem(r.cert.Locks[i].Name))
	}
	for _, i := range need.items {
		found := newest(r.unless[i])
		f.unless[i] = subjects.MatchedCondition{Item: i, Txid: found.Txid, Forgotten: found.Forgotten}
	}
	r.finding, r.cert.Older, r.cert.Through = f, f.locks, f.through
	for i, l := range f.locks {
		if l.Forgotten && r.cert.HighWaterMark >= h.trimmed {
			h.fatalf("lock %q counts as recorded at %d at mark %d, and the log begins after %d", r.cert.Locks[i].Name, l.Txid, r.cert.HighWaterMark, h.trimmed)
		}
	}
}

// newestMatch returns the newest transaction after a txid that an item matches.
func newestMatch(item *queryItem, all []*wal.Transaction, after uint64) uint64 {
	for i := len(all); i > int(after); i-- {
		if t := all[i-1]; item.matches(t) {
			return uint64(i)
		}
	}
	return 0
}

func (h *conditionHistory) checkPassed(r *request, all []*wal.Transaction) {
	mark := r.cert.HighWaterMark
	if mark > uint64(len(all)) {
		h.fatalf("a mark of %d passes with %d transactions", mark, len(all))
	}
	for _, l := range r.cert.Locks {
		if txid := newestMatch(new(r.lockItem(l.Name)), all, mark); l.Mode != lockmgr.Append && txid > 0 {
			h.fatalf("%v lock %q passes at mark %d, although %d recorded it", l.Mode, l.Name, mark, txid)
		}
	}
	for i := range r.unless {
		if txid := newestMatch(&r.unless[i], all, mark); txid > 0 {
			h.fatalf("condition %+v passes at mark %d, although it matches %d", r.unless[i], mark, txid)
		}
	}
	h.checkSession(r, all)
	h.tally["passed"]++
	if len(r.unless) > 0 {
		h.tally["passed with a condition"]++
	}
}

// checkRefused checks a refusal. before were certified before its batch.
func (h *conditionHistory) checkRefused(j judged, all []*wal.Transaction, before int) {
	r, mark := j.r, j.r.cert.HighWaterMark
	allowForgotten := func(txid uint64, what string) {
		if mark >= h.trimmed || txid > h.trimmed {
			h.fatalf("%s counts as recorded at %d at mark %d, and the log begins after %d", what, txid, mark, h.trimmed)
		}
	}
	depends := uint64(0)
	switch {
	case j.verdict.Outcome == lockmgr.Ahead && mark > uint64(len(all)):
		return
	case slices.Contains([]lockmgr.Outcome{lockmgr.WrongSeq, lockmgr.Duplicate, lockmgr.IDReused}, j.verdict.Outcome):
		depends = h.checkNumber(j, all)
	case j.matched != nil:
		item := &r.unless[j.matched.Item]
		depends = j.matched.Txid
		if j.matched.Forgotten && h.c.recent.steps < searchSteps && depends > uint64(before) {
			h.tally["too long"]++
		} else if j.matched.Forgotten {
			allowForgotten(depends, "a condition")
		} else if depends <= mark || !item.matches(all[depends-1]) {
			h.fatalf("item %+v does not match %d, at mark %d", item, depends, mark)
		}
		h.tally["matched"]++
		if depends > uint64(before) {
			h.tally["matched in the same batch"]++
		} else if depends > uint64(len(h.log)) {
			h.tally["matched in flight"]++
		}
	case j.verdict.Outcome == lockmgr.Conflicted:
		h.tally["conflict"]++
		if r.tx.SessionSeq > 0 {
			h.tally["conflict in a session"]++
		}
		depends = j.verdict.Conflicts[0].Txid
		n, uncertain := 0, 0
		for _, l := range r.cert.Locks {
			txid := newestMatch(new(r.lockItem(l.Name)), all, max(mark, h.trimmed))
			i := slices.IndexFunc(j.verdict.Conflicts, func(c lockmgr.Conflict) bool { return c.Name == l.Name && c.Mode == l.Mode })
			switch {
			case l.Mode == lockmgr.Append:
			case i < 0 && txid > 0:
				h.fatalf("%d recorded %q, and the refusal does not name it", txid, l.Name)
			case i >= 0 && j.verdict.Conflicts[i].Forgotten:
				n++
				if r.finding != nil && r.finding.decides() {
					uncertain++ // it is refused anyway, and not looked up again
					break
				}
				allowForgotten(j.verdict.Conflicts[i].Txid, l.Name)
			case i >= 0 && j.verdict.Conflicts[i].Txid != newestMatch(new(r.lockItem(l.Name)), all, mark):
				h.fatalf("%q is named as recorded by %d, at mark %d", l.Name, j.verdict.Conflicts[i].Txid, mark)
			case i >= 0:
				n++
			}
		}
		if n != len(j.verdict.Conflicts) {
			h.fatalf("%d conflicts of %d", n, len(j.verdict.Conflicts))
		}
		if uncertain == n && !r.finding.conflicts() {
			h.fatalf("its condition matches, and it was refused for %+v, which may be none", j.verdict.Conflicts)
		}
	default:
		h.fatalf("verdict %+v", j.verdict)
	}
	if depends <= uint64(len(h.log)) {
		depends = 0
	}
	if j.verdict.DependsOn != depends {
		h.fatalf("the refusal depends on %d, want %d", j.verdict.DependsOn, depends)
	}
}
