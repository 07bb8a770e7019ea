package lockmgr_test

import (
	"flag"
	"math/rand/v2"
	"reflect"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/lockmgr"
)

var (
	histories = flag.Int("histories", 0, "random histories to run; 0 is as many as the tier of tests wants")
	seed      = flag.Uint64("seed", 0, "run the random history of this seed only")
)

// names overlap often, share prefixes often, and have every relation that two
// names can have.
var names = []string{
	"a", "b", "ab", "a.a", "a.b", "a.c", "b.a", "ab.a", "a.b.a", "a.b.b", "a.ba.a", "b.a.a.a",
	">", "a.>", "b.>", "a.b.>", "a.b.b.>", "b.a.>",
}

// TestRandomHistories runs a Manager and a twin through random histories. It
// compares every verdict, and often the whole state.
func TestRandomHistories(t *testing.T) {
	if *seed != 0 {
		newHistory(t, *seed).run()
		return
	}
	// Each history leaves garbage and keeps nothing: collect rarely.
	defer debug.SetGCPercent(debug.SetGCPercent(2000))
	tally := map[string]int{}
	count := *histories
	if count == 0 {
		count = testkit.Sized(5_000, 100_000, 1_000_000)
	}
	for i := range count {
		h := newHistory(t, uint64(i)+1)
		h.tally = tally
		h.run()
	}
	t.Logf("%v", tally)
	for _, what := range []string{
		"pass", "duplicate", "id_reused", "ahead", "wrong_last", "conflict",
		"floor", "depends", "next of a session", "another of a session", "conflict of a session", "own lock", "session forgotten", "id looked up", "id found", "alone", "alone across a trim", "looked up", "rollback", "rollback of some", "rebuild", "rebuild cut short", "forget", "advance", "foreign",
	} {
		if count >= 1000 && tally[what] < count/100 {
			t.Errorf("%q came up %d times only in %d histories", what, tally[what], count)
		}
	}
}

type history struct {
	t     *testing.T
	seed  uint64
	rand  *rand.Rand
	m     *lockmgr.Manager
	w     *twin
	names []string
	// sessions says that some transactions are of a session.
	sessions bool
	marks    map[lockmgr.ID]uint64 // that the sessions stay at
	alone    bool                  // one session has names of its own, mostly
	now      int64
	tally    map[string]int
}

func newHistory(t *testing.T, seed uint64) *history {
	r := rand.New(rand.NewPCG(seed, 0))
	opts := lockmgr.Options{Locks: 1 + r.IntN(6), IDs: 1 + r.IntN(4), Sessions: 1 + r.IntN(3), IDWindow: time.Duration(1 + r.IntN(30))}
	opts.IDsInLog = r.IntN(2) == 0
	h := &history{t: t, seed: seed, rand: r, tally: map[string]int{}, marks: map[lockmgr.ID]uint64{}}
	h.m, h.w = lockmgr.New(opts), &twin{opts: opts, first: 1, kept: 1}
	h.sessions = r.IntN(2) == 0
	h.alone = h.sessions && r.IntN(3) > 0
	// Half of the histories use a few names only, so that locks meet more
	// often.
	h.names = names
	if r.IntN(2) == 0 {
		h.names = make([]string, 5)
		for i := range h.names {
			h.names[i] = names[r.IntN(len(names))]
		}
	}
	return h
}

func (h *history) run() {
	steps := 10 + h.rand.IntN(25)
	if h.alone {
		steps += 20
	}
	for range steps {
		switch n := h.rand.IntN(100); {
		case n < 55:
			h.certify()
		case n < 80:
			h.record()
		case n < 86:
			h.foreign()
		case n < 91:
			h.rollback()
		case n < 93:
			h.forget()
		case n < 94:
			h.advance()
		case n < 98:
			h.rebuild()
		default:
			h.compare()
		}
		if h.m.Committed() != h.w.committed() || h.m.Last() != h.w.last() {
			h.fail("committed %d, last %d; want %d, %d", h.m.Committed(), h.m.Last(), h.w.committed(), h.w.last())
		}
	}
	h.compare()
	h.rebuild()
	for range 3 { // what the rebuilt one forgets next
		h.foreign()
	}
	h.compare()
}

