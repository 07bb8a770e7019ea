package bench

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"

	"github.com/cantuslog/cantus/subjects"
)

// target is the partition or stream that a steady load appends to.
type target interface {
	subject() string
	// acknowledged reports whether an answer says that an append is committed;
	// later, whether it must be sent again.
	acknowledged(m *nats.Msg) (ok, later bool)
	// stored returns how many appends the log has.
	stored(ctx context.Context, c *cluster) (uint64, error)
}

// cantusTarget is partition 0.
type cantusTarget struct{ names subjects.Names }

func (t cantusTarget) subject() string { return t.names.Append(0) }

func (cantusTarget) acknowledged(m *nats.Msg) (ok, later bool) {
	if _, ok := scanUint(m.Data, txidKey); ok && len(m.Header) == 0 {
		return true, false
	}
	switch first(m.Header, subjects.HeaderErrorCode) {
	case "429", "503", "504":
		return false, true
	}
	return false, false
}

func (t cantusTarget) stored(ctx context.Context, c *cluster) (uint64, error) {
	marks, err := highWaterMarks(ctx, c.url(0), t.names, 1)
	if err != nil {
		return 0, err
	}
	return marks[0], nil
}

// streamTarget is the first of a peer's streams.
type streamTarget struct {
	run     *benchRun
	cluster *cluster
	streams *streams
}

func (t streamTarget) subject() string { return t.streams.names[0] + ".plain" }

// acknowledged treats every error as transient: a stream without a leader
// returns several.
func (streamTarget) acknowledged(m *nats.Msg) (ok, later bool) {
	_, ok = ackSequence(m.Data)
	return ok, !ok
}

func (t streamTarget) stored(ctx context.Context, c *cluster) (n uint64, err error) {
	err = again(ctx, func() error {
		n, err = t.run.messages(ctx, c, t.streams.names[0])
		return err
	})
	return n, err
}

// When an append is sent again. Appends that are due during a pause measure it.
// Those before them back off, as the protocol asks of clients: otherwise they
// would put load on the election that they wait for.
const (
	// answerTimeout is how long an append waits for an answer, which may have
	// been lost with a node.
	answerTimeout = 250 * time.Millisecond
	minRetry      = 50 * time.Millisecond
	maxRetry      = 2 * time.Second
)

// steadyLoad appends at a fixed rate, each append with a message id, and
// resends those that are not acknowledged.
type steadyLoad struct {
	clock   *clock
	tally   *tally
	gaps    *gaps
	probes  []*prober
	loop    *openLoop
	stop    chan struct{}
	running sync.WaitGroup
}

func newSteadyLoad(c *cluster, t target, w *workload, fail func(error)) (*steadyLoad, error) {
	l := &steadyLoad{
		clock: &clock{began: time.Now(), until: math.MaxInt64, openLoop: true},
		tally: &tally{}, gaps: &gaps{}, stop: make(chan struct{}),
	}
	l.loop = &openLoop{clock: l.clock, rate: w.Levels[0].Rate}
	for i := range w.Conns {
		p, err := newProber(l, c, t, w, i, fail)
		if err != nil {
			l.close()
			return nil, err
		}
		l.probes = append(l.probes, p)
		l.loop.workers = append(l.loop.workers, p)
	}
	return l, nil
}

func (l *steadyLoad) start() {
	l.clock.began = time.Now()
	for _, p := range l.probes {
		l.running.Go(p.repeat)
	}
	l.running.Go(func() { l.loop.run(l.stop) })
}

