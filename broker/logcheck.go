package broker

import (
	"cmp"
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/lockmgr"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// logChecker looks in the log for what conflicts with transactions whose
// high-water mark is older than what the certifier remembers. The sequencer
// gives it their messages, and gets them back with what the log has up to a
// txid. From there on the certifier decides, as always.
type logChecker struct {
	batchSubject string
	queue        *queue // messages to look at
	back         *queue // where they go then, the sequencer's
	refusals     *refusals
	certifier    *certifier
	reader       *reader
	limits       messageLimit
	most         int // messageBytes, but in tests
}

// messageBytes is about how much of the log is searched for a message at a
// time, in all lookups. What is left then counts as conflicting: other messages
// wait.
const messageBytes = 1 << 30

// maxLogChecks is how often a message is looked at before it counts what the
// certifier does not remember as conflicting. Each time the part of the log
// that is left is what was committed during the last.
const maxLogChecks = 8

// logNote is the note on a message that was looked at.
type logNote struct {
	checks   int
	scanned  scanned
	findings []*logFinding // by the transaction's index in the message, one for an atomic batch, nil for one that needs none
}

// of returns the finding for a transaction, nil without one.
func (n *logNote) of(index int) *logFinding {
	if n == nil {
		return nil
	}
	return n.findings[index]
}

// logFinding is what the log has of a transaction's checked locks and of its
// condition, after its mark and up to txid through, and of its message id, up
// to txid idThrough.
type logFinding struct {
	checks    int
	earlier   lockmgr.Use // of the message id
	idThrough uint64
	through   uint64
	locks     []lockmgr.Recorder          // for each lock
	unless    []subjects.MatchedCondition // for each item; its Txid is 0 if it does not match
}

// apply gives the finding, if there is one, to the certification of its
// transaction.
func (f *logFinding) apply(t *lockmgr.Transaction) {
	if f == nil {
		return
	}
	t.Older, t.Through = f.locks, f.through
	t.Earlier, t.EarlierThrough = f.earlier, f.idThrough
}

// decides reports whether the transaction is refused whatever comes after
// through.
func (f *logFinding) decides() bool { return f.conflicts() || f.matches() }

// conflicts reports whether a lock decides that.
func (f *logFinding) conflicts() bool {
	return slices.ContainsFunc(f.locks, func(l lockmgr.Recorder) bool { return l.Txid > 0 })
}

// matches reports whether the condition does.
func (f *logFinding) matches() bool {
	return slices.ContainsFunc(f.unless, func(m subjects.MatchedCondition) bool { return m.Txid > 0 })
}

// run looks at messages until ctx ends.
func (c *logChecker) run(ctx context.Context) {
	for c.queue.wait(ctx) {
		for _, m := range c.queue.take(arenaBlock) {
			err := c.check(ctx, m)
			switch {
			case err == nil, ctx.Err() != nil, errors.Is(err, wal.ErrTrimmed): // is looked at again
				m.Requeued = time.Now()
				c.back.putOrReject(m, c.refusals)
			case errors.Is(err, errScansBusy):
				c.refusals.rejectBusy(m)
			default:
				c.refusals.reject(m, wireError(err))
			}
		}
	}
}

// check looks at the transactions of a message and sets its note.
func (c *logChecker) check(ctx context.Context, m *natslink.Message) error {
	last, _ := m.Note.(*logNote)
	note := &logNote{checks: 1}
	if last != nil {
		note.checks += last.checks
	}
	if err := c.addAll(ctx, m, last, note); err != nil {
		return err
	}
	note.scanned = scanned{}
	m.Note = note
	return nil
}

// addAll adds the findings for all transactions of a message to a note. last is
// the note of the check before.
func (c *logChecker) addAll(ctx context.Context, m *natslink.Message, last, note *logNote) error {
	limit := maxTransaction(c.limits.MaxPayload())
	whole := &request{message: m, finding: last.of(0)}
	if m.Subject != c.batchSubject {
		return c.add(ctx, note, whole, whole.decode(m.Header, m.Payload, limit))
	}
	h, refused := decodeBatchHeader(m, whole)
	items, bad := parseBatch(m.Payload, maxBatch(c.limits.MaxPayload()))
	if refused = cmp.Or(refused, bad); refused != nil {
		return refused
	}
	if h.atomic {
		return c.add(ctx, note, whole, whole.decodeAtomic(items, limit, func() *request { return new(request) }))
	}
	for i := range items.count {
		header, payload := items.next()
		r := &request{message: m, finding: last.of(i)}
		if err := c.add(ctx, note, r, r.decode(header, payload, limit)); err != nil {
			return err
		}
	}
	return nil
}

// add adds the finding for the next request of a message to its note. The
// request has that of the check before. One that was refused when it was
// decoded needs none: the sequencer refuses it again.
func (c *logChecker) add(ctx context.Context, note *logNote, r *request, refused *subjects.Error) error {
	note.findings = append(note.findings, r.finding)
	if refused != nil {
		return nil //nolint:nilerr // it is refused when the sequencer decodes it
	}
	at := c.reader.position()
	if at.restoring {
		return nil
	}
	need := c.certifier.unremembered(r)
	if need.isNone() {
		return nil
	}
	f := &logFinding{checks: note.checks, through: at.mark, locks: need.locks, unless: make([]subjects.MatchedCondition, len(r.unless))}
	if last := r.finding; last != nil {
		f.earlier, f.idThrough = last.earlier, last.idThrough
		if last.decides() {
			f.through, f.unless = last.through, last.unless
		}
	}
	note.findings[len(note.findings)-1] = f
	if need.id > 0 {
		if err := c.findID(ctx, at, note, r, need.id, f); err != nil {
			return err
		}
	}
	return c.addNeeded(ctx, at, note, r, need, f)
}

// addNeeded adds to a finding what the log has of locks and conditions.
func (c *logChecker) addNeeded(ctx context.Context, at position, note *logNote, r *request, need unremembered, f *logFinding) error {
	after := r.base()
	for _, i := range need.unknown {
		found, err := c.newest(ctx, at, &note.scanned, queryItem{locks: []string{r.cert.Locks[i].Name}, besides: text(r.tx.Session)}, after)
		if err != nil {
			return err
		}
		f.locks[i] = found
	}
	for _, i := range need.items {
		found, err := c.newest(ctx, at, &note.scanned, r.unless[i], after)
		if err != nil {
			return err
		}
		f.unless[i] = subjects.MatchedCondition{Item: i, Txid: found.Txid, Forgotten: found.Forgotten}
	}
	return nil
}

// newest returns the newest transaction after a txid that an item matches. What
// can't be looked at, because it was trimmed or because there is too much of
// it, counts as matching.
func (c *logChecker) newest(ctx context.Context, at position, s *scanned, item queryItem, after uint64) (lockmgr.Recorder, error) {
	q := query{items: []queryItem{item}, fromTime: math.MinInt64}
	low := max(after+1, at.first)
	if low > at.mark {
		return lockmgr.Recorder{}, nil
	}
	if err := ctx.Err(); err != nil {
		return lockmgr.Recorder{}, err // a lookup that meets no transaction would not end
	}
	if s.bytes > c.most {
		return lockmgr.Recorder{Txid: at.mark, Forgotten: true}, nil
	}
	s.bytes += seekCost
	txid, next, err := c.reader.findNewest(ctx, at, &q, at.mark, low, s)
	switch {
	case err != nil || txid > 0:
		return lockmgr.Recorder{Txid: txid}, err
	case next >= low:
		return lockmgr.Recorder{Txid: next, Forgotten: true}, nil
	case low > after+1:
		return lockmgr.Recorder{Txid: low - 1, Forgotten: true}, nil
	}
	return lockmgr.Recorder{}, nil
}

// findID adds to a finding the newest use of a request's message id in the log,
// up to a transaction at least. Unlike a lock, an id that can't be looked up
// decides nothing: the message is refused.
func (c *logChecker) findID(ctx context.Context, at position, note *logNote, r *request, through uint64, f *logFinding) error {
	id := text(r.tx.MsgID)
	indexed := c.reader.indexer.through()
	refuse := func(why string) error {
		return subjects.Errorf(subjects.Unavailable, "whether message id %q was used before can't be looked up now: %s (the index has transactions up to %d of %d): send again",
			id, why, indexed, at.mark)
	}
	switch s := &note.scanned; {
	case note.checks > maxLogChecks:
		return refuse("others are committed faster than the log is searched")
	case s.bytes > c.most:
		return refuse("the message has too many that take a search of the log")
	}
	note.scanned.bytes += seekCost
	// What was committed since the position was read is not looked at.
	through = min(max(through, indexed), at.mark)
	use, complete, err := c.reader.findUse(ctx, at, id, through, &note.scanned)
	if err != nil {
		return err
	}
	if !complete {
		return refuse("too much of the log is not in the index")
	}
	f.earlier, f.idThrough = use, through
	return nil
}
