package broker

import (
	"context"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// cursorBatch bounds the writes that go into one entry.
const cursorBatch = 1000

// cursorWriter answers the requests to a partition's cursors. Those that wait
// in its queue are committed in one entry together.
type cursorWriter struct {
	partition int   // by the cluster's numbers
	face      *face // of the partition
	limiter   *limiter
	queue     *queue
	state     *partitionState
	group     *raftstore.Group
	gate      *diskGate
	now       func() time.Time // for the times of writes
	metrics   *partitionMetrics
	requests  *requestServer
	refusals  *refusals
	order     *cursorOrder
	propose   func(data []byte) proposal
	// refusesRecords returns why no records of a version can be stored now, nil
	// if they can.
	refusesRecords func(version int) *subjects.Error
}

// onRequest queues cursor requests; like onAppend it must not block.
func (w *cursorWriter) onRequest(m *natslink.Message) {
	if m.Reply == "" && len(m.Payload) == 0 {
		return // there is nowhere to send the answer
	}
	if limits := w.limiter.limits.Load(); limits != nil && len(m.Payload) > 0 && under(w.face.names, m.Subject) {
		if why := w.limiter.admit(limits, 1, len(m.Payload), true); why != nil {
			w.refusals.reject(m, why)
			return
		}
	}
	w.queue.putOrReject(m, w.refusals)
}

// cursorCall is a cursor request that was checked.
type cursorCall struct {
	reply     string
	partition int // as the client sees it
	name      string
	write     bool
	wal.Cursor
}

// parse checks a request that follows others, with which it is committed.
func (w *cursorWriter) parse(m *natslink.Message, before []cursorCall) (cursorCall, error) {
	_, number := w.refusals.seen(m.Subject)
	c := cursorCall{reply: m.Reply, partition: number, name: trailing(m.Subject), write: len(m.Payload) > 0}
	if err := subjects.CheckCursor(c.name); err != nil {
		return c, err
	}
	at := w.state.position()
	switch {
	case at.restoring:
		return c, errRestoring(c.partition)
	case !c.write:
		return c, nil
	case at.mirrorOf != "":
		return c, errMirror(c.partition, at.mirrorOf)
	}
	var body subjects.CursorRequest
	if err := smallJSON(m.Payload, &body); err != nil {
		return c, err
	}
	if body.Txid == nil {
		return c, subjects.Errorf(subjects.BadRequest, `body: txid is missing: give the position to set, such as {"txid":812,"expected":800}`)
	}
	c.Cursor = wal.Cursor{Name: []byte(c.name), Txid: *body.Txid}
	if o := body.Owner; o != nil {
		if subjects.CheckOwner(*o) != nil {
			return c, subjects.Errorf(subjects.BadRequest, "body: owner is not a name: 1 to %d bytes, as a cursor's, or \"session:\" and the name of a session", subjects.MaxToken)
		}
		c.Owner = []byte(*o)
		if subjects.IsSessionOwner(*o) {
			if refused := w.refusesRecords(moveRecords); refused != nil {
				return c, refused
			}
			c.Kept = c.Txid == 0
		}
	}
	if o := body.ExpectedOwner; o != nil {
		if *o != "" && subjects.CheckOwner(*o) != nil {
			return c, subjects.Errorf(subjects.BadRequest, `body: expected_owner is not a name: "" for no owner, 1 to %d bytes, as a cursor's, or "session:" and the name of a session`, subjects.MaxToken)
		}
		c.ExpectedOwner, c.HasExpectedOwner = []byte(*o), true
	}
	if body.Expected != nil {
		c.Expected, c.HasExpected = *body.Expected, true
	}
	return c, w.state.checkCursor(c, before)
}

// checkCursor refuses a position past the high-water mark, and one cursor too
// many. Those that calls before it make in the same entry count.
func (s *partitionState) checkCursor(c cursorCall, before []cursorCall) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.Txid > s.mark.Load() {
		return s.beyond("position", c.Txid, c.partition)
	}
	if _, known := s.cursors[c.name]; !known && keepsCursor(c.Cursor) && len(s.cursors)+s.madeBesides(c.name, before) >= subjects.MaxCursors {
		return subjects.Errorf(subjects.TooLarge, "the partition has %d cursors already: set unused ones to 0, which removes them", subjects.MaxCursors)
	}
	return nil
}

// madeBesides returns how many cursors with other names calls make, as far as
// the limit can be reached. mu is held.
func (s *partitionState) madeBesides(name string, calls []cursorCall) int {
	if len(s.cursors)+len(calls) < subjects.MaxCursors {
		return 0
	}
	made := map[string]bool{}
	for _, c := range calls {
		if _, known := s.cursors[c.name]; !known && c.write && c.name != name && keepsCursor(c.Cursor) {
			made[c.name] = true
		}
	}
	return len(made)
}

