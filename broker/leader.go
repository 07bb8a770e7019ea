package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/raftstore"
)

// leadPause is the wait after a session has ended or could not begin: each
// beginning costs an entry of the log.
const leadPause = 20 * time.Millisecond

// run serves the partition whenever this node leads it, until ctx ends.
func (p *partition) run(ctx context.Context) {
	var background sync.WaitGroup
	background.Go(func() { p.trimmer.run(ctx.Done()) })
	background.Go(func() { p.unsendable.find(ctx) })
	defer background.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.group.Leadership():
		}
		for p.group.Leading() && ctx.Err() == nil {
			err := p.runLeader(ctx)
			if ctx.Err() != nil || !p.group.Leading() {
				p.unsubscribe()
			}
			if errors.As(err, new(transferError)) || ctx.Err() != nil {
				p.transferring = true
				p.log.Info("leading ended", "because", endedBecause(ctx, err))
				continue
			}
			logEnd(p.log, "leading ended", err, p.transferring)
			select {
			case <-ctx.Done():
			case <-time.After(leadPause):
			}
		}
	}
}

// awaitLoss waits until leadership has ended, and reports whether it did before
// ctx. changes may still hold a change from before this leadership began, so
// each is checked against leads.
func awaitLoss(ctx context.Context, changes <-chan bool, leads func() bool) bool {
	for leads() {
		select {
		case <-ctx.Done():
			return false
		case <-changes:
		}
	}
	return true
}

// endedBecause returns why leadership was given up.
func endedBecause(ctx context.Context, err error) string {
	if ctx.Err() != nil {
		return "the node stops, or gives its replica up"
	}
	return err.Error()
}

// logEnd logs that leadership ended with err: as a warning, unless its loss was
// expected.
func logEnd(log *slog.Logger, msg string, err error, expected bool) {
	level := slog.LevelWarn
	if expected && errors.Is(err, raftstore.ErrNotLeader) {
		level = slog.LevelInfo
	}
	log.Log(context.Background(), level, msg, "because", err)
}

// runLeader serves the partition for one leader epoch: from the barrier behind
// which its state is the newest until leadership is lost or transferred, a
// proposal fails, or the context stopping is canceled.
func (p *partition) runLeader(stopping context.Context) error {
	ctx, cancel := context.WithCancelCause(stopping)
	defer cancel(nil)
	select {
	case <-p.host.mayLead:
	case <-ctx.Done():
		return ctx.Err()
	}
	if why := p.fencing.fenced.Load(); why != nil {
		p.transfer.leadership("")
		return fmt.Errorf("%w: %s", errFenced, *why)
	}
	term, err := p.beginTerm(ctx)
	if err != nil {
		return err
	}
	var background sync.WaitGroup
	background.Go(func() { p.endWithTerm(ctx, term, cancel) })
	p.queue.open()
	p.cursors.queue.open()
	p.session.cancel.Store(&cancel)
	s := newSession(p.sessionConfig(term, cancel))
	p.session.slots.Store(&s.sequencer.slots)
	s.start(ctx, &background)
	background.Go(func() { p.cursors.run(ctx, term) })
	background.Go(func() { p.reconcile(ctx) })
	background.Go(func() { p.retainer.run(ctx) })
	subscribed, err := p.subscribeAll(ctx)
	p.unsubscribe() // the former session's
	p.subscribed = subscribed
	if err == nil {
		p.serving.Store(true)
		p.transferring = false
		p.host.announce()
		p.log.Info("leading", "term", term, "high_water_mark", p.replica.position().mark)
		p.adviseLeader()
		<-ctx.Done()
	}
	cancel(err)
	p.serving.Store(false)
	why := context.Cause(ctx)
	newLeader := p.finishTransfer(why, &background)
	// If this node leads on, requests are refused until the next session has
	// subscribed: without subscriptions they would be lost.
	if newLeader || stopping.Err() != nil || !p.group.Leading() {
		p.unsubscribe()
	}
	p.closeQueues(newLeader)
	background.Wait()
	return why
}

