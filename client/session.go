package client

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

// Session is transactions of one writer that commit in the order in which they
// are appended, and without a gap: after one that does not commit, none does.
// They don't conflict with each other, so that a writer which changes one thing
// many times a second need not wait for a receipt before it computes the next
// transaction: see [Client.NewSession].
//
// A session ends with the first transaction that gets no receipt. The program
// begins another one then.
type Session struct {
	c         *Client
	partition int
	name      string

	// The transactions without an outcome are a chain of batches, in the order
	// of their numbers. The first ones are in flight, each with one attempt,
	// and the others are to be sent. If an attempt fails, or its answer is lost
	// or says that a transaction before it is missing, everything from there on
	// is sent again in order, and answers to what was in flight after it count
	// only where they have receipts (goBack). The partition knows repeats by
	// their numbers.
	//
	// The fields below are guarded by sender.mu.
	last      uint64 // the number given last
	chain     []*batch
	sent      int       // batches of the chain that are in flight
	awaited   bool      // those in flight must be answered before anything is sent
	setbacks  int       // since something was accepted
	notBefore time.Time // nothing is sent before
	listed    bool      // among sender.sessions
	ended     error     // why Append refuses transactions
	endedAt   uint64    // the number with which the session has ended
}

// NewSession begins a session in a partition, with a new name. It asks nothing
// of the cluster. A session that is not used any more needs no end.
//
// Each transaction has its own high-water mark, up to which the writer had
// applied the transactions of others. Locks and conditions are checked against
// those of others alone. Use a session from one place, which computes each
// transaction on the state that the ones before it make.
//
// The first transaction needs a mark that is not too far behind: a partition
// that has forgotten sessions which may be newer than the mark refuses it.
func (c *Client) NewSession(partition int) *Session {
	return &Session{c: c, partition: partition, name: rand.Text()}
}

// Name returns the session's name: that of [Transaction.Session].
func (s *Session) Name() string { return s.name }

// Append gives req the session's next number, and returns before its outcome is
// known. It blocks only while the limits of [Options.MaxInFlight] and
// [Options.MaxInFlightBytes] are reached; ctx bounds that wait and nothing
// else. Calls by several goroutines are numbered in any order.
//
// If Append returns an error, req has no number and will not be appended. It is
// a [*SessionError] if the session has ended, and otherwise one of those of
// [Client.AppendAsync], with which the session goes on. req must have no ID:
// its number is its message id. Leave Partition out, or give the session's.
// Append does not retain req.
//
// [Future.Wait] returns the outcome:
//
//   - A [Receipt]: the transaction is committed, and so are all before it. If
//     its answer was lost, and the partition has forgotten by then where it was
//     committed, the receipt has no Txid and no Time: Duplicate is true then,
//     and [Client.ByNumber] finds it.
//   - A [*ConflictError] or [*RefusedError]: it is refused, and the session has
//     ended. Nothing after it is committed, nor will be.
//   - A [*SessionError]: it is not committed, because the session has ended
//     before it. The error wraps what became of the first one without a
//     receipt.
//   - An [*UnknownOutcomeError], which may wrap one of these: it may be
//     committed. [Transaction.SessionSeq] in the log shows how far the session
//     came.
//   - [ErrTimeout], [ErrClosed] or [ErrNoPartition], as for [Client.Append]: it
//     is not committed, and the session has ended.
//
// To go on after the end, begin another session from a state that has exactly
// what the log has of this one.
func (s *Session) Append(ctx context.Context, req *Request) (*Future, error) {
	own := *req
	if own.Partition == 0 {
		own.Partition = s.partition
	}
	return s.c.appendAsync(ctx, &own, s)
}

// check refuses a transaction that cannot be in the session. s may be nil, as
// below: then it is in none.
func (s *Session) check(req *Request) error {
	switch {
	case s == nil && req.Move != (subjects.Move{}):
		return refusal(*subjects.Errorf(subjects.BadRequest, "the transaction moves cursor %q, which only one of a Session may: append it with Session.Append", req.Move.Cursor), req.Partition, req.ID, 0)
	case s == nil:
		return nil
	case req.ID != "":
		return refusal(*subjects.Errorf(subjects.BadRequest, "the transaction has the ID %q: in a session its number is its message id, so leave ID out", req.ID), s.partition, req.ID, 0)
	case req.Partition != s.partition:
		return refusal(*subjects.Errorf(subjects.BadRequest, "the transaction's Partition is %d, and that of the session %d: leave it out, all are appended to one partition", req.Partition, s.partition), s.partition, "", 0)
	}
	return nil
}

// headerBytes is the size of the header lines that a session adds.
func (s *Session) headerBytes() int {
	if s == nil {
		return 0
	}
	return len(subjects.HeaderSession) + len(s.name) + len(subjects.HeaderSessionSeq) + len("18446744073709551615") + 2*fieldBytes
}

// addToSession gives a transaction its number, and adds it to its session's
// last batch. The caller holds mu.
func (s *sender) addToSession(req *Request, f *Future) error {
	ss := f.session
	if ss.ended != nil {
		return ss.ended
	}
	ss.last++
	f.number, f.deadline = ss.last, time.Now().Add(s.c.opts.Timeout)
	n := len(ss.chain)
	if n == ss.sent || ss.chain[n-1].attempts > 0 || s.isFull(ss.chain[n-1], f) {
		s.seq++
		b := newBatch(s.seq)
		b.session = ss
		ss.chain = append(ss.chain, b)
		s.signal()
	}
	ss.chain[len(ss.chain)-1].add(req, f)
	if !ss.listed {
		s.sessions, ss.listed = append(s.sessions, ss), true
	}
	return nil
}

