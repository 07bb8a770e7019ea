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

// backoff is how long a request waits after the answer was "later".
const backoff = 2 * time.Millisecond

// worker is one connection under load.
type worker interface {
	// start sends the first requests and returns; at a fixed rate it only
	// prepares them.
	start() error
	// done is closed when nothing is in flight any more and nothing will be
	// sent.
	done() <-chan struct{}
	counters() *counters
	// close ends the worker whatever it is doing.
	close()
}

// openLoopWorker is a worker that sends at given times.
type openLoopWorker interface {
	worker
	// due is called when a request becomes due, at the time at. It does not
	// block.
	due(at int64)
	// finish is called when no more requests become due.
	finish()
}

// workerConfig configures a worker of a round.
type workerConfig struct {
	conn     int
	url      string
	inFlight int
	clock    *clock
	tally    *tally
	fail     func(error)
	// answered is called when an answer arrives, with the time at which its
	// request was sent, or due.
	answered func(sent, now int64)
}

// traffic makes the requests of one connection and decodes their answers. A
// connection calls it from one goroutine at a time.
type traffic interface {
	// compose makes the next message in s.msg, whose Reply is set. If s.again
	// is set, it updates the last message. It returns the number of units in
	// the message.
	compose(s *pending) (units int)
	// judge decodes an answer.
	judge(s *pending, m *nats.Msg) outcome
}

// pending is one of a connection's requests in flight, with its traffic's
// state. It is reused for the next request.
type pending struct {
	index int
	msg   *nats.Msg
	ahead []*nats.Msg // sent before msg: the other messages of its batch
	sent  int64       // when it was first sent, or due
	op    op
	again bool
	units int

	inFlight bool
	at       int64  // when it was last published
	round    uint64 // changes when an answer is given up, so that a late one is ignored

	subject string
	payload []byte
	header  nats.Header // of an append
	buf     []byte      // buffer for a message
	keys    []int       // the keys that it locks
	next    uint64      // the next txid to read
	limit   uint64      // where reading ends
}

// outcome is what an answer means.
type outcome struct {
	done    int   // units that were done
	lost    int   // units that were refused and will not be sent again
	refused bool  // a conflict
	unknown bool  // the answer says that the outcome is unknown
	silent  bool  // there was no answer
	wait    bool  // a conflict with a request that is still in flight
	busy    bool  // send it again later
	again   bool  // update it and send it again
	more    bool  // other messages of the same answer follow
	err     error // ends the round
}

// plainWorker is a worker that uses plain NATS: one connection, one inbox
// subscription, and a token for each request in flight. It does everything in
// the subscription's callback, so that a request needs no goroutine.
type plainWorker struct {
	nc       *nats.Conn
	sub      *nats.Subscription
	traffic  traffic
	clock    *clock
	counts   *counters
	answered func(sent, now int64)
	fail     func(error)
	inbox    string // ends in a dot, before the token
	// publishMsg sends a message. It is the connection's method unless another
	// client is measured.
	publishMsg func(*nats.Msg) error

	mu       sync.Mutex // guards the fields below against retries, start and the open loop
	requests []pending
	free     []*pending // at a fixed rate: those that are not in flight
	patient  bool       // do not give up answers: the client does
	overdue  []int64    // due times of requests for which none was free
	finished bool       // no more requests become due
	inFlight int
	ended    chan struct{}
	closed   bool
}

// newPlainWorker prepares the requests of a worker, on a connection of its own.
func newPlainWorker(at workerConfig, t traffic) (*plainWorker, error) {
	l := &plainWorker{
		traffic: t, clock: at.clock, counts: newCounters(at.clock, at.tally), answered: at.answered, fail: at.fail, ended: make(chan struct{}),
		inbox: nats.NewInbox() + ".", requests: make([]pending, at.inFlight),
	}
	var err error
	if l.nc, err = connect(at.url, l.failUnlessClosed); err != nil {
		return nil, err
	}
	l.publishMsg = l.nc.PublishMsg
	for i := range l.requests {
		l.requests[i] = pending{index: i, msg: &nats.Msg{}}
		l.requests[i].msg.Reply = l.replyTo(&l.requests[i])
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

// connect opens a connection that does not reconnect: a round that has lost its
// connection is invalid.
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

func (l *plainWorker) failUnlessClosed(err error) {
	l.mu.Lock()
	closed := l.closed
	l.mu.Unlock()
	if !closed {
		l.fail(fmt.Errorf("connection to %s: %w", l.nc.ConnectedUrl(), err))
	}
}

func (l *plainWorker) start() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.requests {
		if l.clock.openLoop {
			l.free = append(l.free, &l.requests[len(l.requests)-1-i])
		} else {
			l.send(&l.requests[i], l.clock.now())
		}
	}
	l.endIfIdle()
	if !l.patient {
		time.AfterFunc(answerLimit/4, l.expire)
	}
	return nil
}

// replyTo returns the subject of a request's answer, which ends in its number,
// a dash and its round.
func (l *plainWorker) replyTo(s *pending) string {
	return l.inbox + strconv.Itoa(s.index) + "-" + strconv.FormatUint(s.round, 36)
}

// answerLimit is how long a request waits for an answer. NATS delivers at most
// once: a request to a node that is no longer the leader is lost.
const answerLimit = 10 * time.Second

// expire gives up answers that are overdue, and schedules its next call.
func (l *plainWorker) expire() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || stopped(l.ended) {
		return
	}
	now := l.clock.now()
	for i := range l.requests {
		if s := &l.requests[i]; s.inFlight && now-s.at > int64(answerLimit) {
			s.round++
			s.msg.Reply = l.replyTo(s)
			l.conclude(s, outcome{silent: true}, now)
		}
	}
	time.AfterFunc(answerLimit/4, l.expire)
}

