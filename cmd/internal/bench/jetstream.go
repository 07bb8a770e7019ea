package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// expectedSubject is the header of a conditional publish: the sequence that
// the subject's last message must have.
const expectedSubject = "Nats-Expected-Last-Subject-Sequence"

// wrongLastSequence is JetStream's error code for a condition that failed.
const wrongLastSequence = 10071

// stream is a JetStream stream and what the load knows about it: the last
// sequence of each key's subject, shared by all connections, so that no
// connection is refused for what it could have known.
type stream struct {
	name     string
	expected bool // publishes carry a condition
	subjects pool
	last     []atomic.Uint64 // by key; empty for a plain stream
}

// openStream creates a stream with one replica and file storage.
func openStream(ctx context.Context, url, name string, expected bool, keys int) (*stream, error) {
	nc, err := connect(url, func(error) {})
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("jetstream: %w", err)
	}
	_, err = js.CreateStream(ctx, jetstream.StreamConfig{
		Name: name, Subjects: []string{name + ".>"}, Storage: jetstream.FileStorage, Replicas: 1,
	})
	if err != nil {
		return nil, fmt.Errorf("create stream %s: %w", name, err)
	}
	s := &stream{name: name, expected: expected}
	if expected {
		s.subjects, s.last = newPool(name+".k", keys), make([]atomic.Uint64, keys)
	}
	return s, nil
}

// streamAppend publishes to a stream, one message a transaction: without a
// condition all on one subject, with one to a key's subject.
type streamAppend struct {
	stream   *stream
	rng      *rand.Rand
	payloads *payloads
}

func newStreamAppend(s *stream, size, conn int) *streamAppend {
	rng := newRand(conn)
	return &streamAppend{stream: s, rng: rng, payloads: newPayloads(rng, size)}
}

func (a *streamAppend) compose(s *slot) int {
	m := s.msg
	if !s.again {
		m.Data = a.payloads.next()
	}
	if !a.stream.expected {
		m.Subject = a.stream.name + ".plain"
		return 1
	}
	if m.Header == nil {
		s.keys = make([]int, 1)
		m.Header = nats.Header{expectedSubject: make([]string, 1)}
	}
	if !s.again {
		a.stream.subjects.pick(a.rng, s.keys)
		m.Subject = a.stream.subjects.name(s.keys[0])
	}
	m.Header[expectedSubject][0] = strconv.FormatUint(a.stream.last[s.keys[0]].Load(), 10)
	return 1
}

func (a *streamAppend) judge(s *slot, m *nats.Msg) outcome {
	if seq, ok := scanUint(m.Data, seqKey); ok && !strings.Contains(string(m.Data), string(errorKey)) {
		return a.accepted(s, seq)
	}
	code, _ := scanUint(m.Data, []byte(`"err_code":`))
	return a.rejected(s, jetstream.ErrorCode(code), string(m.Data))
}

// accepted notes what the key's last sequence now is.
func (a *streamAppend) accepted(s *slot, seq uint64) outcome {
	if a.stream.expected {
		a.stream.saw(s.keys[0], seq)
	}
	return outcome{done: 1}
}

// rejected notes what a failed condition says the key's last sequence is. An
// answer may leave it out: then the same is tried again, a little later, as
// what stands in the way is still in flight.
func (a *streamAppend) rejected(s *slot, code jetstream.ErrorCode, text string) outcome {
	if code != wrongLastSequence || !a.stream.expected {
		return outcome{err: fmt.Errorf("%w to %s: %s", ErrAnswer, s.msg.Subject, text)}
	}
	if seq, ok := scanUint([]byte(text), []byte("wrong last sequence: ")); ok {
		a.stream.saw(s.keys[0], seq)
	}
	return outcome{refused: true}
}

func (s *stream) saw(key int, seq uint64) {
	for last := s.last[key].Load(); last < seq; last = s.last[key].Load() {
		if s.last[key].CompareAndSwap(last, seq) {
			return
		}
	}
}

