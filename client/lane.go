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
const flightDepth = 3

// lane sends the transactions of one partition. Its goroutine is run; answers
// come in on the client's inbox goroutine.
type lane struct {
	c         *Client
	partition int
	subject   string
	wake      chan struct{} // capacity 1: step has something to do

	mu       sync.Mutex
	seq      uint64   // of chunks
	filling  *chunk   // takes in what comes, nil if nothing has
	ready    []*chunk // to be sent (again), by seq
	flights  []*flight
	late     []*flight // gone without an answer; it may come yet
	maxCount int       // of a chunk; a node may allow less than Options
	hold     time.Time // nothing is sent before
	failures int       // in a row, of whole messages
	signs    int       // of a new leader, since the last success
	closed   error
}

// flight is one try of a chunk.
type flight struct {
	lane    *lane
	token   uint64
	ch      *chunk
	sent    time.Time
	expires time.Time // without an answer it is sent again
	doubted bool      // expires comes of a sign that the answer is lost
	epoch   uint64    // of the connection
}

func newLane(c *Client, partition int) *lane {
	return &lane{
		c: c, partition: partition, subject: c.names.Batch(partition),
		wake: make(chan struct{}, 1), maxCount: c.opts.MaxBatch,
	}
}

func (l *lane) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// add takes a transaction in.
func (l *lane) add(tx *Tx, f *Future) error {
	now := time.Now()
	f.deadline = now.Add(l.c.opts.Timeout)
	l.mu.Lock()
	if l.closed != nil {
		defer l.mu.Unlock()
		return l.closed
	}
	ch := l.filling
	if ch != nil && (len(ch.items) >= l.maxCount || len(ch.data)+f.size > l.c.maxBatchBytes()) {
		l.ready = append(l.ready, ch)
		ch = nil
	}
	if ch == nil {
		l.seq++
		ch = newChunk(l.seq)
		l.filling = ch
	}
	ch.add(tx, f)
	first := len(ch.items) == 1
	l.mu.Unlock()
	if first {
		l.signal()
	}
	return nil
}

// run sends until the client is closed.
func (l *lane) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(time.Until(l.step(time.Now())))
		select {
		case <-l.wake:
		case <-timer.C:
		case <-l.c.closing:
			l.close(ErrClosed)
			return
		}
	}
}

// step does all that is due at now and gives the time of what is due next.
func (l *lane) step(now time.Time) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expire(now)
	for l.closed == nil && len(l.flights) < flightDepth && !now.Before(l.hold) {
		ch := l.take(now)
		if ch == nil {
			break
		}
		fl := l.launch(ch, now)
		l.mu.Unlock()
		err := l.c.nc.PublishRequest(l.subject, l.c.replyTo(fl.token), ch.data)
		l.mu.Lock()
		if err != nil {
			l.notSent(fl, err)
		}
	}
	return l.next(now)
}

// take gives the next chunk to send, nil if none is due.
func (l *lane) take(now time.Time) *chunk {
	for i := 0; i < len(l.ready); {
		if now.Before(l.ready[i].due) {
			i++
			continue
		}
		ch := l.ready[i]
		l.ready = slices.Delete(l.ready, i, i+1)
		if ch = ch.compact(); ch != nil {
			return ch
		}
	}
	if ch := l.filling; ch != nil {
		l.filling = nil
		return ch.compact()
	}
	return nil
}

func (l *lane) launch(ch *chunk, now time.Time) *flight {
	for i := range ch.items {
		f := ch.items[i].f
		f.sent = true
		f.open++
	}
	fl := &flight{lane: l, ch: ch, sent: now, expires: now.Add(l.c.opts.AttemptTimeout), epoch: l.c.epoch.Load()}
	l.flights = append(l.flights, fl)
	l.c.register(fl)
	return fl
}