// due implements openLoopWorker.
func (l *plainWorker) due(at int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.overdue = append(l.overdue, at)
	l.catchUp()
}

// finish implements openLoopWorker.
func (l *plainWorker) finish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.finished = true
	now := l.clock.now()
	for _, at := range l.overdue {
		l.counts.addMissed(at, now)
	}
	l.overdue = nil
	l.endIfIdle()
}

// catchUp sends overdue requests up to the limit in flight. mu is held.
func (l *plainWorker) catchUp() {
	for len(l.overdue) > 0 && len(l.free) > 0 {
		s, at := l.free[len(l.free)-1], l.overdue[0]
		l.free = l.free[:len(l.free)-1]
		if l.overdue = l.overdue[1:]; len(l.overdue) == 0 {
			l.overdue = l.overdue[:0:0] // free the memory
		}
		l.send(s, at)
	}
}

func (l *plainWorker) done() <-chan struct{} { return l.ended }

func (l *plainWorker) counters() *counters { return l.counts }

func (l *plainWorker) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.nc.Close()
}

// send composes and sends a request that was due at at, if the clock allows
// one. mu is held.
func (l *plainWorker) send(s *pending, at int64) {
	s.units = l.compose(s, at)
	// A request that was due in time is sent even if the open loop is late.
	if !l.clock.take(at, s.units) {
		if l.clock.openLoop {
			l.free = append(l.free, s)
		}
		return
	}
	l.publish(s)
}

func (l *plainWorker) compose(s *pending, at int64) int {
	s.sent, s.op = at, mainOp
	return l.traffic.compose(s)
}

func (l *plainWorker) publish(s *pending) {
	l.inFlight++
	s.inFlight, s.at = true, l.clock.now()
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

// resend sends the request once more. mu is held.
func (l *plainWorker) resend(s *pending) {
	if l.clock.now() >= l.clock.until {
		s.again = false
		l.counts.addMissed(s.sent, l.clock.now())
		return
	}
	s.again = true
	l.traffic.compose(s)
	l.publish(s)
}

// later resends after a while; the request stays in flight until then. mu is
// held.
func (l *plainWorker) later(s *pending) {
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

func (l *plainWorker) endIfIdle() {
	if l.inFlight == 0 && (l.finished || !l.clock.openLoop) {
		select {
		case <-l.ended:
		default:
			close(l.ended)
		}
	}
}

// receive is the subscription's callback.
func (l *plainWorker) receive(m *nats.Msg) {
	number, _, _ := strings.Cut(m.Subject[len(l.inbox):], "-")
	index, err := strconv.Atoi(number)
	if err != nil || index >= len(l.requests) {
		return
	}
	l.complete(&l.requests[index], func(s *pending) outcome {
		if m.Subject != s.msg.Reply && s.msg.Reply != "" {
			return outcome{more: true} // the answer was given up
		}
		if noResponders(m) {
			return outcome{busy: true}
		}
		return l.traffic.judge(s, m)
	})
}

// complete counts an answer to a request and sends the next one.
func (l *plainWorker) complete(s *pending, judge func(*pending) outcome) {
	now := l.clock.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.conclude(s, judge(s), now)
}

// conclude counts an outcome, and sends the request again or the next one. mu
// is held.
func (l *plainWorker) conclude(s *pending, o outcome, now int64) {
	if o.err != nil {
		go l.fail(o.err)
		return
	}
	if o.done > 0 {
		l.counts.add(now, o.done)
	}
	if o.lost > 0 {
		l.counts.addRefused(now, o.lost)
	}
	if o.more {
		return
	}
	l.inFlight--
	s.inFlight = false
	switch {
	case o.unknown, o.silent:
		l.counts.addUnknown(s.sent, now, o.silent)
		l.clock.giveBack(s.units - o.done)
		s.again = false
		l.next(s, now)
	case o.busy:
		l.counts.addBusy(now)
		l.later(s)
	case o.refused:
		if l.counts.addRefused(now, 1); o.wait {
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
		l.counts.addLatency(s.op, s.sent, now)
		if o.done > 0 {
			l.answered(s.sent, now)
		}
		s.again = false
		l.next(s, now)
	}
	l.endIfIdle()
}

// next reuses a request that is done for the next one. mu is held.
func (l *plainWorker) next(s *pending, now int64) {
	if !l.clock.openLoop {
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

// first returns a header's first value, ignoring the key's letter case.
func first(h nats.Header, key string) string {
	if v := h[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// request sends one request outside of a round and returns its answer.
func request(ctx context.Context, nc *nats.Conn, subject string, data []byte) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	m, err := nc.RequestWithContext(ctx, subject, data)
	if err != nil {
		return nil, fmt.Errorf("request %s: %w", subject, err)
	}
	return m, nil
}

// again calls try until it succeeds, or for retryTimeout: it may fail right
// after a start or a change of leaders.
func again(ctx context.Context, try func() error) error {
	const retryTimeout = time.Minute
	ctx, cancel := context.WithTimeout(ctx, retryTimeout)
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