func (h *history) fail(format string, args ...any) {
	h.t.Helper()
	h.t.Fatalf("seed %d: "+format, append([]any{h.seed}, args...)...)
}

func (h *history) transaction() *lockmgr.Transaction {
	r := h.rand
	tx := &lockmgr.Transaction{Fingerprint: uint64(r.IntN(2))}
	for range r.IntN(4) {
		tx.Locks = append(tx.Locks, lockmgr.Lock{Mode: lockmgr.Mode(r.IntN(3)), Name: h.names[r.IntN(len(h.names))]})
	}
	if r.IntN(10) > 0 {
		back := min(uint64(r.IntN(4)), h.w.last())
		tx.HighWaterMark, tx.HasHighWaterMark = h.w.last()-back, true
		if r.IntN(30) == 0 {
			tx.HighWaterMark = h.w.last() + 1
		}
	}
	if r.IntN(8) == 0 {
		tx.ExpectedLast, tx.HasExpectedLast = h.w.last()+1-min(uint64(r.IntN(5)), h.w.last()), true
	}
	if r.IntN(3) == 0 {
		tx.ID = lockmgr.ID{1 + byte(r.IntN(6))}
	}
	if h.sessions && r.IntN(3) > 0 {
		h.addSession(tx)
	}
	if h.alone {
		h.leaveAlone(tx)
	}
	return tx
}

// leaveAlone gives one session names of its own, and others to others, with
// exceptions.
func (h *history) leaveAlone(tx *lockmgr.Transaction) {
	names := []string{"b", "ab", "b.a", "ab.a", "b.a.a.a", "b.>", "b.a.>"}
	if tx.Session == (lockmgr.ID{1}) {
		names, tx.HasExpectedLast = []string{"a", "a.a", "a.b", "a.b.a", "a.>"}[h.seed%3:][:3], false
	}
	for i := range tx.Locks {
		if h.rand.IntN(12) > 0 {
			tx.Locks[i].Name = names[h.rand.IntN(len(names))]
		}
	}
}

// addSession makes a transaction one of a session, the next of it in most
// cases.
func (h *history) addSession(tx *lockmgr.Transaction) {
	r := h.rand
	tx.Session, tx.SessionSeq = lockmgr.ID{1 + byte(r.IntN(4))}, 1+uint64(r.IntN(3))
	if h.alone && r.IntN(2) == 0 {
		tx.Session = lockmgr.ID{1}
	}
	known, _ := h.w.sessions()
	for _, s := range append(known, h.w.inFlightSessions()...) {
		if s.Session == tx.Session && r.IntN(5) > 0 {
			tx.SessionSeq = s.Seq + 1
		}
	}
	// Most stay at the mark that the session has begun with.
	if at, ok := h.marks[tx.Session]; ok && tx.SessionSeq > 1 && r.IntN(4) > 0 {
		tx.HighWaterMark, tx.HasHighWaterMark = at, true
	} else if !ok || tx.SessionSeq == 1 {
		h.marks[tx.Session] = tx.HighWaterMark
	}
}

// lookUp adds to a transaction what the log has of the locks that the Manager
// does not know, as far as it is committed and was not trimmed.
func (h *history) lookUp(tx *lockmgr.Transaction) {
	unknown := h.m.Unknown(nil, tx)
	h.checkUnknown(tx, unknown)
	if len(unknown) == 0 || h.rand.IntN(3) == 0 {
		return
	}
	tx.Older, tx.Through = make([]lockmgr.Recorder, len(tx.Locks)), h.w.committed()
	for _, i := range unknown {
		found := &tx.Older[i]
		found.Txid = h.w.newestOf(tx.Locks[i].Name, max(tx.HighWaterMark, h.w.first-1), h.w.committed(), tx.Session)
		if found.Txid == 0 && h.w.first-1 > tx.HighWaterMark {
			*found = lockmgr.Recorder{Txid: h.w.first - 1, Forgotten: true}
		}
	}
	h.tally["looked up"]++
}