// land takes the flight out of those in flight and reports whether it was among
// them.
func (l *lane) land(fl *flight) bool {
	i := slices.Index(l.flights, fl)
	if i < 0 {
		return false
	}
	l.flights = slices.Delete(l.flights, i, i+1)
	return true
}

// enqueue puts a chunk among those to be sent.
func (l *lane) enqueue(ch *chunk) {
	i, _ := slices.BinarySearchFunc(l.ready, ch, func(a, b *chunk) int {
		if c := cmp.Compare(a.seq, b.seq); c != 0 {
			return c
		}
		return -1 // behind its equals: parts of one chunk keep their order
	})
	l.ready = slices.Insert(l.ready, i, ch)
}

// again has the chunk sent again after a back-off, with all behind it: what
// failed for one message will for the next.
func (l *lane) again(ch *chunk, why error, now time.Time) {
	l.failures++
	l.hold = now.Add(l.c.backoff(l.failures))
	l.retry(ch, why)
}

// retry has the chunk sent again.
func (l *lane) retry(ch *chunk, why error) {
	for i := range ch.items {
		ch.items[i].f.last = why
	}
	ch.tries++
	l.enqueue(ch)
}

// unanswered gives a try up and has its chunk sent again. The answer may come
// yet.
func (l *lane) unanswered(fl *flight, why error) {
	l.land(fl)
	l.late = append(l.late, fl)
	l.retry(fl.ch, why)
}

// doubt lets a try go on without an answer for one back-off more.
func (l *lane) doubt(fl *flight, now time.Time) {
	if soon := now.Add(l.c.backoff(max(l.signs, fl.ch.tries+1))); soon.Before(fl.expires) {
		fl.expires, fl.doubted = soon, true
	}
}

// newLeader deals with the news that the partition has a new leader: what is in
// flight may never be answered, and what waits for one need not wait long.
func (l *lane) newLeader(now time.Time) {
	defer l.signal()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.signs++
	for _, fl := range l.flights {
		l.doubt(fl, now)
	}
	soon := now.Add(l.c.backoff(l.signs))
	if l.hold.After(soon) {
		l.hold = soon
	}
	for _, ch := range l.ready {
		if ch.due.After(soon) {
			ch.due = soon
		}
	}
}

// overtaken doubts the tries from before fl, which has succeeded: a leader answers
// in order.
func (l *lane) overtaken(fl *flight) {
	for _, other := range l.flights {
		if other.token < fl.token {
			l.doubt(other, time.Now())
		}
	}
}

// notSent deals with a message that the connection did not take.
func (l *lane) notSent(fl *flight, err error) {
	if !l.land(fl) {
		return // reconnected meanwhile, and sent again
	}
	l.c.unregister(fl)
	l.known(fl.ch)
	switch {
	case errors.Is(err, nats.ErrMaxPayload):
		l.divide(fl.ch, subjects.Errorf(subjects.TooLarge, "over the server's max_payload"), 0)
	case l.c.nc.IsClosed() || errors.Is(err, nats.ErrConnectionDraining):
		l.shut(fmt.Errorf("%w: %w", ErrClosed, err), fl.ch)
	default:
		l.again(fl.ch, err, time.Now())
	}
}

// known notes that the last try of ch did nothing.
func (l *lane) known(ch *chunk) {
	for i := range ch.items {
		ch.items[i].f.open--
	}
}

// divide deals with a message that is refused as a whole for what is in it:
// halves go on, so that one's fault is not everybody's; a single one is settled.
func (l *lane) divide(ch *chunk, e *subjects.Error, mark uint64) {
	n := len(ch.items)
	if n == 1 {
		l.settle(ch.items[0].f, Receipt{}, refusal(*e, l.partition, ch.items[0].f.ID(), mark))
		return
	}
	if e.Reason == subjects.TooLarge {
		l.maxCount = max(1, min(l.maxCount, n/2))
	}
	all := func(int) bool { return true }
	for _, half := range []*chunk{ch.pick(0, n/2, all), ch.pick(n/2, n, all)} {
		half.tries++
		l.enqueue(half)
	}
}

