package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// maxInflight is the number of batches of a partition that a client may have in
// flight. It is lower than the node's, which all clients share. With more,
// batches would only be smaller.
const maxInflight = 3

// sender sends the transactions of one partition. Its goroutine executes run;
// answers arrive on the goroutine of the client's inbox subscription.
type sender struct {
	c         *Client
	partition int
	subject   string
	wake      chan struct{} // capacity 1: step has something to do

	// mu guards the fields below.
	mu            sync.Mutex
	seq           uint64   // of the last batch
	filling       *batch   // collects new transactions, nil if there are none
	queue         []*batch // to be sent or resent, by seq
	inflight      []*attempt
	abandoned     []*attempt // given up without an answer, which may still arrive
	sessions      []*Session // with transactions in flight or to be sent
	maxBatch      int        // transactions per batch; a node may allow fewer than Options
	backoffUntil  time.Time  // nothing is sent before
	limitedUntil  time.Time  // nor before: a limit allows nothing
	failures      int        // consecutive refusals or losses of whole messages
	leaderChanges int        // advisories since the last success
	closed        error
}

// attempt is one transmission of a batch.
type attempt struct {
	sender      *sender
	token       uint64
	batch       *batch
	sent        time.Time
	expires     time.Time // when to resend the batch if there is no answer
	suspected   bool      // expires was brought forward: the answer is probably lost
	disconnects uint64    // before it was sent
}

func newSender(c *Client, partition int) *sender {
	return &sender{
		c: c, partition: partition, subject: c.names.Batch(partition),
		wake: make(chan struct{}, 1), maxBatch: c.opts.MaxBatch,
	}
}

func (s *sender) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// add adds a transaction to the batch that is being filled.
func (s *sender) add(req *Request, f *Future) error {
	now := time.Now()
	s.mu.Lock()
	if s.closed != nil {
		defer s.mu.Unlock()
		return s.closed
	}
	if f.session != nil {
		defer s.mu.Unlock()
		return s.addToSession(req, f)
	}
	f.deadline = now.Add(s.c.opts.Timeout)
	b := s.filling
	if b != nil && s.isFull(b, f) {
		s.queue = append(s.queue, b)
		b = nil
	}
	if b == nil {
		s.seq++
		b = newBatch(s.seq)
		s.filling = b
	}
	b.add(req, f)
	first := len(b.items) == 1
	s.mu.Unlock()
	if first {
		s.signal()
	}
	return nil
}

// isFull reports whether a batch has no room for a transaction.
func (s *sender) isFull(b *batch, f *Future) bool {
	return len(b.items) >= s.maxBatch || len(b.data)+f.size > s.c.maxBatchBytes()
}

// addAtomic adds the message of an atomic batch.
func (s *sender) addAtomic(m *batch) error {
	m.items[0].future.deadline = time.Now().Add(s.c.opts.Timeout)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != nil {
		return s.closed
	}
	if s.filling != nil {
		s.queue, s.filling = append(s.queue, s.filling), nil
	}
	s.seq++
	m.seq = s.seq
	s.queue = append(s.queue, m)
	s.signal()
	return nil
}

// run sends batches until the client is closed.
func (s *sender) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(time.Until(s.step(time.Now())))
		select {
		case <-s.wake:
		case <-timer.C:
		case <-s.c.closing:
			s.close(ErrClosed)
			return
		}
	}
}

// step does everything that is due at now, and returns when the next thing is
// due.
func (s *sender) step(now time.Time) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire(now)
	for s.closed == nil && s.hasSlot() && !now.Before(s.pausedUntil()) {
		b := s.dequeue(now)
		if b == nil {
			break
		}
		s.send(b, now)
	}
	s.stepSessions(now)
	return s.nextDue(now)
}

// hasSlot reports whether another batch that is in no session may be sent.
func (s *sender) hasSlot() bool {
	n := 0
	for _, a := range s.inflight {
		if a.batch.session == nil {
			n++
		}
	}
	return n < maxInflight
}

