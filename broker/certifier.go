package broker

import (
	"bytes"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/internal/invariant"
	"github.com/cantuslog/cantus/lockmgr"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// certifier decides which transactions of a partition may commit. It owns the
// lock table and, on the leader, the batches in flight: those that were
// certified and whose outcome is not known yet.
//
// A batch that certify returns is in the table until record commits it or
// rollback removes it. Nothing lies between certifying a batch and
// remembering it, so no caller can see one without the other.
//
// Four goroutines change the state. The sequencer of a tenure calls certify,
// the replica's run calls rollback before a tenure, and a trim request calls
// trimFrom. Raft's apply goroutine, through the partitionState, calls record,
// advance, forget and rebuild as it applies entries, and holds its mu
// meanwhile: a goroutine that has seen a verdict and then reads the position
// finds at least the state that the verdict depends on. The lock order is
// partitionState.mu, then certifier.mu.
type certifier struct {
	now func() time.Time
	// mayHaveID reports whether a transaction from first through last may have a
	// message id. These are all that it knows of.
	mayHaveID func(id string) (may bool, first, last uint64)
	// loadIDs is called before mayHaveID is called for some ids.
	loadIDs func(ids []string)

	mu       sync.Mutex // guards what follows
	table    *lockmgr.Manager
	given    int64            // the newest time given to a batch or a trim
	inFlight []certifiedBatch // oldest first; together all that the table has in flight
	writer   wal.BatchWriter
	recent   *recent // of the batches in flight, and some before them

	searching *natslink.Message // whose conditions are being compared
	steps     int               // that are left for it

	ids   []string              // scratch of loadOlderIDs
	where []int                 // scratch of isRemembered
	marks map[lockmgr.ID]uint64 // of park: the newest mark of each session's requests
	tx    wal.Transaction       // scratch of record
	cert  lockmgr.Transaction   // scratch of record and rebuild
}

// certifiedBatch is a batch in flight. Its bytes identify it when they come
// back as a committed entry: they hold the term, the first txid and the time,
// which no other batch has.
type certifiedBatch struct {
	data  []byte
	count int
	moves []cursorMove
}

// certification is the outcome of certifying a number of requests.
type certification struct {
	data      []byte     // the batch to propose, nil if no request passed
	first     uint64     // txid of the first request that passed
	time      int64      // of the first; each one after it has the next nanosecond
	passed    []*request // in the batch's order
	moved     []cursorMove
	notPassed []judged
	parked    []*natslink.Message // whose transactions the log has to be searched for first
}

// judged is a request with the verdict on it.
type judged struct {
	r       *request
	verdict lockmgr.Verdict
	matched *subjects.MatchedCondition // for a conflict, nil if locks are violated
	stays   *subjects.Error            // why its cursor may not move, nil unless it is refused for that
	last    uint64                     // the last txid given before the verdict
}

func newCertifier(o lockmgr.Options, now func() time.Time) *certifier {
	unknown := func(string) (may bool, first, last uint64) { return true, 1, 0 }
	return &certifier{now: now, mayHaveID: unknown, loadIDs: func([]string) {}, table: lockmgr.New(o), recent: newRecent(), marks: map[lockmgr.ID]uint64{}}
}

// certify decides on each request in turn, as the leader in a term, and puts
// those that pass into a batch. It does not decide on the requests of messages
// that it returns as parked: the log has to be searched for them first.
func (c *certifier) certify(term uint64, rs []*request) (out certification) {
	size := batchSize(rs)
	c.mu.Lock()
	defer c.mu.Unlock()
	rs, out.parked = c.park(rs)
	out.first, out.time = c.table.Last()+1, c.nextTime()
	c.searching = nil
	c.writer.BeginIn(term, out.first, out.time, size)
	for _, r := range rs {
		at := out.time + int64(c.writer.Count())
		if j := c.judge(r, at, out.passed); j.verdict.Outcome != lockmgr.Pass {
			out.notPassed = append(out.notPassed, j)
			continue
		}
		if r.items == nil {
			c.enter(r, at, &out)
		}
		for i, t := range r.items {
			c.enter(t, at+int64(i), &out)
		}
	}
	n := c.writer.Count()
	c.given = out.time + int64(n)
	if n > 0 {
		out.data = c.writer.Finish()
		c.inFlight = append(c.inFlight, certifiedBatch{out.data, n, out.moved})
		c.recent.add(recentBatch{first: out.first, count: n, data: out.data}, c.table.Committed())
	}
	return out
}

// enter adds a transaction that has passed to the batch.
func (c *certifier) enter(r *request, at int64, out *certification) {
	c.table.Enter(&r.cert, at)
	c.writer.Add(&r.tx)
	out.passed = append(out.passed, r)
	out.moved = addMove(out.moved, &r.tx, at)
}

// judge decides on a request, which follows those that have passed.
func (c *certifier) judge(r *request, at int64, passed []*request) judged {
	j := judged{r: r, verdict: c.table.Check(&r.cert, at), last: c.table.Last()}
	if r.yields(j.verdict) {
		j.verdict = lockmgr.Verdict{}
	}
	if j.verdict.Outcome == lockmgr.Pass && r.stays != nil {
		return c.stays(j)
	}
	if j.verdict.Outcome != lockmgr.Pass || len(r.unless) == 0 {
		return j
	}
	if j.matched = c.match(r, passed); j.matched == nil {
		return j
	}
	j.verdict = lockmgr.Verdict{Outcome: lockmgr.Conflicted}
	if txid := j.matched.Txid; txid > c.table.Committed() {
		j.verdict.DependsOn = txid
	}
	return j
}

// yields reports whether a verdict on a request's locks yields to that on its
// condition: the log has a match for that, and none of the locks. They only
// count as recorded because the table has forgotten more since, and what is
// refused anyway is not looked up again.
func (r *request) yields(v lockmgr.Verdict) bool {
	f := r.finding
	return v.Outcome == lockmgr.Conflicted && f != nil && f.matches() && !f.conflicts() &&
		!slices.ContainsFunc(v.Conflicts, func(c lockmgr.Conflict) bool { return !c.Forgotten })
}

// match returns the first item of a request's condition that matches, nil if
// none does.
func (c *certifier) match(r *request, passed []*request) *subjects.MatchedCondition {
	if f := r.finding; f != nil {
		for i := range f.unless {
			if f.unless[i].Txid > 0 {
				return &f.unless[i]
			}
		}
	}
	for i := range r.unless {
		base, high := r.base(), c.bound(r, &r.unless[i])
		if high <= base {
			continue
		}
		if base < c.recent.start && r.finding != nil && r.finding.checks >= maxLogChecks {
			return &subjects.MatchedCondition{Item: i, Txid: c.recent.start, Forgotten: true}
		}
		if low := max(base, r.early.through); low < c.table.Last() {
			txid, err := c.recent.find(&r.unless[i], low, high, passed, c.stepsOf(r))
			if err != nil {
				return &subjects.MatchedCondition{Item: i, Txid: c.table.Last(), Forgotten: true}
			}
			if txid > 0 {
				return &subjects.MatchedCondition{Item: i, Txid: txid}
			}
		}
		if m := r.early.matched; m != nil && m.Item == i {
			return m
		}
	}
	return nil
}

// earlyMatch is what a condition matches of the recent transactions up to
// through, before a batch begins. Nothing before them can match.
type earlyMatch struct {
	through uint64
	matched *subjects.MatchedCondition
}

// matchEarly compares a request's condition with the recent transactions. It
// reports whether that took no more steps than the request's message has: the
// log is searched otherwise, beside the certifier. If it was searched often
// enough, the condition counts as matching.
func (c *certifier) matchEarly(r *request) (ok bool) {
	r.early = earlyMatch{through: c.recent.start}
	if len(r.unless) == 0 || r.finding != nil && r.finding.decides() {
		return true
	}
	base := r.base()
	for i := range r.unless {
		high := c.bound(r, &r.unless[i])
		if high <= base {
			continue
		}
		txid, err := c.recent.find(&r.unless[i], max(base, c.recent.start), high, nil, c.stepsOf(r))
		if err != nil && (r.finding == nil || r.finding.checks < maxLogChecks) {
			return false
		}
		if err != nil {
			txid = c.table.Last()
		}
		if txid > 0 {
			r.early.matched = &subjects.MatchedCondition{Item: i, Txid: txid, Forgotten: err != nil}
			break
		}
	}
	r.early.through = c.table.Last()
	return true
}

// stepsOf returns how many steps are left to search for one more item of a
// request, which follows those of the same message.
func (c *certifier) stepsOf(r *request) *int {
	if c.searching != r.message || r.message == nil {
		c.searching, c.steps = r.message, c.recent.steps
	}
	c.steps += c.recent.steps / searchPart
	return &c.steps
}

// bound returns the last transaction that an item can match: the locks are
// recorded together up to there at most.
func (c *certifier) bound(r *request, item *queryItem) uint64 {
	last := c.table.Last()
	for _, l := range item.locks {
		last = min(last, c.table.NewestBesides(l, r.cert.Session))
	}
	return last
}

// park removes the requests of messages for which the log has to be searched,
// because they need what the certifier does not remember or takes too long to
// compare.
func (c *certifier) park(rs []*request) (rest []*request, parked []*natslink.Message) {
	c.searching = nil
	clear(c.marks)
	c.loadOlderIDs(rs)
	for _, r := range rs {
		before := c.markBefore(r)
		if len(parked) > 0 && parked[len(parked)-1] == r.message {
			continue
		}
		if !c.isRemembered(r, before) || !c.matchEarly(r) {
			parked = append(parked, r.message)
		}
	}
	if parked == nil {
		return rs, nil
	}
	gone := setOf(parked)
	for _, r := range rs {
		if !gone[r.message] {
			rest = append(rest, r)
		}
	}
	return rest, parked
}

// setOf returns the set of messages: there may be thousands of them, and more
// requests.
func setOf(ms []*natslink.Message) map[*natslink.Message]bool {
	set := make(map[*natslink.Message]bool, len(ms))
	for _, m := range ms {
		set[m] = true
	}
	return set
}

// markBefore returns the newest high-water mark of the requests before r in its
// session, in this call of certify.
func (c *certifier) markBefore(r *request) (before uint64) {
	if r.cert.Session == (lockmgr.ID{}) || c.table.Floor() == 0 {
		return 0
	}
	before = c.marks[r.cert.Session]
	c.marks[r.cert.Session] = max(before, r.cert.HighWaterMark)
	return before
}

// isRemembered reports whether the certifier can decide on a request. before is
// the newest mark of those before it in its session. Once they have entered,
// the table knows that the session was alone after that mark, and may forget
// what it knows of the time before.
func (c *certifier) isRemembered(r *request, before uint64) bool {
	switch {
	case r.message == nil:
		return true
	case c.unknownID(r) > 0:
		return false
	case len(r.unless) == 0 && r.cert.HighWaterMark >= c.table.Floor():
		return true
	}
	f := r.finding
	if f != nil && (f.checks >= maxLogChecks || f.decides()) {
		return true
	}
	if floor := c.table.Floor(); before > r.cert.HighWaterMark && r.cert.HighWaterMark < floor && (f == nil || f.through < floor) {
		return false
	}
	c.where = c.table.Unknown(c.where[:0], &r.cert)
	return len(c.where) == 0 && !slices.ContainsFunc(r.unless, func(i queryItem) bool { return c.isUnremembered(r, &i) })
}

// isUnremembered reports whether an item of a request may match a transaction
// that is not among the recent ones.
func (c *certifier) isUnremembered(r *request, item *queryItem) bool {
	base := r.base()
	return base < c.recent.start && c.bound(r, item) > base
}

// unremembered is what a certifier does not remember for a request.
type unremembered struct {
	locks   []lockmgr.Recorder // for each lock its newest recorder, if the certifier knows it
	unknown []int              // the numbers of checked locks that it does not know
	items   []int              // the numbers of items that may match
	id      uint64             // the transaction up to which the log may have the message id, 0 if that is known
}

func (u *unremembered) isNone() bool { return len(u.unknown)+len(u.items) == 0 && u.id == 0 }

// unremembered returns what is to be looked up in the log to decide on a
// request of a message that park has removed.
func (c *certifier) unremembered(r *request) (u unremembered) {
	c.mu.Lock()
	defer c.mu.Unlock()
	u.id = c.unknownID(r)
	if f := r.finding; f != nil && f.decides() {
		u.locks = f.locks
		return u
	}
	u.unknown = c.table.Unknown(nil, &r.cert)
	for i := range r.unless {
		if c.bound(r, &r.unless[i]) > r.base() { // the recent transactions may have one, too
			u.items = append(u.items, i)
		}
	}
	u.locks = make([]lockmgr.Recorder, len(r.cert.Locks))
	for i, l := range r.cert.Locks {
		if l.Mode == lockmgr.Append || slices.Contains(u.unknown, i) {
			continue
		}
		if newest := c.table.RecorderOf(&r.cert, i); newest.Txid > r.cert.HighWaterMark {
			u.locks[i] = newest
		}
	}
	return u
}

// nextTime returns the current time or, if that is not after every time given
// or applied before, the nanosecond after the last of them. mu is held.
func (c *certifier) nextTime() int64 {
	return max(c.now().UnixNano(), c.table.Time()+1, c.given+1)
}

// batchSize returns about how many bytes a batch of all requests has.
func batchSize(rs []*request) int {
	n := 64
	for _, r := range rs {
		n += recordBytes(&r.tx)
		for _, t := range r.items {
			n += recordBytes(&t.tx)
		}
	}
	return n
}

// repeats looks at the message ids of requests without certifying them, as
// certify would. The verdict on one that is not a repeat is lockmgr.Pass.
func (c *certifier) repeats(rs []*request) []judged {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.nextTime()
	out := make([]judged, len(rs))
	for i, r := range rs {
		out[i] = judged{r: r, verdict: c.table.Repeat(&r.cert, now)}
	}
	return out
}

// record applies a committed batch, and returns the last txid committed then
// and the cursors that move with the batch. If it is the oldest batch in
// flight, its transactions are in the table already. Any other means that
// nothing in flight commits as it was certified.
func (c *certifier) record(data []byte, b wal.Batch) (committed uint64, moves []cursorMove, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.inFlight) > 0 && bytes.Equal(c.inFlight[0].data, data) {
		for range c.inFlight[0].count {
			c.table.Commit()
		}
		moves = c.inFlight[0].moves
		c.inFlight = slices.Delete(c.inFlight, 0, 1)
		return c.table.Committed(), moves, nil
	}
	c.revert()
	records := b.Read()
	for records.Next(&c.tx) {
		lockTransaction(&c.tx, &c.cert)
		c.table.Record(c.tx.Txid, c.tx.Time, &c.cert)
		moves = addMove(moves, &c.tx, c.tx.Time)
	}
	c.recent.reset(c.table.Committed())
	return c.table.Committed(), moves, records.Err()
}