// run answers cursor requests as the leader in a term, until ctx ends. Writes
// that wait are committed in one entry together.
func (w *cursorWriter) run(ctx context.Context, term uint64) {
	for w.queue.wait(ctx) {
		calls := make([]cursorCall, 0, cursorBatch)
		for _, m := range w.queue.take(cursorBatch) {
			c, err := w.parse(m, calls)
			if err != nil {
				w.requests.answer(w.refuse(c, w.requests.confirmRefusal(term, w.requests.wireError(err))))
				continue
			}
			calls = append(calls, c)
		}
		w.serve(ctx, term, calls)
	}
}

func (w *cursorWriter) serve(ctx context.Context, term uint64, calls []cursorCall) {
	began := time.Now()
	results, err := w.commit(calls)
	readErr := err
	if results == nil {
		readErr = w.group.VerifyLeader(ctx, term) // reads must be the latest; a commit proves it too
	}
	var out []byte
	for _, c := range calls {
		switch {
		case c.write && err != nil:
			out = append(out, w.refuse(c, w.requests.wireError(err))...)
		case !c.write && readErr != nil:
			out = append(out, w.refuse(c, w.requests.wireError(readErr))...)
		case !c.write:
			out = w.appendReply(out, c, w.state.cursor(c.name), nil)
		default:
			r := results[0]
			results = results[1:]
			var refused *subjects.Error
			if !r.done {
				refused = c.notDone(r.cursor)
			}
			out = w.appendReply(out, c, r.cursor, refused)
		}
	}
	w.metrics.answered("cursor", len(calls), time.Since(began))
	w.requests.answer(out)
}

// notDone returns why the call was not carried out, on a cursor as it is.
func (c *cursorCall) notDone(at cursor) *subjects.Error {
	switch {
	case c.HasExpectedOwner && at.Owner != string(c.ExpectedOwner):
		return subjects.Errorf(subjects.WrongLast, "cursor %q stands at %d with the owner %q, not %q", c.name, at.Txid, at.Owner, c.ExpectedOwner)
	case c.HasExpectedOwner, len(c.Owner) == 0, at == cursor{}, at.Owner == string(c.Owner):
		return subjects.Errorf(subjects.WrongLast, "cursor %q stands at %d, not at %d", c.name, at.Txid, c.Expected)
	case at.Owner == "":
		return subjects.Errorf(subjects.WrongLast, `cursor %q stands at %d and has no owner: to take it give "expected_owner":"" too, or use another one`, c.name, at.Txid)
	}
	return subjects.Errorf(subjects.WrongLast, `cursor %q stands at %d and is %s's: to take it give "expected_owner":%q too, or use another one`, c.name, at.Txid, at.Owner, at.Owner)
}

// commit commits the writes among calls and returns their results.
func (w *cursorWriter) commit(calls []cursorCall) ([]cursorResult, error) {
	var b wal.BatchWriter
	var names []string
	b.Begin(wal.CursorWrites, w.state.position().mark, w.now().UnixNano(), 0)
	for _, c := range calls {
		if c.write {
			b.AddCursor(c.Cursor)
			names = append(names, c.name)
		}
	}
	if b.Count() == 0 {
		return nil, nil
	}
	if err := w.gate.fullError(); err != nil {
		return nil, err
	}
	a, err := w.gate.outcome(w.order.write(b.Finish(), names, w.propose))
	if err != nil {
		return nil, err
	}
	switch {
	case a.failed:
		return nil, raftstore.ErrUnknown // it is in the log
	case a.void:
		return nil, subjects.Errorf(subjects.Unavailable, "partition %d takes no cursors any more: it is being restored, or is a mirror", w.partition)
	}
	return a.cursors, nil
}

func (s *partitionState) cursor(name string) cursor {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cursors[name]
}

func (w *cursorWriter) refuse(c cursorCall, e *subjects.Error) []byte {
	return w.appendReply(nil, c, w.state.cursor(c.name), e)
}

func (w *cursorWriter) appendReply(out []byte, c cursorCall, at cursor, refused *subjects.Error) []byte {
	if refused != nil {
		w.metrics.refused("cursor", refused.Reason)
	}
	if c.reply == "" {
		if refused == nil {
			return out
		}
		return append(out, w.refusals.advisory("cursor", nil, refused)...)
	}
	body := subjects.CursorReply{
		Partition: c.partition, Name: c.name, Txid: at.Txid, Owner: at.Owner, HighWaterMark: w.state.position().mark, Error: refused,
	}
	if at.Time != 0 {
		body.Time = time.Unix(0, at.Time).UTC()
	}
	if refused != nil {
		return appendRefusal(out, c.reply, refused, body)
	}
	return natslink.AppendPub(out, c.reply, mustJSON(body))
}