// send sends a batch. The caller holds mu, which is released meanwhile.
func (s *sender) send(b *batch, now time.Time) {
	a := s.beginAttempt(b, now)
	s.mu.Unlock()
	err := s.publish(a)
	s.mu.Lock()
	if err != nil {
		s.onPublishError(a, err)
	}
}

func (s *sender) publish(a *attempt) error {
	if b := a.batch; b.atomic != nil {
		return s.c.nc.PublishMsg(&nats.Msg{Subject: s.subject, Reply: s.c.replyTo(a.token), Header: b.atomic, Data: b.data})
	}
	return s.c.nc.PublishRequest(s.subject, s.c.replyTo(a.token), a.batch.data)
}

// dequeue returns the next batch to send, nil if none is due.
func (s *sender) dequeue(now time.Time) *batch {
	for i := 0; i < len(s.queue); {
		if now.Before(s.queue[i].notBefore) {
			i++
			continue
		}
		b := s.queue[i]
		s.queue = slices.Delete(s.queue, i, i+1)
		if b = b.compact(); b != nil {
			return b
		}
	}
	if b := s.filling; b != nil {
		s.filling = nil
		return b.compact()
	}
	return nil
}

func (s *sender) beginAttempt(b *batch, now time.Time) *attempt {
	for i := range b.items {
		f := b.items[i].future
		f.sent = true
		f.uncertain++
	}
	a := &attempt{sender: s, batch: b, sent: now, expires: now.Add(s.c.opts.AttemptTimeout), disconnects: s.c.disconnects.Load()}
	s.inflight = append(s.inflight, a)
	s.c.register(a)
	return a
}

// removeInflight removes the attempt from those in flight and reports whether
// it was among them.
func (s *sender) removeInflight(a *attempt) bool {
	i := slices.Index(s.inflight, a)
	if i < 0 {
		return false
	}
	s.inflight = slices.Delete(s.inflight, i, i+1)
	return true
}

// enqueue inserts a batch into the queue, in the order of seq.
func (s *sender) enqueue(b *batch) {
	i, _ := slices.BinarySearchFunc(s.queue, b, func(a, b *batch) int {
		if c := cmp.Compare(a.seq, b.seq); c != 0 {
			return c
		}
		return -1 // after its equals: parts of one batch stay in order
	})
	s.queue = slices.Insert(s.queue, i, b)
}

// pausedUntil returns the time before which nothing is sent.
func (s *sender) pausedUntil() time.Time {
	if s.limitedUntil.After(s.backoffUntil) {
		return s.limitedUntil
	}
	return s.backoffUntil
}

// retryAfterBackoff resends the batch after a back-off, during which nothing
// else is sent either: the next message would most likely fail as well.
func (s *sender) retryAfterBackoff(b *batch, err error, now time.Time) {
	s.failures++
	s.backoffUntil = now.Add(s.c.backoff(s.failures))
	s.retry(b, err)
}

// retryWhenAllowed is retryAfterBackoff for a limit that allows nothing for a
// time. The back-off comes after that time, so that the clients which share the
// limit do not all send at its end. Neither a new leader nor a new connection
// ends the wait: no answer is lost that one might have to ask for again.
func (s *sender) retryWhenAllowed(b *batch, err error, wait time.Duration, now time.Time) {
	s.failures++
	s.limitedUntil = now.Add(s.c.limitedWait(wait, s.failures))
	s.retry(b, err)
}

// retry queues the batch for another attempt.
func (s *sender) retry(b *batch, err error) {
	for i := range b.items {
		b.items[i].future.lastErr = err
	}
	b.attempts++
	if b.session != nil {
		s.goBack(b)
		return
	}
	s.enqueue(b)
}