// checkUnknown checks that nothing is looked up in the log that a session can
// know without: what it has recorded and checked above the floor, the last time
// with a mark that was not higher.
func (h *history) checkUnknown(tx *lockmgr.Transaction, unknown []int) {
	if tx.Session == (lockmgr.ID{}) {
		return
	}
	floor := h.m.Stats().Floor
	for i, l := range tx.Locks {
		if l.Mode == lockmgr.Append || tx.HighWaterMark >= floor || h.w.ever(l.Name, floor, tx.Session) > 0 {
			continue
		}
		looksUp := slices.Contains(unknown, i)
		own := h.w.lastOwn(l.Name, tx.Session)
		switch {
		case own > floor && h.w.at(own).tx.HighWaterMark <= tx.HighWaterMark:
			if looksUp {
				h.fail("%+v has %s looked up, which its session recorded at %d: %+v", *tx, l.Name, own, *h.w.at(own).tx)
			}
			h.tally["alone"]++
			if tx.HighWaterMark < h.w.first-1 {
				h.tally["alone across a trim"]++
			}
		case looksUp && h.w.ever(l.Name, tx.HighWaterMark, tx.Session) == 0:
			h.tally["looked up in vain"]++
		}
	}
}

func (h *history) certify() {
	tx := h.transaction()
	h.now += 1 + h.rand.Int64N(5)
	h.lookUpID(tx)
	h.lookUp(tx)
	want := h.w.certify(tx, h.now)
	got := h.m.Certify(tx, h.now)
	if !reflect.DeepEqual(got, want) {
		h.fail("%+v at %d:\n got %+v\nwant %+v", *tx, h.now, got, want)
	}
	h.checkTruth(tx, got)
	h.tally[got.Outcome.String()]++
	h.countSession(tx, got)
	if got.DependsOn > 0 {
		h.tally["depends"]++
	}
	if got.Outcome == lockmgr.Pass {
		h.w.inFlight = append(h.w.inFlight, logged{h.now, tx})
	}
}

// lookUpID looks in the log for a message id as long as the Manager does not
// know whether it is there. Meanwhile transactions may commit.
func (h *history) lookUpID(tx *lockmgr.Transaction) {
	for h.m.UnknownID(tx) > 0 {
		through := h.m.UnknownID(tx)
		through += uint64(h.rand.Int64N(int64(h.w.committed() - through + 1)))
		tx.Earlier, tx.EarlierThrough = h.w.use(tx.ID, through), through
		h.tally["id looked up"]++
		if tx.Earlier.Txid > 0 {
			h.tally["id found"]++
		}
		if h.rand.IntN(3) == 0 {
			h.record()
		}
		if h.rand.IntN(20) == 0 {
			h.forget()
		}
	}
}

// countSession counts what a verdict on a transaction of a session shows.
func (h *history) countSession(tx *lockmgr.Transaction, v lockmgr.Verdict) {
	switch {
	case tx.Session == (lockmgr.ID{}):
	case v.Outcome == lockmgr.WrongSeq && !v.HasSessionSeq:
		h.tally["session forgotten"]++
	case v.Outcome == lockmgr.WrongSeq:
		h.tally["another of a session"]++
	case v.Outcome == lockmgr.Conflicted:
		h.tally["conflict of a session"]++
	case v.Outcome == lockmgr.Pass:
		h.tally["next of a session"]++
		for _, l := range tx.Locks {
			if l.Mode != lockmgr.Append && h.w.ever(l.Name, tx.HighWaterMark, lockmgr.ID{}) > 0 {
				h.tally["own lock"]++
			}
		}
	}
}