func (l *lane) settle(f *Future, r Receipt, err error) {
	if f.settle(r, err) {
		l.c.room.leave(1, f.size)
	}
}

// expire ends tries that had no answer and transactions past their deadline.
func (l *lane) expire(now time.Time) {
	for _, fl := range slices.Clone(l.flights) {
		l.expireItems(fl.ch, now)
		if !now.Before(fl.expires) {
			l.unanswered(fl, ErrNoAnswer)
			if !fl.doubted {
				l.failures++
				l.hold = now.Add(l.c.backoff(l.failures))
			}
		}
	}
	for _, ch := range l.ready {
		l.expireItems(ch, now)
	}
	if l.filling != nil {
		l.expireItems(l.filling, now)
	}
	l.late = slices.DeleteFunc(l.late, func(fl *flight) bool {
		if now.Sub(fl.sent) < l.c.opts.AttemptTimeout+l.c.opts.Timeout {
			return false
		}
		l.c.unregister(fl)
		return true
	})
}

func (l *lane) expireItems(ch *chunk, now time.Time) {
	if first := ch.firstDeadline(); first.IsZero() || now.Before(first) {
		return
	}
	for i := range ch.items {
		f := ch.items[i].f
		if ch.live(i) && !now.Before(f.deadline) {
			l.settle(f, Receipt{}, f.giveUp(ErrTimeout))
		}
	}
}

// next gives the time at which step has something to do, if nothing happens.
func (l *lane) next(now time.Time) time.Time {
	next := now.Add(time.Hour)
	sooner := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	for _, fl := range l.flights {
		sooner(fl.expires)
		sooner(fl.ch.firstDeadline())
	}
	for _, ch := range l.ready {
		sooner(ch.firstDeadline())
		if len(l.flights) < flightDepth {
			if ch.due.Before(l.hold) {
				sooner(l.hold)
			} else {
				sooner(ch.due)
			}
		}
	}
	if l.filling != nil {
		sooner(l.filling.firstDeadline())
		sooner(l.hold)
	}
	return next
}

// cancel gives a transaction up for its caller's sake. What was sent may
// commit all the same.
func (l *lane) cancel(f *Future, cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.settle(f, Receipt{}, f.giveUp(cause))
}

// reconnected sends again what the lost connection may have swallowed.
func (l *lane) reconnected(epoch uint64) {
	l.mu.Lock()
	for _, fl := range slices.Clone(l.flights) {
		if fl.epoch >= epoch {
			continue
		}
		l.unanswered(fl, nats.ErrDisconnected)
	}
	l.hold = time.Time{}
	l.mu.Unlock()
	l.signal()
}

// close settles all that waits with err and takes nothing in any more.
func (l *lane) close(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shut(err, nil)
}

func (l *lane) shut(err error, extra *chunk) {
	if l.closed == nil {
		l.closed = err
	}
	all := l.ready
	for _, fl := range append(l.flights, l.late...) {
		l.c.unregister(fl)
		all = append(all, fl.ch)
	}
	if l.filling != nil {
		all = append(all, l.filling)
	}
	if extra != nil {
		all = append(all, extra)
	}
	for _, ch := range all {
		for i := range ch.items {
			f := ch.items[i].f
			l.settle(f, Receipt{}, f.giveUp(err))
		}
	}
	l.ready, l.flights, l.late, l.filling = nil, nil, nil, nil
}

// wait gives the outcome of f, which is given up when ctx ends.
func (l *lane) wait(ctx context.Context, f *Future) (Receipt, error) {
	select {
	case <-f.Done():
	case <-ctx.Done():
		l.cancel(f, context.Cause(ctx))
		<-f.Done() // who settled it first may not have written the outcome yet
	}
	return f.receipt, f.err
}