// abandonAttempt stops waiting for an answer and retries the batch. A late
// answer still counts.
func (s *sender) abandonAttempt(a *attempt, err error) {
	if !s.removeInflight(a) {
		return // with one before it, of the same session
	}
	s.abandoned = append(s.abandoned, a)
	s.retry(a.batch, err)
}

// suspect lets an attempt wait for one more back-off only: its answer is
// probably lost.
func (s *sender) suspect(a *attempt, now time.Time) {
	if soon := now.Add(s.c.backoff(max(s.leaderChanges, a.batch.attempts+1))); soon.Before(a.expires) {
		a.expires, a.suspected = soon, true
	}
}

// onNewLeader handles an advisory of a new leader: attempts in flight may never
// be answered, and batches that wait for a leader need not wait long.
func (s *sender) onNewLeader(now time.Time) {
	defer s.signal()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaderChanges++
	for _, a := range s.inflight {
		s.suspect(a, now)
	}
	soon := now.Add(s.c.backoff(s.leaderChanges))
	if s.backoffUntil.After(soon) {
		s.backoffUntil = soon
	}
	for _, b := range s.queue {
		if b.notBefore.After(soon) {
			b.notBefore = soon
		}
	}
	for _, ss := range s.sessions {
		if ss.notBefore.After(soon) {
			ss.notBefore = soon
		}
	}
}

// suspectEarlier suspects the attempts made before a, which has succeeded: a
// leader answers in order.
func (s *sender) suspectEarlier(a *attempt) {
	for _, other := range s.inflight {
		if other.token < a.token {
			s.suspect(other, time.Now())
		}
	}
}

// onPublishError handles a message that the connection did not accept.
func (s *sender) onPublishError(a *attempt, err error) {
	if !s.removeInflight(a) {
		return // reconnected in the meantime, and resent
	}
	s.c.unregister(a)
	s.noteNotAppended(a.batch)
	switch {
	case errors.Is(err, nats.ErrMaxPayload):
		s.split(a.batch, subjects.Errorf(subjects.TooLarge, "over the server's max_payload"), 0)
	case s.c.nc.IsClosed() || errors.Is(err, nats.ErrConnectionDraining):
		s.closeLocked(fmt.Errorf("%w: %w", ErrClosed, err), a.batch)
	default:
		s.retryAfterBackoff(a.batch, err, time.Now())
	}
}

// noteNotAppended notes that the last attempt of b appended nothing.
func (s *sender) noteNotAppended(b *batch) {
	for i := range b.items {
		b.items[i].future.uncertain--
	}
}

// split handles the refusal of a whole message because of its contents. The
// halves are sent separately, so that one transaction does not fail the others;
// a single transaction is completed with the refusal.
func (s *sender) split(b *batch, e *subjects.Error, mark uint64) {
	n := len(b.items)
	if n == 1 {
		s.fail(b.items[0].future, b.items[0].future.refusal(e, mark))
		return
	}
	if e.Reason == subjects.TooLarge {
		s.maxBatch = max(1, min(s.maxBatch, n/2))
	}
	all := func(int) bool { return true }
	halves := []*batch{b.subset(0, n/2, all), b.subset(n/2, n, all)}
	for _, half := range halves {
		half.attempts++
		if b.session == nil {
			s.enqueue(half)
		}
	}
	if b.session != nil {
		s.goBack(b)
		b.session.replace(b, halves...)
	}
}

// fail completes a future with an error. Its session, if any, ends.
func (s *sender) fail(f *Future, err error) {
	if f.session != nil {
		s.endSession(f, err)
		return
	}
	s.finish(f, Receipt{}, err)
}

// finish completes a future, unless it has its outcome already.
func (s *sender) finish(f *Future, r Receipt, err error) {
	if f.complete(r, err) {
		s.c.limiter.release(1, f.size)
	}
}