// checkTruth compares a verdict with everything that was ever recorded: no
// conflict is missed, and none is false for a writer at or past the floor.
func (h *history) checkTruth(tx *lockmgr.Transaction, v lockmgr.Verdict) {
	if v.Outcome == lockmgr.Pass {
		for _, l := range tx.Locks {
			if txid := h.w.ever(l.Name, 0, tx.Session); l.Mode != lockmgr.Append && txid > tx.HighWaterMark {
				h.fail("%+v passed, %s was recorded by %d", *tx, l.Name, txid)
			}
		}
	}
	floor := h.m.Stats().Floor
	for _, c := range v.Conflicts {
		switch txid := h.w.ever(c.Name, 0, tx.Session); {
		case tx.HighWaterMark >= floor && txid != c.Txid:
			h.fail("%+v met %+v, %s was recorded by %d", *tx, c, c.Name, txid)
		case txid > c.Txid:
			h.fail("%+v met %+v, too old: %s was recorded by %d", *tx, c, c.Name, txid)
		case txid < c.Txid:
			h.tally["floor"]++
		}
	}
}

func (h *history) record() {
	for range h.rand.IntN(3) {
		if len(h.w.inFlight) == 0 {
			return
		}
		l := h.w.inFlight[0]
		if txid := h.m.Commit(); txid != h.w.committed()+1 {
			h.fail("committed %d, want %d", txid, h.w.committed()+1)
		}
		h.w.log, h.w.inFlight = append(h.w.log, l), h.w.inFlight[1:]
	}
}

// foreign records transactions that this Manager never certified, like a
// follower. Others have, so those of sessions have no conflict. Ids repeat
// sooner than the window allows there, which must not matter.
func (h *history) foreign() {
	h.m.Rollback(h.m.Committed() + 1)
	h.w.inFlight = nil
	h.now += 1 + h.rand.Int64N(5)
	l := logged{h.now, h.transaction()}
	if tx := l.tx; tx.Session != (lockmgr.ID{}) && slices.ContainsFunc(tx.Locks, func(l lockmgr.Lock) bool { return l.Mode != lockmgr.Append }) {
		tx.HighWaterMark, tx.HasHighWaterMark = min(tx.HighWaterMark, h.w.last()), true
		for _, l := range tx.Locks {
			if l.Mode != lockmgr.Append {
				tx.HighWaterMark = max(tx.HighWaterMark, h.w.ever(l.Name, 0, tx.Session))
			}
		}
	}
	h.m.Record(h.w.committed()+1, l.time, l.tx)
	h.w.log = append(h.w.log, l)
	h.tally["foreign"]++
}

func (h *history) rollback() {
	from := h.w.last() + 1 - min(h.w.last(), uint64(h.rand.IntN(5)))
	h.m.Rollback(from)
	if keep := max(from, h.w.committed()+1) - h.w.committed() - 1; keep < uint64(len(h.w.inFlight)) {
		h.w.inFlight = h.w.inFlight[:keep]
		h.tally["rollback"]++
		if keep > 0 {
			h.tally["rollback of some"]++
		}
	}
	h.compare()
}

func (h *history) forget() {
	if h.w.committed() == 0 {
		return
	}
	first := h.w.committed() + 2 - min(h.w.committed(), uint64(h.rand.IntN(6)))
	h.m.Forget(first)
	first = min(first, h.w.committed()+1)
	h.w.first, h.w.kept = max(h.w.first, first), max(h.w.kept, first)
	h.tally["forget"]++
	h.compare()
}

// advance moves the time on, sometimes past what is in flight.
func (h *history) advance() {
	if h.rand.IntN(2) == 0 {
		h.now += h.rand.Int64N(40)
	}
	h.w.time = max(h.w.time, h.now)
	h.m.Advance(h.w.time)
	h.tally["advance"]++
	h.compare()
}

