package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/raftstore"
)

// leadPause is the wait after a tenure has ended or could not begin: each
// beginning costs an entry of the log.
const leadPause = 20 * time.Millisecond

// run serves the partition whenever this node leads it, until ctx ends.
func (r *replica) run(ctx context.Context) {
	var background sync.WaitGroup
	background.Go(func() { r.trimmer.run(ctx.Done()) })
	background.Go(func() { r.unsendable.find(ctx) })
	background.Go(func() { r.indexer.run(ctx) })
	defer background.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.group.Leadership():
		}
		for r.group.Leading() && ctx.Err() == nil {
			err := r.runLeader(ctx)
			if ctx.Err() != nil || !r.group.Leading() {
				r.unsubscribe()
			}
			if errors.As(err, new(transferError)) || ctx.Err() != nil {
				r.transferring = true
				r.logEnded(slog.LevelInfo, endedBecause(ctx, err))
				continue
			}
			r.logEnded(endedLevel(err, r.transferring), endedBecause(ctx, err))
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

// endedBecause returns why leadership has ended, as text for people.
func endedBecause(ctx context.Context, err error) string {
	switch {
	case ctx.Err() != nil:
		return "the node stops, or gives its replica up"
	case errors.Is(err, raftstore.ErrNotLeader):
		return "no majority answers any more, or another node leads"
	}
	return err.Error()
}

// endedLevel returns the level at which it is logged that leadership ended with
// err: as a warning, unless its loss was expected.
func endedLevel(err error, expected bool) slog.Level {
	if expected && errors.Is(err, raftstore.ErrNotLeader) {
		return slog.LevelInfo
	}
	return slog.LevelWarn
}

// logBegun logs that this node leads the partition, with others of which it
// begins to lead them at the same time.
func (r *replica) logBegun(term uint64) {
	mark := r.state.position().mark
	r.host.leaderships.Add("begun", r.id, func() { r.log.Info("leading", "term", term, "high_water_mark", mark) },
		func(partitions []int) { r.host.log.Info("leading", "partitions", namePartitions(partitions)) })
}

// logEnded logs that this node no longer leads the partition, with others for
// which that ends at the same time.
func (r *replica) logEnded(level slog.Level, why string) {
	ctx := context.Background()
	r.host.leaderships.Add(fmt.Sprint("ended ", level, why), r.id, func() { r.log.Log(ctx, level, "leading ended", "because", why) },
		func(partitions []int) {
			r.host.log.Log(ctx, level, "leading ended", "partitions", namePartitions(partitions), "because", why)
		})
}

// maxListed bounds the partitions that are named in a message.
const maxListed = 20

// namePartitions names partitions for a message.
func namePartitions(partitions []int) string {
	more := len(partitions) - maxListed
	text := strings.Trim(fmt.Sprint(partitions[:min(len(partitions), maxListed)]), "[]")
	if text = strings.ReplaceAll(text, " ", ", "); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// runLeader serves the partition for one leader epoch: from the barrier behind
// which its state is the newest until leadership is lost or transferred, a
// proposal fails, or the context stopping is canceled.
func (r *replica) runLeader(stopping context.Context) error {
	ctx, cancel := context.WithCancelCause(stopping)
	defer cancel(nil)
	select {
	case <-r.host.mayLead:
	case <-ctx.Done():
		return ctx.Err()
	}
	if why := r.fencing.fenced.Load(); why != nil {
		r.transfer.leadership("")
		return fmt.Errorf("%w: %s", errFenced, *why)
	}
	term, err := r.beginTerm(ctx)
	if err != nil {
		return err
	}
	var background sync.WaitGroup
	background.Go(func() { r.endWithTerm(ctx, term, cancel) })
	r.queue.open()
	r.logChecker.queue.open()
	r.cursors.queue.open()
	r.tenure.cancel.Store(&cancel)
	s := newTenure(r.tenureConfig(term, cancel))
	r.tenure.slots.Store(&s.sequencer.slots)
	s.start(ctx, &background)
	background.Go(func() { r.logChecker.run(ctx) })
	background.Go(func() { r.cursors.run(ctx, term) })
	background.Go(func() { r.reconcile(ctx) })
	background.Go(func() { r.retainer.run(ctx) })
	background.Go(func() { r.limiter.run(ctx) })
	subscribed, err := r.subscribeAll(ctx)
	r.unsubscribe() // the former tenure's
	r.subscribed = subscribed
	if err == nil {
		r.serving.Store(true)
		r.metrics.leaderships.Inc()
		r.transferring = false
		r.host.announce()
		r.logBegun(term)
		r.adviseLeader()
		<-ctx.Done()
	}
	cancel(err)
	r.serving.Store(false)
	why := context.Cause(ctx)
	newLeader := r.finishTransfer(why, &background)
	// If this node leads on, requests are refused until the next tenure has
	// subscribed: without subscriptions they would be lost.
	if newLeader || stopping.Err() != nil || !r.group.Leading() {
		r.unsubscribe()
	}
	r.closeQueues(newLeader)
	background.Wait()
	return why
}

// adviseLeader publishes that this node serves the partition.
func (r *replica) adviseLeader() {
	fields := func(partition int) map[string]any {
		return map[string]any{"partition": partition, "leader": r.host.name, "term": r.readTerm.Load()}
	}
	r.host.advise("leader", fields(r.id))
	if r.face.part.Namespace != "" {
		r.host.outbox.Enqueue(r.host.encodeAdvisory(r.face.names, "leader", fields(r.face.number)))
	}
}

// beginTerm waits until this replica, as the leader, has applied all that was
// committed before its term, which it returns. Reads may be served then, and
// nothing is in flight.
func (r *replica) beginTerm(ctx context.Context) (term uint64, err error) {
	term = r.group.Term()
	if err := r.group.Barrier(ctx); err != nil {
		return 0, fmt.Errorf("barrier: %w", err)
	}
	if now := r.group.Term(); now != term { // what it certified in the old term would be void
		return 0, fmt.Errorf("%w: term %d is over, this is %d", raftstore.ErrNotLeader, term, now)
	}
	r.readTerm.Store(term)
	r.state.certifier.rollback()
	r.cursors.order.begin()
	return term, nil
}

// endWithTerm calls end when this node no longer leads in a term. It returns
// then, or when ctx ends.
func (r *replica) endWithTerm(ctx context.Context, term uint64, end func(error)) {
	if awaitLoss(ctx, r.group.Leadership(), func() bool { return r.group.Term() == term && r.group.Leading() }) {
		end(raftstore.ErrNotLeader)
	}
}

// stopPatience is how long a replica that is to be closed waits for the outcome
// of what is in flight. Afterwards the outcome is unknown.
const stopPatience = 2 * time.Second

// finishTransfer transfers leadership if the tenure ended for that, or because
// the node stops, once its goroutines have ended. It reports whether another
// node serves the partition then.
func (r *replica) finishTransfer(why error, tenure *sync.WaitGroup) bool {
	transfer, asked := errors.AsType[transferError](why)
	if !asked && (!errors.Is(why, context.Canceled) || r.host.failed() != nil) {
		return false
	}
	ended := make(chan struct{})
	go func() {
		tenure.Wait() // batches in flight are answered, new messages wait
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(stopPatience):
		if !asked {
			r.group.Abandon()
		}
		<-ended
	}
	if r.transfer.leadership(transfer.to) {
		return r.transfer.awaitNewLeader()
	}
	if asked {
		r.transfer.failed.Store(time.Now().UnixNano())
	}
	return false
}

// tenureConfig returns what the tenure of a term is given.
func (r *replica) tenureConfig(term uint64, end func(error)) tenureConfig {
	h, f := &r.host, &r.face
	return tenureConfig{
		id: r.id, partition: f.number, partitions: f.partitions, names: f.names, term: term, log: r.log, metrics: &r.metrics, stages: h.metrics.stages, tracer: h.tracer,
		queue: r.queue, certifier: r.state.certifier, cursors: r.cursors.order, inflight: h.inflight,
		propose:  func(data []byte) proposal { return r.group.Propose(data) },
		checkLog: func(m *natslink.Message) { r.logChecker.queue.putOrReject(m, &r.refusals) }, rejected: r.rejected, refusesRecords: recordsGate{h.facts, h.peers}.refusal, countRefused: r.limiter.count,
		mark: func() uint64 { return r.state.position().mark }, promotedAfter: r.state.promotedAfter, confirmLeader: func() bool { return r.requests.confirmLeader(term) }, end: end, setLate: r.queue.setLate,
		nats: h.nats, replies: h.appends, feeds: h.feeds, feedKey: f.feedKey, adviseRefused: r.refusals.advisory, adviseAll: r.refusals.conflicts.advise,
	}
}

// closeQueues closes the queues. Messages that wait in them are forwarded to
// the new leader, if one serves the partition, and rejected otherwise.
func (r *replica) closeQueues(newLeader bool) {
	for _, q := range []struct {
		*queue
		subject string
	}{{r.queue, r.face.names.Append(r.face.number)}, {r.logChecker.queue, r.face.names.Append(r.face.number)}, {r.cursors.queue, r.face.names.Cursor(r.face.number, "any")}} {
		rest := q.close()
		if newLeader && r.host.nats.HasInterest(q.subject) {
			r.forward(rest)
		} else {
			r.refusals.rejectUnavailable(rest)
		}
	}
}

// forward publishes messages again, for the node that leads now.
func (r *replica) forward(ms []*natslink.Message) {
	for _, m := range ms {
		r.host.outbox.Enqueue(natslink.AppendForward(nil, m))
	}
}