// expire ends attempts without an answer and transactions past their deadline.
func (s *sender) expire(now time.Time) {
	s.expireSessions(now)
	for _, a := range slices.Clone(s.inflight) {
		if a.batch.session == nil {
			s.expireItems(a.batch, now)
		}
		if !now.Before(a.expires) {
			s.abandonAttempt(a, ErrNoAnswer)
			if !a.suspected {
				s.failures++
				s.backoffUntil = now.Add(s.c.backoff(s.failures))
			}
		}
	}
	for _, b := range s.queue {
		s.expireItems(b, now)
	}
	if s.filling != nil {
		s.expireItems(s.filling, now)
	}
	s.abandoned = slices.DeleteFunc(s.abandoned, func(a *attempt) bool {
		if now.Sub(a.sent) < s.c.opts.AttemptTimeout+s.c.opts.Timeout {
			return false
		}
		s.c.unregister(a)
		return true
	})
}

func (s *sender) expireItems(b *batch, now time.Time) {
	if first := b.firstDeadline(); first.IsZero() || now.Before(first) {
		return
	}
	for i := range b.items {
		f := b.items[i].future
		if b.isPending(i) && !now.Before(f.deadline) {
			s.fail(f, f.incompleteError(ErrTimeout))
		}
	}
}

// nextDue returns when step has something to do if nothing happens before.
func (s *sender) nextDue(now time.Time) time.Time {
	next := now.Add(time.Hour)
	sooner := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	for _, a := range s.inflight {
		sooner(a.expires)
		sooner(a.batch.firstDeadline())
	}
	for _, ss := range s.sessions {
		sooner(s.nextOfSession(ss))
	}
	hasSlot := s.hasSlot()
	for _, b := range s.queue {
		sooner(b.firstDeadline())
		if hasSlot {
			if paused := s.pausedUntil(); b.notBefore.Before(paused) {
				sooner(paused)
			} else {
				sooner(b.notBefore)
			}
		}
	}
	if s.filling != nil {
		sooner(s.filling.firstDeadline())
		sooner(s.pausedUntil())
	}
	return next
}

// cancel abandons a transaction on behalf of its caller. If it was sent it may
// still commit.
func (s *sender) cancel(f *Future, cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail(f, f.incompleteError(cause))
}

// onReconnected resends what may have been lost with the previous connection.
func (s *sender) onReconnected(disconnects uint64) {
	s.mu.Lock()
	for _, a := range slices.Clone(s.inflight) {
		if a.disconnects >= disconnects {
			continue
		}
		s.abandonAttempt(a, nats.ErrDisconnected)
	}
	s.backoffUntil = time.Time{}
	for _, ss := range s.sessions {
		ss.notBefore = time.Time{}
	}
	s.mu.Unlock()
	s.signal()
}

// close completes all transactions with err and accepts no more.
func (s *sender) close(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeLocked(err, nil)
}

func (s *sender) closeLocked(err error, extra *batch) {
	if s.closed == nil {
		s.closed = err
	}
	all := s.queue
	for _, a := range append(s.inflight, s.abandoned...) {
		s.c.unregister(a)
		all = append(all, a.batch)
	}
	if s.filling != nil {
		all = append(all, s.filling)
	}
	for _, ss := range s.sessions {
		all = append(all, ss.chain...)
		ss.chain, ss.sent, ss.listed = nil, 0, false
	}
	if extra != nil {
		all = append(all, extra)
	}
	for _, b := range all {
		for i := range b.items {
			f := b.items[i].future
			s.finish(f, Receipt{}, f.incompleteError(err))
		}
	}
	s.queue, s.inflight, s.abandoned, s.filling, s.sessions = nil, nil, nil, nil, nil
}

// wait returns the outcome of f, which it abandons when ctx ends.
func (s *sender) wait(ctx context.Context, f *Future) (Receipt, error) {
	select {
	case <-f.Done():
	case <-ctx.Done():
		s.cancel(f, context.Cause(ctx))
		<-f.Done() // another goroutine may have completed f and not yet set the outcome
	}
	return f.receipt, f.err
}