// rebuild builds the state anew from the log, and continues with it.
func (h *history) rebuild() {
	h.w.inFlight = nil
	h.w.kept = h.w.first // the log begins there, whatever it was
	stop := h.w.first
	if h.rand.IntN(4) == 0 && h.w.committed() > 0 {
		// A walk that stops early is a trim there, which the twin can do too.
		stop = max(stop, h.w.committed()-min(h.w.committed()-1, uint64(h.rand.IntN(5))))
	}
	more := stop > h.w.first && rebuild(h.m, h.w.log, h.w.time, h.w.first, stop) == int(h.w.committed()-stop+1)
	h.w.walked = 0
	if more {
		h.w.first = stop
		h.tally["rebuild cut short"]++
	} else {
		n := rebuild(h.m, h.w.log, h.w.time, h.w.first, h.w.first)
		h.w.walked = h.w.committed() - uint64(n) + 1
		h.tally["rebuild"]++
	}
	h.compare()
}

// compare compares the whole state with the twin's.
func (h *history) compare() {
	h.t.Helper()
	got := lockmgr.StateOf(h.m)
	want := lockmgr.State{Committed: h.w.committed(), Last: h.w.last(), IDs: h.w.ids()}
	want.Locks, want.Floor = h.w.locks()
	want.Sessions, want.SessionFloor = h.w.sessions()
	want.InFlightSessions = h.w.inFlightSessions()
	want.Time = h.w.now()
	if txid := h.m.OldestID(h.now); txid != h.w.oldestID(h.now) {
		h.fail("the oldest id that counts at %d is of txid %d, want %d", h.now, txid, h.w.oldestID(h.now))
	}
	for txid := h.w.last(); txid > h.w.committed(); txid-- {
		want.InFlightIDs = addID(want.InFlightIDs, txid, h.w.at(txid))
		locks := h.w.at(txid).tx.Locks
		for i := len(locks) - 1; i >= 0; i-- {
			if locks[i].Mode != lockmgr.Read && !tracked(want.InFlightLocks, locks[i].Name) {
				want.InFlightLocks = append(want.InFlightLocks, lockmgr.TrackedLock{Name: locks[i].Name, Txid: txid})
			}
		}
	}
	want.InFlightLocks = h.w.withOwners(want.InFlightLocks, want.Floor)
	if !got.Equal(want, false) || got.SessionFloor != want.SessionFloor || len(got.Sessions) != len(want.Sessions) {
		h.fail("state:\n got %+v\nwant %+v", got, want)
	}
	stats := lockmgr.Stats{
		Locks: len(want.Locks), Capacity: h.w.opts.Locks, Floor: want.Floor,
		IDs: len(want.IDs), Sessions: len(want.Sessions), InFlight: len(h.w.inFlight),
	}
	if got := h.m.Stats(); got != stats {
		h.fail("stats %+v, want %+v", got, stats)
	}
	name := h.names[h.rand.IntN(len(h.names))]
	txid, exact := h.m.Newest(name)
	i := slices.IndexFunc(want.Locks, func(l lockmgr.TrackedLock) bool { return overlap(l.Name, name) })
	if i < 0 && (exact || txid != want.Floor) || i >= 0 && (!exact || txid != want.Locks[i].Txid) {
		h.fail("newest of %s: %d, %v", name, txid, exact)
	}
	session := lockmgr.ID{byte(h.rand.IntN(5))}
	besides, _ := h.w.besides(name, want.Locks, want.Floor, session)
	if got := h.m.NewestBesides(name, session); got != besides {
		h.fail("newest of %s besides session %d: %d, want %d", name, session[0], got, besides)
	}
	if err := lockmgr.Check(h.m); err != nil {
		h.fail("%v", err)
	}
}

func tracked(locks []lockmgr.TrackedLock, name string) bool {
	return slices.ContainsFunc(locks, func(l lockmgr.TrackedLock) bool { return l.Name == name })
}
