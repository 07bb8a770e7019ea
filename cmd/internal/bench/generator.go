package bench

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// backoff is how long a request waits that was answered with "later".
const backoff = 2 * time.Millisecond

// worker is one connection under load.
type worker interface {
	// start sends the first requests and returns; at a fixed rate it only
	// makes ready for them.
	start() error
	// done is closed when nothing is in flight any more, and none will be.
	done() <-chan struct{}
	meter() *meter
	// close ends the worker whatever it is doing.
	close()
}

// pacedWorker is a worker that can be told when to send.
type pacedWorker interface {
	worker
	// due says that a request falls due at a time that has just come. It does
	// not block.
	due(at int64)
	// finish says that no more will.
	finish()
}

// seat is a worker's place in a round.
type seat struct {
	conn     int
	url      string
	inFlight int
	clock    *clock
	tally    *tally
	fail     func(error)
	// answered is told when the answer to what was sent, or due, at sent came.
	answered func(sent, now int64)
}

// traffic is what one connection says to one server. A connection calls it
// from one goroutine at a time.
type traffic interface {
	// compose makes the slot's next message in s.msg; its Reply is set. If
	// s.again is set, it is the last one once more, brought up to date. It
	// returns how many units the message is about.
	compose(s *slot) (units int)
	// judge reads an answer.
	judge(s *slot, m *nats.Msg) outcome
}

// slot is one of a connection's requests in flight, with what its traffic
// wants to remember about it.
type slot struct {
	index int
	msg   *nats.Msg
	ahead []*nats.Msg // sent before it: the rest of a batch whose answer is msg's
	sent  int64       // when it was first sent, or due
	op    op
	again bool
	units int

	flying bool
	at     int64  // when it was last published
	round  uint64 // changes when an answer is given up, so that a late one is not the next request's

	subject string
	payload []byte
	header  nats.Header // of an append
	buf     []byte      // what it has made itself of a message
	keys    []int       // the keys that it locks
	next    uint64      // where it reads on
	limit   uint64      // where it ends reading
}

// outcome is what an answer means.
type outcome struct {
	done    int   // units that were done
	lost    int   // units that were refused and will not be sent again
	refused bool  // a conflict
	unknown bool  // the answer says that whether it was done cannot be known
	silent  bool  // there was no answer
	wait    bool  // a conflict with something that is still in flight, and not known
	busy    bool  // to be sent again later
	again   bool  // to be sent again, brought up to date
	more    bool  // other messages of the same answer follow
	err     error // the round is over
}

// link is a worker that speaks plain NATS: one connection, one inbox
// subscription, a token for each request in flight. Everything happens in the
// subscription's callback, so that a request costs no goroutine.
type link struct {
	nc      *nats.Conn
	sub     *nats.Subscription
	traffic traffic
	clock   *clock
	counts  *meter
	told    func(sent, now int64)
	fail    func(error)
	inbox   string // ends in a dot, before the token
	// publishMsg sends; it is the connection's unless another client's
	// interface is to be measured.
	publishMsg func(*nats.Msg) error

	mu       sync.Mutex // guards what follows, against retries, start and the pacer
	slots    []slot
	free     []*slot // at a fixed rate: those that are not in flight
	patient  bool    // do not give answers up: somebody else does
	overdue  []int64 // and when requests fell due that found none free
	finished bool    // no more will fall due
	inFlight int
	ended    chan struct{}
	closed   bool
}

// newLink prepares the slots on a connection of its own.
func newLink(at seat, t traffic) (*link, error) {
	l := &link{
		traffic: t, clock: at.clock, counts: newMeter(at.clock, at.tally), told: at.answered, fail: at.fail, ended: make(chan struct{}),
		inbox: nats.NewInbox() + ".", slots: make([]slot, at.inFlight),
	}
	var err error
	if l.nc, err = connect(at.url, l.failUnlessClosed); err != nil {
		return nil, err
	}
	l.publishMsg = l.nc.PublishMsg
	for i := range l.slots {
		l.slots[i] = slot{index: i, msg: &nats.Msg{}}
		l.slots[i].msg.Reply = l.replyTo(&l.slots[i])
	}
	if l.sub, err = l.nc.Subscribe(l.inbox+"*", l.receive); err == nil {
		err = l.sub.SetPendingLimits(-1, -1)
	}
	if err == nil {
		err = l.nc.Flush()
	}
	if err != nil {
		l.nc.Close()
		return nil, fmt.Errorf("subscribe to answers at %s: %w", at.url, err)
	}
	return l, nil
}