// adviseLeader publishes that this node serves the partition.
func (p *partition) adviseLeader() {
	p.host.advise("leader", map[string]any{"partition": p.id, "leader": p.host.name, "term": p.readTerm.Load()})
}

// beginTerm waits until this replica, as the leader, has applied all that was
// committed before its term, which it returns. Reads may be served then, and
// nothing is in flight.
func (p *partition) beginTerm(ctx context.Context) (term uint64, err error) {
	term = p.group.Term()
	if err := p.group.Barrier(ctx); err != nil {
		return 0, fmt.Errorf("barrier: %w", err)
	}
	if now := p.group.Term(); now != term { // what it certified in the old term would be void
		return 0, fmt.Errorf("%w: term %d is over, this is %d", raftstore.ErrNotLeader, term, now)
	}
	p.readTerm.Store(term)
	p.replica.certifier.rollback()
	return term, nil
}

// endWithTerm calls end when this node no longer leads in a term. It returns
// then, or when ctx ends.
func (p *partition) endWithTerm(ctx context.Context, term uint64, end func(error)) {
	if awaitLoss(ctx, p.group.Leadership(), func() bool { return p.group.Term() == term && p.group.Leading() }) {
		end(raftstore.ErrNotLeader)
	}
}

// stopPatience is how long a replica that is to be closed waits for the outcome
// of what is in flight. Afterwards the outcome is unknown.
const stopPatience = 2 * time.Second

// finishTransfer transfers leadership if the session ended for that, or because
// the node stops, once its goroutines have ended. It reports whether another
// node serves the partition then.
func (p *partition) finishTransfer(why error, session *sync.WaitGroup) bool {
	transfer, asked := errors.AsType[transferError](why)
	if !asked && (!errors.Is(why, context.Canceled) || p.host.failed() != nil) {
		return false
	}
	ended := make(chan struct{})
	go func() {
		session.Wait() // batches in flight are answered, new messages wait
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(stopPatience):
		if !asked {
			p.group.Abandon()
		}
		<-ended
	}
	if p.transfer.leadership(transfer.to) {
		return p.transfer.awaitNewLeader()
	}
	if asked {
		p.transfer.failed.Store(time.Now().UnixNano())
	}
	return false
}

// sessionConfig returns what the session of a term is given.
func (p *partition) sessionConfig(term uint64, end func(error)) sessionConfig {
	h := &p.host
	return sessionConfig{
		partition: p.id, partitions: h.partitions, names: h.names, term: term, log: p.log, metrics: &p.metrics, stages: h.metrics.stages,
		queue: p.queue, certifier: p.replica.certifier, inflight: h.inflight,
		propose: func(data []byte) proposal { return p.group.Propose(data) }, rejected: p.rejected,
		mark: func() uint64 { return p.replica.position().mark }, promotedAfter: p.replica.promotedAfter, confirmLeader: func() bool { return p.requests.confirmLeader(term) }, end: end, stall: p.queue.stall,
		nats: h.nats, replies: h.appends, feeds: h.feeds, feedKey: h.feedKey, adviseRefused: p.refusals.advisory,
	}
}

// closeQueues closes the queues. Messages that wait in them are forwarded to
// the new leader, if one serves the partition, and rejected otherwise.
func (p *partition) closeQueues(newLeader bool) {
	for _, q := range []struct {
		*queue
		subject string
	}{{p.queue, p.host.names.Append(p.id)}, {p.cursors.queue, p.host.names.Cursor(p.id, "any")}} {
		rest := q.close()
		if newLeader && p.host.nats.Interested(q.subject) {
			p.forward(rest)
		} else {
			p.refusals.rejectUnavailable(rest)
		}
	}
}

// forward publishes messages again, for the node that leads now.
func (p *partition) forward(ms []*natslink.Message) {
	for _, m := range ms {
		p.host.sender.Send(natslink.AppendForward(nil, m))
	}
}