// finish ends the load and waits until everything is acknowledged.
func (l *steadyLoad) finish(ctx context.Context) error {
	close(l.stop)
	for _, p := range l.probes {
		select {
		case <-p.ended:
		case <-time.After(resumeTimeout):
			return fmt.Errorf("%w: appends are not acknowledged after %v", ErrStalled, resumeTimeout)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// close ends the load at once.
func (l *steadyLoad) close() {
	if !stopped(l.stop) {
		close(l.stop)
	}
	for _, p := range l.probes {
		p.close()
	}
	l.running.Wait()
}

// awaitAnswer waits until an append that is due from now on is acknowledged.
func (l *steadyLoad) awaitAnswer(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, resumeTimeout,
		fmt.Errorf("%w: no append is acknowledged for %v", ErrStalled, resumeTimeout))
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for now := l.clock.now(); !l.gaps.answered(now); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

func (l *steadyLoad) latency() *latencies {
	sum := newLatencies()
	l.tally.addTo(mainOp, sum)
	return sum
}

func (l *steadyLoad) acknowledged() (n uint64) {
	for _, p := range l.probes {
		n += p.counts.done.Load()
	}
	return n
}

func (l *steadyLoad) resent() (n uint64) {
	for _, p := range l.probes {
		n += p.counts.busy.Load()
	}
	return n
}

// prober is one connection of a steady load, which reconnects to other nodes.
type prober struct {
	nc       *nats.Conn
	target   target
	clock    *clock
	counts   *counters
	gaps     *gaps
	payloads *payloads
	inbox    string
	idPrefix string
	fail     func(error)

	mu       sync.Mutex // guards what follows
	next     uint64
	waiting  map[uint64]*probe
	finished bool
	ended    chan struct{} // closed when everything is acknowledged, or by close
}

// probe is an append that is not acknowledged yet.
type probe struct {
	msg   *nats.Msg
	due   int64
	again int64         // when to send it again
	wait  time.Duration // before the next attempt, doubled each time
}

func newProber(l *steadyLoad, c *cluster, t target, w *workload, conn int, fail func(error)) (*prober, error) {
	p := &prober{
		target: t, clock: l.clock, counts: newCounters(l.clock, l.tally), gaps: l.gaps,
		payloads: newPayloads(newRand(conn), w.Size, false), inbox: nats.NewInbox() + ".", idPrefix: nuid.Next() + ".",
		fail: fail, waiting: map[uint64]*probe{}, ended: make(chan struct{}),
	}
	var err error
	// Messages are not buffered while there is no connection: they are sent
	// again in any case.
	p.nc, err = nats.Connect(c.url(conn)+","+c.urls(), nats.Name("cantus bench"), nats.DontRandomize(),
		nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond), nats.ReconnectJitter(0, 0), nats.ReconnectBufSize(-1),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})) // connections are lost on purpose
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", c.url(conn), err)
	}
	if _, err = p.nc.Subscribe(p.inbox+"*", p.receive); err == nil {
		err = p.nc.Flush()
	}
	if err != nil {
		p.nc.Close()
		return nil, fmt.Errorf("subscribe to answers at %s: %w", c.url(conn), err)
	}
	return p, nil
}

func (p *prober) start() error          { return nil }
func (p *prober) done() <-chan struct{} { return p.ended }
func (p *prober) counters() *counters   { return p.counts }

// due implements openLoopWorker.
func (p *prober) due(at int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.finished {
		return
	}
	p.next++
	token := strconv.FormatUint(p.next, 10)
	m := &nats.Msg{
		Subject: p.target.subject(), Reply: p.inbox + token, Data: p.payloads.next(nil, 0),
		Header: nats.Header{subjects.HeaderMsgID: {p.idPrefix + token}},
	}
	w := &probe{msg: m, due: at}
	p.waiting[p.next] = w
	p.send(w)
}

// send sends a probe. mu is held.
func (p *prober) send(w *probe) {
	w.wait = min(max(2*w.wait, minRetry), maxRetry)
	w.again = p.clock.now() + int64(max(w.wait, answerTimeout))
	_ = p.nc.PublishMsg(w.msg) // if it fails it is sent again
}

// finish implements openLoopWorker.
func (p *prober) finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finished = true
	p.endIfIdle()
}

// endIfIdle closes ended, once, if nothing is left to do. mu is held.
func (p *prober) endIfIdle() {
	if p.finished && len(p.waiting) == 0 && !stopped(p.ended) {
		close(p.ended)
	}
}

func (p *prober) receive(m *nats.Msg) {
	now := p.clock.now()
	token, err := strconv.ParseUint(strings.TrimPrefix(m.Subject, p.inbox), 10, 64)
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.waiting[token]
	if err != nil || w == nil {
		return // the second answer to an append that was sent twice
	}
	ok, later := p.target.acknowledged(m)
	switch {
	case ok:
		delete(p.waiting, token)
		p.counts.add(now, 1)
		p.counts.addLatency(mainOp, w.due, now)
		p.gaps.ack(w.due, now)
		p.endIfIdle()
	case later, noResponders(m):
		w.again = now + int64(w.wait/2) + rand.Int64N(int64(w.wait/2))
	default:
		p.fail(answerError(w.msg.Subject, m))
	}
}

// repeat resends appends when it is time, until everything is acknowledged.
func (p *prober) repeat() {
	tick := time.NewTicker(minRetry / 10)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			p.repeatDue(p.clock.now())
		case <-p.ended:
			return
		}
	}
}

func (p *prober) repeatDue(now int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.waiting {
		if now >= w.again {
			p.counts.addBusy(now)
			p.send(w)
		}
	}
}

func (p *prober) close() {
	p.nc.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finished = true
	clear(p.waiting)
	p.endIfIdle()
}
