package bench

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// backoff is how long a request waits that was answered with "later".
const backoff = 2 * time.Millisecond

// worker is one connection under load.
type worker interface {
	// start sends the first requests and returns.
	start() error
	// done is closed when nothing is in flight any more.
	done() <-chan struct{}
	meter() *meter
	// close ends the worker whatever it is doing.
	close()
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
	sent  int64 // when it was first sent
	again bool
	keys  []int  // the keys that it locks
	next  uint64 // where it reads on
	limit uint64 // where it ends reading
	units int
}

// outcome is what an answer means.
type outcome struct {
	done    int   // units that were done
	refused bool  // a conflict
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
	fail    func(error)
	inbox   string // ends in a dot, before the token
	// publishMsg sends; it is the connection's unless another client's
	// interface is to be measured.
	publishMsg func(*nats.Msg) error

	mu       sync.Mutex // guards what follows, against retries and start
	slots    []slot
	inFlight int
	ended    chan struct{}
	closed   bool
}

// newLink prepares inFlight slots on a connection of its own to url.
func newLink(url string, inFlight int, t traffic, c *clock, fail func(error)) (*link, error) {
	l := &link{
		traffic: t, clock: c, counts: newMeter(c), fail: fail, ended: make(chan struct{}),
		inbox: nats.NewInbox() + ".", slots: make([]slot, inFlight),
	}
	var err error
	if l.nc, err = connect(url, l.failUnlessClosed); err != nil {
		return nil, err
	}
	l.publishMsg = l.nc.PublishMsg
	for i := range l.slots {
		l.slots[i] = slot{index: i, msg: &nats.Msg{Reply: l.inbox + strconv.Itoa(i)}}
	}
	if l.sub, err = l.nc.Subscribe(l.inbox+"*", l.receive); err == nil {
		err = l.sub.SetPendingLimits(-1, -1)
	}
	if err == nil {
		err = l.nc.Flush()
	}
	if err != nil {
		l.nc.Close()
		return nil, fmt.Errorf("subscribe to answers at %s: %w", url, err)
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
		l.send(&l.slots[i])
	}
	l.endIfIdle()
	return nil
}

func (l *link) done() <-chan struct{} { return l.ended }

func (l *link) meter() *meter { return l.counts }

func (l *link) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.nc.Close()
}

// send sends the slot's next request if the clock allows one. mu is held.
func (l *link) send(s *slot) {
	now := l.clock.now()
	s.units = l.traffic.compose(s)
	if !l.clock.take(now, s.units) {
		return
	}
	s.sent = now
	l.publish(s)
}

func (l *link) publish(s *slot) {
	l.inFlight++
	if err := l.publishMsg(s.msg); err != nil {
		go l.failUnlessClosed(err)
	}
}

// resend sends the slot's request once more. mu is held.
func (l *link) resend(s *slot) {
	if l.clock.now() >= l.clock.until {
		s.again = false
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
	if l.inFlight == 0 {
		select {
		case <-l.ended:
		default:
			close(l.ended)
		}
	}
}

// receive is the subscription's callback.
func (l *link) receive(m *nats.Msg) {
	index, err := strconv.Atoi(m.Subject[len(l.inbox):])
	if err != nil || index >= len(l.slots) {
		return
	}
	l.settle(&l.slots[index], func(s *slot) outcome {
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
	o := judge(s)
	if o.err != nil {
		go l.fail(o.err)
		return
	}
	if o.done > 0 {
		l.counts.add(now, o.done)
	}
	if o.more {
		return
	}
	l.inFlight--
	switch {
	case o.busy:
		l.counts.hold(now)
		l.later(s)
	case o.refused:
		l.counts.refuse(now)
		l.resend(s)
	case o.again:
		l.resend(s)
	default:
		if short := s.units - o.done; o.done > 0 && short > 0 {
			l.clock.giveBack(short)
		}
		l.counts.took(s.sent, now)
		s.again = false
		l.send(s)
	}
	l.endIfIdle()
}

func noResponders(m *nats.Msg) bool {
	return len(m.Data) == 0 && len(m.Header) > 0 && first(m.Header, "Status") == "503"
}

// first gives a header's first value without looking at its letter case.
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