// rollback removes every transaction in flight from the table. A batch that
// commits all the same is then recorded from its bytes.
func (c *certifier) rollback() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.revert()
	c.recent.reset(c.table.Committed())
	left := c.table.Stats().InFlight
	invariant.TenureBeginsEmpty.Check(left == 0, uint64(left), 0)
}

func (c *certifier) revert() {
	if len(c.inFlight) == 0 {
		return
	}
	c.table.Rollback(c.table.Committed() + 1)
	clear(c.inFlight)
	c.inFlight = c.inFlight[:0]
}

// rebuild replaces the table by that of a log whose last committed transaction
// and time are given, and which keeps transactions from first on. walk passes
// the committed transactions to older, newest first, until it returns false.
func (c *certifier) rebuild(committed uint64, at int64, first uint64, walk func(older func(*wal.Transaction) bool) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inFlight = nil
	c.table.Reset(committed, at)
	err := walk(func(t *wal.Transaction) bool {
		lockTransaction(t, &c.cert)
		return c.table.RecordOlder(t.Txid, t.Time, &c.cert)
	})
	if err != nil {
		return err
	}
	c.table.Rebuilt(first)
	c.recent.reset(committed)
	return nil
}

// last returns the newest transaction, in flight or committed.
func (c *certifier) last() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.table.Last()
}

