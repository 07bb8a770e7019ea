package broker

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/broker/internal/traces"
	"github.com/cantuslog/cantus/lockmgr"
	"github.com/cantuslog/cantus/subjects"
)

const (
	// batchCount and batchBytes bound a batch. A lone transaction may be
	// larger.
	batchCount = 4096
	batchBytes = 1 << 20
)

// sequencer is the first stage of a tenure: it certifies and proposes.
type sequencer struct {
	id           int // the partition, by the cluster's numbers
	partition    int // as clients see it
	partitions   int
	names        subjects.Names
	term         uint64
	direct       string // subject of appends without a key
	batchSubject string // subject of batch messages

	queue          *queue
	certifier      *certifier
	cursors        *cursorOrder
	inflight       *inflightLimit // of the node's batches in flight
	propose        func(data []byte) proposal
	rejected       func() error // why nothing is stored now, nil if it is
	countRefused   func(e *subjects.Error, n int)
	limits         messageLimit
	certified      chan<- *batch
	slots          chan struct{}                     // of the partition's batches in flight
	checkLog       func(*natslink.Message)           // has the log searched for a message, which is put in the queue again then
	refusesRecords func(version int) *subjects.Error // why no records of a version are stored now, nil if they are
	replyRejected  func(*batch)                      // replies to a batch that was rejected
	answerLate     func(*batch)                      // replies to a batch that has no outcome yet
	late           *atomic.Int64                     // batches in flight that were replied to
	tracer         *traces.Tracer
}

// messageLimit is the NATS server's limit for a message, headers included.
type messageLimit interface{ MaxPayload() int }

// run certifies and proposes what is queued, batch by batch, until ctx ends.
// While batches are in flight, requests gather until they have as many bytes:
// see queue.shouldFlush. Alone, a request leaves at once.
func (s *sequencer) run(ctx context.Context) {
	defer close(s.certified)
	for s.queue.wait(ctx) {
		if err := s.acquire(ctx); ctx.Err() != nil {
			return
		} else if err != nil {
			s.replyRejected(s.reject(s.queue.take(batchCount), err))
			continue
		}
		if s.inflight.acquire(ctx) != nil {
			return
		}
		ms := s.queue.take(batchCount)
		// Checked again after take: a message that arrived after rejecting began
		// must not be proposed. It could wait for disk space without a limit.
		if err := s.rejection(); err != nil {
			s.inflight.releaser()()
			<-s.slots
			s.replyRejected(s.reject(ms, err))
			continue
		}
		bytes := cost(ms)
		s.queue.addInflight(bytes)
		b := s.sequence(ms)
		release := s.inflight.releaser()
		b.release = func() {
			release()
			s.queue.addInflight(-bytes)
			<-s.slots
		}
		b.overdue = time.AfterFunc(outcomeTime, func() { s.answerLate(b) })
		s.certified <- b // the responder receives until this is closed
	}
}

// rejectedInterval is how often a sequencer that waits for a slot in flight
// checks whether messages are rejected.
const rejectedInterval = 100 * time.Millisecond

// errLateBatches refuses messages while batches in flight were answered as
// unknown.
var errLateBatches = subjects.Errorf(subjects.Busy,
	"what was sent before waits until a majority of the partition's nodes has stored it: back off and try again")

// rejection returns why messages are rejected, nil if they are not.
func (s *sequencer) rejection() error {
	if err := s.rejected(); err != nil {
		return err
	}
	if s.late.Load() > 0 {
		return errLateBatches
	}
	return nil
}

// acquire takes one of the partition's slots in flight. It blocks until one is
// free or ctx ends. An error says why nothing can be stored, and that no slot
// is needed: batches whose entries wait for room on disks may hold them all.
func (s *sequencer) acquire(ctx context.Context) error {
	for {
		if err := s.rejection(); err != nil {
			return err
		}
		select {
		case s.slots <- struct{}{}:
			return nil
		default:
		}
		select {
		case s.slots <- struct{}{}:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(rejectedInterval):
		}
	}
}