// asyncWorker publishes with the Go client's asynchronous interface, which
// JetStream's documents recommend where throughput matters.
type asyncWorker struct {
	append *streamAppend
	link   *link // its connection, clock, slots and end; not its inbox
	js     jetstream.JetStream
	bySent map[*nats.Msg]*slot
}

func newAsyncWorker(url string, inFlight int, a *streamAppend, c *clock, fail func(error)) (*asyncWorker, error) {
	l, err := newLink(url, inFlight, a, c, fail)
	if err != nil {
		return nil, err
	}
	w := &asyncWorker{append: a, link: l, bySent: make(map[*nats.Msg]*slot, inFlight)}
	for i := range l.slots {
		l.slots[i].msg.Reply = ""
		w.bySent[l.slots[i].msg] = &l.slots[i]
	}
	w.js, err = jetstream.New(l.nc, jetstream.WithPublishAsyncMaxPending(inFlight),
		jetstream.WithPublishAsyncAckHandler(w.acked), jetstream.WithPublishAsyncErrHandler(w.failed))
	if err != nil {
		l.close()
		return nil, fmt.Errorf("jetstream: %w", err)
	}
	l.publishMsg = func(m *nats.Msg) error {
		_, err := w.js.PublishMsgAsync(m)
		return err
	}
	return w, nil
}

func (w *asyncWorker) acked(_ jetstream.JetStream, m *nats.Msg, ack *jetstream.PubAck) {
	w.link.settle(w.bySent[m], func(s *slot) outcome { return w.append.accepted(s, ack.Sequence) })
}

func (w *asyncWorker) failed(_ jetstream.JetStream, m *nats.Msg, err error) {
	var api *jetstream.APIError
	if !errors.As(err, &api) {
		w.link.failUnlessClosed(err)
		return
	}
	w.link.settle(w.bySent[m], func(s *slot) outcome { return w.append.rejected(s, api.ErrorCode, api.Description) })
}

func (w *asyncWorker) start() error          { return w.link.start() }
func (w *asyncWorker) done() <-chan struct{} { return w.link.done() }
func (w *asyncWorker) meter() *meter         { return w.link.meter() }
func (w *asyncWorker) close()                { w.link.close() }

// syncWorker publishes one message at a time and waits for its answer, with
// the Go client's synchronous interface.
type syncWorker struct {
	append *streamAppend
	nc     *nats.Conn
	js     jetstream.JetStream
	clock  *clock
	counts *meter
	fail   func(error)
	ended  chan struct{}
	cancel context.CancelFunc
}

func newSyncWorker(url string, a *streamAppend, c *clock, fail func(error)) (*syncWorker, error) {
	nc, err := connect(url, func(error) {})
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("jetstream: %w", err)
	}
	return &syncWorker{
		append: a, nc: nc, js: js, clock: c, counts: newMeter(c), fail: fail,
		ended: make(chan struct{}), cancel: func() {},
	}, nil
}

func (w *syncWorker) start() error {
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	go w.run(ctx)
	return nil
}

func (w *syncWorker) run(ctx context.Context) {
	defer close(w.ended)
	s := &slot{msg: &nats.Msg{}}
	for {
		now := w.clock.now()
		if !s.again {
			s.sent = now
		}
		if units := w.append.compose(s); !s.again && !w.clock.take(now, units) || now >= w.clock.until {
			return
		}
		ack, err := w.js.PublishMsg(ctx, s.msg)
		now = w.clock.now()
		var api *jetstream.APIError
		var o outcome
		switch {
		case err == nil:
			o = w.append.accepted(s, ack.Sequence)
		case errors.As(err, &api):
			o = w.append.rejected(s, api.ErrorCode, api.Description)
		default:
			o = outcome{err: err}
		}
		switch s.again = o.refused; {
		case o.err != nil:
			if ctx.Err() == nil {
				w.fail(o.err)
			}
			return
		case o.refused:
			w.counts.refuse(now)
		default:
			w.counts.add(now, o.done)
			w.counts.took(s.sent, now)
		}
	}
}

func (w *syncWorker) done() <-chan struct{} { return w.ended }
func (w *syncWorker) meter() *meter         { return w.counts }
func (w *syncWorker) close()                { w.cancel(); w.nc.Close() }