// connect opens a connection that does not come back by itself: a round that
// lost it is no good.
func connect(url string, fail func(error)) (*nats.Conn, error) {
	nc, err := nats.Connect(url, nats.Name("cantus bench"), nats.NoReconnect(), nats.Timeout(10*time.Second),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { fail(err) }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				fail(err)
			}
		}))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", url, err)
	}
	return nc, nil
}

func (l *link) failUnlessClosed(err error) {
	l.mu.Lock()
	closed := l.closed
	l.mu.Unlock()
	if !closed {
		l.fail(fmt.Errorf("connection to %s: %w", l.nc.ConnectedUrl(), err))
	}
}

func (l *link) start() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.slots {
		if l.clock.paced {
			l.free = append(l.free, &l.slots[len(l.slots)-1-i])
		} else {
			l.send(&l.slots[i], l.clock.now())
		}
	}
	l.endIfIdle()
	if !l.patient {
		time.AfterFunc(answerLimit/4, l.expire)
	}
	return nil
}

// replyTo is where a slot's answer goes: its number, and its round behind a
// dash.
func (l *link) replyTo(s *slot) string {
	return l.inbox + strconv.Itoa(s.index) + "-" + strconv.FormatUint(s.round, 36)
}

// answerLimit is how long a request may go without an answer. NATS delivers at
// most once: what was on its way to a leader that is not one any more is lost.
const answerLimit = 10 * time.Second

// expire gives up answers that have not come for too long, and calls itself
// again.
func (l *link) expire() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || stopped(l.ended) {
		return
	}
	now := l.clock.now()
	for i := range l.slots {
		if s := &l.slots[i]; s.flying && now-s.at > int64(answerLimit) {
			s.round++
			s.msg.Reply = l.replyTo(s)
			l.conclude(s, outcome{silent: true}, now)
		}
	}
	time.AfterFunc(answerLimit/4, l.expire)
}

// due implements pacedWorker.
func (l *link) due(at int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.overdue = append(l.overdue, at)
	l.catchUp()
}

// finish implements pacedWorker.
func (l *link) finish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.finished = true
	now := l.clock.now()
	for _, at := range l.overdue {
		l.counts.miss(at, now)
	}
	l.overdue = nil
	l.endIfIdle()
}

// catchUp sends what is due while there are slots for it. mu is held.
func (l *link) catchUp() {
	for len(l.overdue) > 0 && len(l.free) > 0 {
		s, at := l.free[len(l.free)-1], l.overdue[0]
		l.free = l.free[:len(l.free)-1]
		if l.overdue = l.overdue[1:]; len(l.overdue) == 0 {
			l.overdue = l.overdue[:0:0] // let go of what was sent
		}
		l.send(s, at)
	}
}

func (l *link) done() <-chan struct{} { return l.ended }

func (l *link) meter() *meter { return l.counts }

func (l *link) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.nc.Close()
}

// send sends the slot's next request, which was due at at, if the clock allows
// one. mu is held.
func (l *link) send(s *slot, at int64) {
	s.units = l.compose(s, at)
	// What was due in time is sent, though the pacer be late.
	if !l.clock.take(at, s.units) {
		if l.clock.paced {
			l.free = append(l.free, s)
		}
		return
	}
	l.publish(s)
}

func (l *link) compose(s *slot, at int64) int {
	s.sent, s.op = at, mainOp
	return l.traffic.compose(s)
}