// advance moves the partition's time forward, as a trim does.
func (c *certifier) advance(at int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.table.Advance(at)
}

// forget forgets locks and message ids recorded before a txid, at which the log
// begins now.
func (c *certifier) forget(first uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.table.Forget(first)
}

// trimFrom returns the txid that a trim may keep the log from: keep, or the
// oldest transaction whose message id still counts, if that is lower. held is
// that transaction then, and else 0. at is the time to record the trim with,
// and the time at which the id counts.
func (c *certifier) trimFrom(keep uint64) (from, held, committed uint64, at int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at = c.nextTime()
	c.given = at
	if oldest := c.table.OldestID(at); oldest > 0 && oldest < keep {
		keep, held = oldest, oldest
	}
	return keep, held, c.table.Committed(), at
}

// oldestID returns the oldest transaction whose message id counts now, 0 if
// none does.
func (c *certifier) oldestID() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.table.OldestID(c.nextTime())
}

// time returns the partition's time, in Unix nanoseconds: that of its newest
// committed transaction or trim.
func (c *certifier) time() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.table.Time()
}

// newest returns the newest committed transaction that recorded a lock which
// overlaps name. See [lockmgr.Manager.Newest].
func (c *certifier) newest(name string) (txid uint64, exact bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.table.Newest(name)
}