// stepSessions sends what is due of the sessions. The caller holds mu, which is
// released meanwhile.
func (s *sender) stepSessions(now time.Time) {
	for _, ss := range slices.Clone(s.sessions) {
		for s.closed == nil && ss.maySend() && !now.Before(s.pausedUntil()) && !now.Before(ss.notBefore) {
			b := ss.dequeue()
			if b == nil {
				break
			}
			s.send(b, now)
		}
	}
	s.sessions = slices.DeleteFunc(s.sessions, func(ss *Session) bool {
		ss.listed = len(ss.chain) > 0
		return !ss.listed
	})
}

// maySend reports whether a batch may be sent, apart from its time.
func (s *Session) maySend() bool {
	return s.sent < len(s.chain) && s.sent < maxInflight && (s.sent == 0 || !s.awaited)
}

// dequeue returns the next batch to send, nil if there is none.
func (s *Session) dequeue() *batch {
	s.awaited = false
	for s.sent < len(s.chain) {
		b := s.chain[s.sent].compact()
		if b == nil {
			s.chain = slices.Delete(s.chain, s.sent, s.sent+1)
			continue
		}
		s.chain[s.sent] = b
		s.sent++
		return b
	}
	return nil
}

// goBack makes a session send a batch again, which is not in flight any more,
// and everything after it. The caller holds mu.
func (s *sender) goBack(b *batch) {
	ss := b.session
	at := slices.Index(ss.chain, b)
	if at < 0 {
		return // the session has ended before it
	}
	for i := at + 1; i < ss.sent; i++ {
		later := slices.IndexFunc(s.inflight, func(a *attempt) bool { return a.batch == ss.chain[i] })
		s.abandoned = append(s.abandoned, s.inflight[later])
		s.inflight = slices.Delete(s.inflight, later, later+1)
		ss.chain[i].attempts++
	}
	ss.sent = min(ss.sent, at)
}

// replace replaces a batch by others with the same transactions, none of which
// is in flight.
func (s *Session) replace(b *batch, others ...*batch) {
	if at := slices.Index(s.chain, b); at >= 0 {
		s.chain = slices.Replace(s.chain, at, at+1, others...)
	}
}

// remove removes a batch that was in flight and whose transactions all have
// their outcomes.
func (s *Session) remove(b *batch) {
	if at := slices.Index(s.chain, b); at >= 0 {
		s.chain = slices.Delete(s.chain, at, at+1)
		s.sent--
	}
}

// firstPending returns the first transaction without an outcome, nil if there
// is none.
func (s *Session) firstPending() *Future {
	for _, b := range s.chain {
		for i := range b.items {
			if b.isPending(i) {
				return b.items[i].future
			}
		}
	}
	return nil
}

// endSession fails a transaction of a session, and those after it: none of them
// is sent any more. Those before it are, until they have their outcomes. The
// caller holds mu.
func (s *sender) endSession(f *Future, err error) {
	if f.completed.Load() {
		return
	}
	ss, cause := f.session, err
	unknown, isUnknown := errors.AsType[*UnknownOutcomeError](err)
	if isUnknown {
		cause = unknown.Err // of f, and not of what was never sent
	}
	ended := &SessionError{Partition: s.partition, Session: ss.name, Seq: f.number, Err: cause}
	if ss.ended == nil || f.number < ss.endedAt {
		ss.ended, ss.endedAt = ended, f.number
	}
	s.finish(f, Receipt{}, err)
	for _, b := range ss.chain {
		for i := range b.items {
			later := b.items[i].future
			switch {
			case later.number <= f.number || !b.isPending(i):
			case isUnknown && later.uncertain > 0:
				s.finish(later, Receipt{}, later.unknown(ended))
			default:
				s.finish(later, Receipt{}, ended)
			}
		}
	}
	s.dropCompleted(ss)
}

// dropCompleted removes the batches whose transactions all have their outcomes.
// The caller holds mu.
func (s *sender) dropCompleted(ss *Session) {
	isDone := func(b *batch) bool { return b.session == ss && b.isDone() }
	s.inflight = slices.DeleteFunc(s.inflight, func(a *attempt) bool {
		done := isDone(a.batch)
		if done {
			s.c.unregister(a)
		}
		return done
	})
	for i := ss.sent - 1; i >= 0; i-- {
		if isDone(ss.chain[i]) {
			ss.sent--
		}
	}
	ss.chain = slices.DeleteFunc(ss.chain, isDone)
}

// expireSessions ends the sessions whose first transaction is past its
// deadline: those after it are not. The caller holds mu.
func (s *sender) expireSessions(now time.Time) {
	for _, ss := range s.sessions {
		if f := ss.firstPending(); f != nil && !now.Before(f.deadline) {
			s.endSession(f, f.incompleteError(ErrTimeout))
		}
	}
}

// nextOfSession returns when the session has something to do if nothing happens
// before, zero if it has nothing. The caller holds mu.
func (s *sender) nextOfSession(ss *Session) (due time.Time) {
	f := ss.firstPending()
	if f == nil {
		return due
	}
	due = f.deadline
	if !ss.maySend() {
		return due
	}
	next := ss.notBefore
	if paused := s.pausedUntil(); paused.After(next) {
		next = paused
	}
	if next.Before(due) {
		return next
	}
	return due
}