func (l *link) publish(s *slot) {
	l.inFlight++
	s.flying, s.at = true, l.clock.now()
	for _, m := range s.ahead {
		if err := l.publishMsg(m); err != nil {
			go l.failUnlessClosed(err)
			return
		}
	}
	if err := l.publishMsg(s.msg); err != nil {
		go l.failUnlessClosed(err)
	}
}

// resend sends the slot's request once more. mu is held.
func (l *link) resend(s *slot) {
	if l.clock.now() >= l.clock.until {
		s.again = false
		l.counts.miss(s.sent, l.clock.now())
		return
	}
	s.again = true
	l.traffic.compose(s)
	l.publish(s)
}

// later resends after a while; the request stays in flight until then. mu is
// held.
func (l *link) later(s *slot) {
	l.inFlight++
	time.AfterFunc(backoff, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.inFlight--
		if !l.closed {
			l.resend(s)
			l.endIfIdle()
		}
	})
}

func (l *link) endIfIdle() {
	if l.inFlight == 0 && (l.finished || !l.clock.paced) {
		select {
		case <-l.ended:
		default:
			close(l.ended)
		}
	}
}

// receive is the subscription's callback.
func (l *link) receive(m *nats.Msg) {
	number, _, _ := strings.Cut(m.Subject[len(l.inbox):], "-")
	index, err := strconv.Atoi(number)
	if err != nil || index >= len(l.slots) {
		return
	}
	l.settle(&l.slots[index], func(s *slot) outcome {
		if m.Subject != s.msg.Reply && s.msg.Reply != "" {
			return outcome{more: true} // it was given up
		}
		if noResponders(m) {
			return outcome{busy: true}
		}
		return l.traffic.judge(s, m)
	})
}

// settle counts an answer to a slot's request and sends what comes next.
func (l *link) settle(s *slot, judge func(*slot) outcome) {
	now := l.clock.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.conclude(s, judge(s), now)
}

// conclude does what an outcome asks for. mu is held.
func (l *link) conclude(s *slot, o outcome, now int64) {
	if o.err != nil {
		go l.fail(o.err)
		return
	}
	if o.done > 0 {
		l.counts.add(now, o.done)
	}
	if o.lost > 0 {
		l.counts.refuse(now, o.lost)
	}
	if o.more {
		return
	}
	l.inFlight--
	s.flying = false
	switch {
	case o.unknown, o.silent:
		l.counts.lose(s.sent, now, o.silent)
		l.clock.giveBack(s.units - o.done)
		s.again = false
		l.next(s, now)
	case o.busy:
		l.counts.hold(now)
		l.later(s)
	case o.refused:
		if l.counts.refuse(now, 1); o.wait {
			l.later(s)
		} else {
			l.resend(s)
		}
	case o.again:
		l.resend(s)
	default:
		if short := s.units - o.done; o.done+o.lost > 0 && short > 0 {
			l.clock.giveBack(short)
		}
		l.counts.took(s.op, s.sent, now)
		if o.done > 0 {
			l.told(s.sent, now)
		}
		s.again = false
		l.next(s, now)
	}
	l.endIfIdle()
}

// next puts a slot that is done to its next use. mu is held.
func (l *link) next(s *slot, now int64) {
	if !l.clock.paced {
		l.send(s, now)
		return
	}
	l.free = append(l.free, s)
	if now < l.clock.until {
		l.catchUp()
	}
}

func noResponders(m *nats.Msg) bool {
	return len(m.Data) == 0 && len(m.Header) > 0 && first(m.Header, "Status") == "503"
}

// first returns a header's first value without looking at its letter case.
func first(h nats.Header, key string) string {
	if v := h[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// request sends one request outside of a round and gives its answer.
func request(ctx context.Context, nc *nats.Conn, subject string, data []byte) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	m, err := nc.RequestWithContext(ctx, subject, data)
	if err != nil {
		return nil, fmt.Errorf("request %s: %w", subject, err)
	}
	return m, nil
}

// again tries until it succeeds, or for settleTimeout: right after a start or
// a change of leaders what is asked for may not be there yet.
func again(ctx context.Context, try func() error) error {
	const settleTimeout = time.Minute
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}
