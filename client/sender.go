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

// flightDepth is how many batches of a partition may be in flight: as many as
// the node keeps in flight itself. More would be smaller.
const maxInflight = 3

// lane sends the transactions of one partition. Its goroutine is run; answers
// come in on the client's inbox goroutine.
type sender struct {
	c         *Client
	partition int
	subject   string
	wake      chan struct{} // capacity 1: step has something to do

	mu            sync.Mutex
	seq           uint64   // of chunks
	filling       *batch   // takes in what comes, nil if nothing has
	queue         []*batch // to be sent (again), by seq
	inflight      []*attempt
	abandoned     []*attempt // gone without an answer; it may come yet
	maxBatch      int        // of a chunk; a node may allow less than Options
	backoffUntil  time.Time  // nothing is sent before
	failures      int        // in a row, of whole messages
	leaderChanges int        // of a new leader, since the last success
	closed        error
}

// flight is one try of a chunk.
type attempt struct {
	sender    *sender
	token     uint64
	batch     *batch
	sent      time.Time
	expires   time.Time // without an answer it is sent again
	suspected bool      // expires comes of a sign that the answer is lost
	epoch     uint64    // of the connection
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

// add takes a transaction in.
func (s *sender) add(tx *Tx, f *Future) error {
	now := time.Now()
	f.deadline = now.Add(s.c.opts.Timeout)
	s.mu.Lock()
	if s.closed != nil {
		defer s.mu.Unlock()
		return s.closed
	}
	b := s.filling
	if b != nil && (len(b.items) >= s.maxBatch || len(b.data)+f.size > s.c.maxBatchBytes()) {
		s.queue = append(s.queue, b)
		b = nil
	}
	if b == nil {
		s.seq++
		b = newBatch(s.seq)
		s.filling = b
	}
	b.add(tx, f)
	first := len(b.items) == 1
	s.mu.Unlock()
	if first {
		s.signal()
	}
	return nil
}

// run sends until the client is closed.
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

// step does all that is due at now and gives the time of what is due next.
func (s *sender) step(now time.Time) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire(now)
	for s.closed == nil && len(s.inflight) < maxInflight && !now.Before(s.backoffUntil) {
		b := s.dequeue(now)
		if b == nil {
			break
		}
		a := s.beginAttempt(b, now)
		s.mu.Unlock()
		err := s.c.nc.PublishRequest(s.subject, s.c.replyTo(a.token), b.data)
		s.mu.Lock()
		if err != nil {
			s.onPublishError(a, err)
		}
	}
	return s.nextDue(now)
}

// take gives the next chunk to send, nil if none is due.
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
	a := &attempt{sender: s, batch: b, sent: now, expires: now.Add(s.c.opts.AttemptTimeout), epoch: s.c.epoch.Load()}
	s.inflight = append(s.inflight, a)
	s.c.register(a)
	return a
}

// land takes the flight out of those in flight and reports whether it was among
// them.
func (s *sender) removeInflight(a *attempt) bool {
	i := slices.Index(s.inflight, a)
	if i < 0 {
		return false
	}
	s.inflight = slices.Delete(s.inflight, i, i+1)
	return true
}

// enqueue puts a chunk among those to be sent.
func (s *sender) enqueue(b *batch) {
	i, _ := slices.BinarySearchFunc(s.queue, b, func(a, b *batch) int {
		if c := cmp.Compare(a.seq, b.seq); c != 0 {
			return c
		}
		return -1 // behind its equals: parts of one chunk keep their order
	})
	s.queue = slices.Insert(s.queue, i, b)
}

// again has the chunk sent again after a back-off, with all behind it: what
// failed for one message will for the next.
func (s *sender) retryAfterBackoff(b *batch, err error, now time.Time) {
	s.failures++
	s.backoffUntil = now.Add(s.c.backoff(s.failures))
	s.retry(b, err)
}

// retry has the chunk sent again.
func (s *sender) retry(b *batch, err error) {
	for i := range b.items {
		b.items[i].future.lastErr = err
	}
	b.attempts++
	s.enqueue(b)
}