// sequence certifies the transactions of messages and proposes those that pass.
func (s *sequencer) sequence(ms []*natslink.Message) *batch {
	b := &batch{certified: time.Now(), received: ms[0].Received, requests: newRequestArena()}
	rs := make([]*request, 0, len(ms))
	for _, m := range ms {
		rs = s.decode(b, rs, m)
	}
	if b.moves {
		// From here until it is proposed no cursor write is.
		s.cursors.hold()
		defer s.cursors.release()
		s.cursors.check(rs, s.partition)
	}
	b.certification = s.certifier.certify(s.term, rs)
	for _, f := range b.notPassed {
		b.decide(f.r, s.outcome(f), f.verdict.DependsOn)
	}
	s.park(b)
	if b.data != nil {
		b.proposed = time.Now()
		b.proposal = s.propose(b.data)
	}
	return b
}

// park hands over the messages for which the log has to be searched. They come
// back, and are not part of this batch.
func (s *sequencer) park(b *batch) {
	if b.parked == nil {
		return
	}
	gone := setOf(b.parked)
	b.decided = slices.DeleteFunc(b.decided, func(d earlyOutcome) bool { return gone[d.r.message] })
	if b.traced != nil {
		b.traced = b.traced[:0]
		for i := range b.requests.n {
			if r := b.requests.at(i); r.traced != nil && !gone[r.message] {
				b.traced = append(b.traced, r.traced)
			}
		}
	}
	for _, m := range b.parked {
		if m.Subject == s.batchSubject {
			b.batches--
		} else {
			b.singles--
		}
		s.checkLog(m)
	}
}

// decide adds an outcome that is not the request's own commit.
func (b *batch) decide(r *request, o outcome, dependsOn uint64) {
	b.decided = append(b.decided, earlyOutcome{r, o, dependsOn})
}

// reject decides on messages because nothing can be stored. Repeats of what was
// committed before get its outcome. Nothing depends on what is in flight: the
// outcome of an earlier message with the same id stays open.
func (s *sequencer) reject(ms []*natslink.Message, why error) *batch {
	b := &batch{certified: time.Now(), requests: newRequestArena()}
	var rs []*request
	for _, m := range ms {
		rs = s.decode(b, rs, m)
	}
	e, refused := wireError(why), 0
	for _, f := range s.certifier.repeats(rs) {
		o := outcome{err: e}
		if f.verdict.Outcome != lockmgr.Pass && f.verdict.DependsOn == 0 {
			o = s.outcome(f)
		} else {
			refused++
		}
		b.decide(f.r, o, 0)
	}
	if refused > 0 {
		s.countRefused(e, refused)
	}
	return b
}

// decode adds a message's transactions to rs, and decides on those that are
// malformed.
func (s *sequencer) decode(b *batch, rs []*request, m *natslink.Message) []*request {
	limit := maxTransaction(s.limits.MaxPayload())
	if m.Subject != s.batchSubject {
		b.singles++
		r := b.requests.add(m.Reply)
		note, _ := m.Note.(*logNote)
		r.message, r.finding = m, note.of(0)
		err := s.checkKey(m)
		if err == nil {
			err = r.decode(m.Header, m.Payload, limit)
		}
		if err == nil {
			err = s.refusesNew(b, r)
		}
		s.trace(b, r, m.Received)
		if err != nil {
			b.decide(r, outcome{err: err}, 0)
			return rs
		}
		return append(rs, r)
	}
	b.batches++
	return s.decodeBatch(b, rs, m, limit)
}

