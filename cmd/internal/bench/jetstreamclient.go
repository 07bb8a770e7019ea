package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// asyncWorker publishes with the Go client's asynchronous interface, which
// JetStream's documents recommend for throughput.
type asyncWorker struct {
	append *streamAppend
	plain  *plainWorker // for its connection, clock and requests; its inbox is unused
	js     jetstream.JetStream
	bySent map[*nats.Msg]*pending
}

func newAsyncWorker(at workerConfig, a *streamAppend) (*asyncWorker, error) {
	l, err := newPlainWorker(at, a)
	if err != nil {
		return nil, err
	}
	w := &asyncWorker{append: a, plain: l, bySent: make(map[*nats.Msg]*pending, at.inFlight)}
	l.patient = true // the client has a limit of its own
	for i := range l.requests {
		l.requests[i].msg.Reply = ""
		w.bySent[l.requests[i].msg] = &l.requests[i]
	}
	w.js, err = jetstream.New(l.nc, jetstream.WithPublishAsyncMaxPending(at.inFlight),
		jetstream.WithPublishAsyncTimeout(answerLimit),
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
	w.plain.complete(w.bySent[m], func(s *pending) outcome { return w.append.accepted(s, ack.Sequence) })
}

func (w *asyncWorker) failed(_ jetstream.JetStream, m *nats.Msg, err error) {
	var api *jetstream.APIError
	switch {
	case errors.Is(err, jetstream.ErrAsyncPublishTimeout):
		w.plain.complete(w.bySent[m], func(*pending) outcome { return outcome{silent: true} })
		return
	case !errors.As(err, &api):
		w.plain.failUnlessClosed(err)
		return
	}
	w.plain.complete(w.bySent[m], func(s *pending) outcome { return w.append.rejected(s, api.ErrorCode, api.Description) })
}

func (w *asyncWorker) start() error          { return w.plain.start() }
func (w *asyncWorker) due(at int64)          { w.plain.due(at) }
func (w *asyncWorker) finish()               { w.plain.finish() }
func (w *asyncWorker) done() <-chan struct{} { return w.plain.done() }
func (w *asyncWorker) counters() *counters   { return w.plain.counters() }
func (w *asyncWorker) close()                { w.plain.close() }

// syncWorker publishes one message at a time and waits for its answer, with
// the Go client's synchronous interface.
type syncWorker struct {
	append *streamAppend
	nc     *nats.Conn
	js     jetstream.JetStream
	clock  *clock
	counts *counters
	fail   func(error)
	ended  chan struct{}
	cancel context.CancelFunc
}

func newSyncWorker(at workerConfig, a *streamAppend) (*syncWorker, error) {
	nc, err := connect(at.url, func(error) {})
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("jetstream: %w", err)
	}
	return &syncWorker{
		append: a, nc: nc, js: js, clock: at.clock, counts: newCounters(at.clock, at.tally), fail: at.fail,
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
	s := &pending{msg: &nats.Msg{}}
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
		switch s.again = o.refused || o.busy; {
		case o.err != nil:
			if ctx.Err() == nil {
				w.fail(o.err)
			}
			return
		case o.busy:
			w.counts.addBusy(now)
		case o.refused:
			if w.counts.addRefused(now, 1); o.wait {
				time.Sleep(backoff)
			}
		default:
			w.counts.add(now, o.done)
			w.counts.addLatency(mainOp, s.sent, now)
		}
	}
}

func (w *syncWorker) done() <-chan struct{} { return w.ended }
func (w *syncWorker) counters() *counters   { return w.counts }
func (w *syncWorker) close()                { w.cancel(); w.nc.Close() }