func (c *certifier) stats() lockmgr.Stats {
	stats, _ := c.figures()
	return stats
}

// figures returns what the lock table holds, and how many batches are in
// flight.
func (c *certifier) figures() (table lockmgr.Stats, batches int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.table.Stats(), len(c.inFlight)
}

// lockTransaction sets c to the part of a stored transaction that the table
// records. Names alias t. The mark is the one that its locks were checked with.
func lockTransaction(t *wal.Transaction, c *lockmgr.Transaction) {
	c.Locks = c.Locks[:0]
	for _, l := range t.Locks {
		c.Locks = append(c.Locks, lockmgr.Lock{Mode: lockModes[l.Mode], Name: text(l.Name)})
	}
	c.HighWaterMark, c.HasHighWaterMark = t.HighWaterMark, t.HasHighWaterMark
	c.Fingerprint = 0
	setIDs(t, c)
	if t.Atomic.Index > 0 {
		c.ID = lockmgr.ID{} // it is the first transaction's
	}
	if c.ID != (lockmgr.ID{}) {
		c.Fingerprint = t.Atomic.Fingerprint
		if t.Atomic.Size == 0 {
			c.Fingerprint = lockmgr.Fingerprint(t.Payload)
		}
	}
}

// setIDs sets the message id and the session that a transaction is certified
// with. In a session its number stands for a message id.
func setIDs(t *wal.Transaction, c *lockmgr.Transaction) {
	c.ID, c.Session, c.SessionSeq = lockmgr.HashID(text(t.MsgID)), lockmgr.ID{}, t.SessionSeq
	if t.SessionSeq > 0 {
		c.Session, c.ID = lockmgr.HashID(text(t.Session)), lockmgr.HashID(numberText(text(t.Session), t.SessionSeq))
	}
}

// numberText returns the text that identifies a number in a session, as a
// message id identifies a transaction. No message id equals it: they hold no
// NUL.
func numberText(session string, seq uint64) string {
	return session + "\x00" + strconv.FormatUint(seq, 10)
}

var lockModes = [...]lockmgr.Mode{wal.ReadLock: lockmgr.Read, wal.WriteLock: lockmgr.Write, wal.AppendLock: lockmgr.Append}