// decodeBatch is decode for a batch message.
func (s *sequencer) decodeBatch(b *batch, rs []*request, m *natslink.Message, limit int) []*request {
	head := b.requests.add(m.Reply)
	note, _ := m.Note.(*logNote)
	head.message, head.finding = m, note.of(0)
	h, err := decodeBatchHeader(m, head)
	items, bad := parseBatch(m.Payload, maxBatch(s.limits.MaxPayload()))
	if err = cmp.Or(err, bad); err == nil && h.atomic {
		if err = s.refusesRecords(atomicRecords); err == nil {
			err = head.decodeAtomic(items, limit, func() *request { return b.requests.add(m.Reply) })
		}
		for _, r := range head.items {
			s.trace(b, r, m.Received)
		}
		if err == nil {
			err = s.refusesNew(b, head)
		}
	}
	switch {
	case err != nil:
		b.decide(head, outcome{err: err}, 0)
		return rs
	case h.atomic:
		return append(rs, head)
	}
	rs = slices.Grow(rs, items.count)
	call := &batchMessage{reply: m.Reply, left: items.count, outcomes: make([]outcome, items.count)}
	for i := range items.count {
		r := b.requests.add(m.Reply)
		r.batch, r.index = call, i
		r.message, r.finding = m, note.of(i)
		header, payload := items.next()
		err := r.decode(header, payload, limit)
		s.trace(b, r, m.Received)
		if err == nil {
			err = s.refusesNew(b, r)
		}
		if err != nil {
			b.decide(r, outcome{err: err}, 0)
			continue
		}
		rs = append(rs, r)
	}
	return rs
}

// refusesNew returns why a transaction can't be stored now because of a session
// or the cursor that it moves, nil if it can. It is the same for a whole batch.
func (s *sequencer) refusesNew(b *batch, r *request) *subjects.Error {
	if r.tx.SessionSeq == 0 {
		return nil
	}
	if !b.sessionsChecked {
		b.sessionsChecked, b.noSessions = true, s.refusesRecords(sessionRecords)
	}
	if len(r.tx.Cursor) == 0 || b.noSessions != nil {
		return b.noSessions
	}
	if !b.moves {
		b.moves, b.noMoves = true, s.refusesRecords(moveRecords)
	}
	return b.noMoves
}

// trace notes what a request that is traced says of itself.
func (s *sequencer) trace(b *batch, r *request, received time.Time) {
	if s.tracer == nil {
		return
	}
	a := s.tracer.Append(s.id, traces.Find(r.tx.Header))
	if a == nil {
		return
	}
	a.Received, a.Kind, a.ID = received, clip(r.tx.Kind), clip(r.tx.MsgID)
	r.traced, b.tracer, b.traced = a, s.tracer, append(b.traced, a)
}

// checkKey refuses an append by key whose key leads to another partition: a
// client that may publish it may choose the key, not the partition.
func (s *sequencer) checkKey(m *natslink.Message) *subjects.Error {
	if len(m.Subject) == len(s.direct) {
		return nil
	}
	key := trailing(m.Subject)
	if p := subjects.PartitionOf(key, s.partitions); p != s.partition {
		shown := clip([]byte(key))
		return subjects.Errorf(subjects.BadRequest, "key %q leads to partition %d, not %d: append to %s",
			shown, p, s.partition, s.names.AppendKey(shown))
	}
	return nil
}