// unanswered gives a try up and has its chunk sent again. The answer may come
// yet.
func (s *sender) abandonAttempt(a *attempt, err error) {
	s.removeInflight(a)
	s.abandoned = append(s.abandoned, a)
	s.retry(a.batch, err)
}

// doubt lets a try go on without an answer for one back-off more.
func (s *sender) suspect(a *attempt, now time.Time) {
	if soon := now.Add(s.c.backoff(max(s.leaderChanges, a.batch.attempts+1))); soon.Before(a.expires) {
		a.expires, a.suspected = soon, true
	}
}

// newLeader deals with the news that the partition has a new leader: what is in
// flight may never be answered, and what waits for one need not wait long.
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
}

// overtaken doubts the tries from before fl, which has succeeded: a leader answers
// in order.
func (s *sender) suspectEarlier(a *attempt) {
	for _, other := range s.inflight {
		if other.token < a.token {
			s.suspect(other, time.Now())
		}
	}
}

// notSent deals with a message that the connection did not take.
func (s *sender) onPublishError(a *attempt, err error) {
	if !s.removeInflight(a) {
		return // reconnected meanwhile, and sent again
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

// known notes that the last try of ch did nothing.
func (s *sender) noteNotAppended(b *batch) {
	for i := range b.items {
		b.items[i].future.uncertain--
	}
}

// divide deals with a message that is refused as a whole for what is in it:
// halves go on, so that one's fault is not everybody's; a single one is settled.
func (s *sender) split(b *batch, e *subjects.Error, mark uint64) {
	n := len(b.items)
	if n == 1 {
		s.complete(b.items[0].future, Receipt{}, refusal(*e, s.partition, b.items[0].future.ID(), mark))
		return
	}
	if e.Reason == subjects.TooLarge {
		s.maxBatch = max(1, min(s.maxBatch, n/2))
	}
	all := func(int) bool { return true }
	for _, half := range []*batch{b.subset(0, n/2, all), b.subset(n/2, n, all)} {
		half.attempts++
		s.enqueue(half)
	}
}

func (s *sender) complete(f *Future, r Receipt, err error) {
	if f.complete(r, err) {
		s.c.limiter.release(1, f.size)
	}
}

// expire ends tries that had no answer and transactions past their deadline.
func (s *sender) expire(now time.Time) {
	for _, a := range slices.Clone(s.inflight) {
		s.expireItems(a.batch, now)
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
			s.complete(f, Receipt{}, f.incompleteError(ErrTimeout))
		}
	}
}

// next gives the time at which step has something to do, if nothing happens.
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
	for _, b := range s.queue {
		sooner(b.firstDeadline())
		if len(s.inflight) < maxInflight {
			if b.notBefore.Before(s.backoffUntil) {
				sooner(s.backoffUntil)
			} else {
				sooner(b.notBefore)
			}
		}
	}
	if s.filling != nil {
		sooner(s.filling.firstDeadline())
		sooner(s.backoffUntil)
	}
	return next
}

// cancel gives a transaction up for its caller's sake. What was sent may
// commit all the same.
func (s *sender) cancel(f *Future, cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.complete(f, Receipt{}, f.incompleteError(cause))
}

// reconnected sends again what the lost connection may have swallowed.
func (s *sender) onReconnected(epoch uint64) {
	s.mu.Lock()
	for _, a := range slices.Clone(s.inflight) {
		if a.epoch >= epoch {
			continue
		}
		s.abandonAttempt(a, nats.ErrDisconnected)
	}
	s.backoffUntil = time.Time{}
	s.mu.Unlock()
	s.signal()
}

// close settles all that waits with err and takes nothing in any more.
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
	if extra != nil {
		all = append(all, extra)
	}
	for _, b := range all {
		for i := range b.items {
			f := b.items[i].future
			s.complete(f, Receipt{}, f.incompleteError(err))
		}
	}
	s.queue, s.inflight, s.abandoned, s.filling = nil, nil, nil, nil
}

// wait gives the outcome of f, which is given up when ctx ends.
func (s *sender) wait(ctx context.Context, f *Future) (Receipt, error) {
	select {
	case <-f.Done():
	case <-ctx.Done():
		s.cancel(f, context.Cause(ctx))
		<-f.Done() // who settled it first may not have written the outcome yet
	}
	return f.receipt, f.err
}