// outcome returns a refusal, or the duplicate, as the client sees it.
func (s *sequencer) outcome(f judged) outcome {
	r, v := f.r, f.verdict
	if f.stays != nil {
		return outcome{err: f.stays}
	}
	switch v.Outcome {
	case lockmgr.Duplicate:
		return outcome{txid: v.Txid, time: v.Time, duplicate: true}
	case lockmgr.IDReused:
		e := subjects.Errorf(subjects.IDReused, "message id %q stands for another payload, of txid %d: use a new id", clip(r.tx.MsgID), v.Txid)
		if r.tx.SessionSeq > 0 {
			e = subjects.Errorf(subjects.IDReused, "number %d of session %q has another payload, at txid %d: give each transaction a number of its own", r.tx.SessionSeq, clip(r.tx.Session), v.Txid)
		}
		e.Txid = v.Txid
		return outcome{err: e}
	case lockmgr.Ahead:
		return outcome{err: aheadError("high-water mark", r.cert.HighWaterMark, s.partition, f.last)}
	case lockmgr.Expired:
		return outcome{err: subjects.Errorf(subjects.Expired, "it was to commit by %s, which has passed: nothing was done",
			time.Unix(0, r.cert.NotAfter).UTC().Format(time.RFC3339Nano))}
	case lockmgr.WrongSeq:
		return outcome{err: wrongSeq(r, v)}
	case lockmgr.WrongLast:
		e := subjects.Errorf(subjects.WrongLast, "expected last sequence %d is not the high-water mark", r.cert.ExpectedLast)
		if before := r.cert.SessionSeq - 1; r.cert.SessionSeq > 0 {
			e.SessionSeq = &before // its number was right
		}
		return outcome{err: e}
	}
	if f.matched != nil {
		return outcome{err: matched(f.matched, &r.unless[f.matched.Item], r.cert.HighWaterMark)}
	}
	return outcome{err: conflict(v.Conflicts, r.cert.HighWaterMark)}
}

// wrongSeq describes a transaction that is not the next one of its session, as
// the client sees it.
func wrongSeq(r *request, v lockmgr.Verdict) *subjects.Error {
	name, seq := clip(r.tx.Session), r.cert.SessionSeq
	var e *subjects.Error
	switch {
	case !v.HasSessionSeq && seq == 1:
		e = subjects.Errorf(subjects.WrongLast,
			"session %q may have begun after high-water mark %d and be forgotten: apply the partition up to its end, and begin another session", name, r.cert.HighWaterMark)
	case !v.HasSessionSeq:
		e = subjects.Errorf(subjects.WrongLast, "session %q is not known, or was forgotten, and this is its number %d: begin another session", name, seq)
	case seq <= v.SessionSeq:
		e = subjects.Errorf(subjects.WrongLast, "number %d of session %q was committed before, with a message id that no longer counts: the next is %d", seq, name, v.SessionSeq+1)
	default:
		e = subjects.Errorf(subjects.WrongLast, "number %d of session %q does not follow %d, the last one that was accepted: send %d first", seq, name, v.SessionSeq, v.SessionSeq+1)
	}
	if v.HasSessionSeq {
		e.SessionSeq = &v.SessionSeq
	}
	return e
}

// matched describes an item of a condition that matches, as the client sees it.
func matched(m *subjects.MatchedCondition, item *queryItem, mark uint64) *subjects.Error {
	how := "matches"
	if m.Forgotten {
		how = "was not looked for in all of the log, and counts as matching"
	}
	e := subjects.Errorf(subjects.Conflict, "item %d of %s (%s) %s txid %d, after high-water mark %d: apply up to %d, decide again and send again",
		m.Item, subjects.HeaderUnless, item.text(), how, m.Txid, mark, m.Txid)
	e.Txid, e.Unless = m.Txid, m
	return e
}

// conflict describes violated locks, the newest first, as the client sees them.
func conflict(violated []lockmgr.Conflict, mark uint64) *subjects.Error {
	newest := violated[0]
	how := fmt.Sprintf("was recorded by txid %d", newest.Txid)
	if newest.Forgotten {
		how = fmt.Sprintf("could not be looked up, and counts as recorded by txid %d", newest.Txid)
	}
	e := subjects.Errorf(subjects.Conflict, "%s lock %q %s, after high-water mark %d: apply up to %d, recompute and send again",
		newest.Mode, newest.Name, how, mark, newest.Txid)
	e.Lock, e.Txid = newest.Name, newest.Txid
	e.Conflicts = make([]subjects.ConflictingLock, len(violated))
	for i, c := range violated {
		e.Conflicts[i] = subjects.ConflictingLock{Lock: c.Name, Mode: c.Mode.String(), Txid: c.Txid, Forgotten: c.Forgotten}
	}
	return e
}
