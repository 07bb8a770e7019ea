package broker

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// partition is this node's part in one partition: a replica of its state,
// and, while it leads, the session that serves it.
type partition struct {
	id      int
	node    *Node
	log     *slog.Logger
	store   *wal.Log
	replica *replica
	group   *raftstore.Group
	queue   *queue
	cursors *queue
	busy    ready // when a queue is full
	metrics partitionMetrics

	serving atomic.Bool // a session of this node's is under way
	// term is the newest in which this node has led and known all that was
	// committed before.
	term  atomic.Uint64
	level atomic.Bool // it has had all that its leader had, once
	// crowded is what isCrowded said lately, while this replica leads.
	crowded  atomic.Bool
	crowding sync.Mutex // held while crowded is found out

	digests digests
	end     atomic.Pointer[context.CancelCauseFunc] // of the present session
	willing bool                                    // the last session was ended to hand over, and none served since; run owns it
	stayed  atomic.Int64                            // when it could not make way, Unix nanoseconds
	refused atomic.Pointer[natslink.RefusedError]   // what keeps the session from serving
	fenced  atomic.Pointer[string]                  // why it must not serve: its log differs from the others'
	opened  chan struct{}                           // closed when group is set, or will never be
	// disputed is why it takes no part for now: its log may be the one that differs.
	disputed atomic.Pointer[string]
	verdicts verdicts
	accuser  atomic.Pointer[string] // the leader that says that it has lost entries
	// unsendable is the largest transaction that a read has met and the NATS server
	// does not take.
	unsendable atomic.Pointer[unsendableError]
}

// openPartition brings the partition's state back and starts its replica.
// Voters found its group, if this node does.
func openPartition(n *Node, id int, voters []string) (*partition, error) {
	p := &partition{
		id: id, node: n, log: n.log.With("partition", id),
		store: n.store.Log(uint32(id)), queue: newQueue(int(n.limits.queueBytes.Load())), cursors: newQueue(int(n.limits.queueBytes.Load())),
		metrics: n.metrics.partition(id, n.stats),
		busy:    newReady(id, busyError(id)),
		opened:  make(chan struct{}),
	}
	p.replica = newReplica(p.store, n.opts, n.fail, &p.digests)
	if why := p.store.Meta(metaFenced); why != nil {
		text := string(why)
		p.fenced.Store(&text)
	}
	opts := n.groupOptions(uint32(id), p.store, p.replica, p.log)
	opts.Voters, opts.Full, opts.PeerFull = voters, p.turnsDown, p.peerFull
	opts.HaltedItself, opts.PeerLostEntries = p.contradicted, p.peerForgot
	if why := p.fenced.Load(); why != nil {
		opts.Halted = fmt.Errorf("%w: %s", errFenced, *why)
	}
	defer close(p.opened)
	group, err := raftstore.Open(opts)
	if err != nil {
		return nil, fmt.Errorf("partition %d: %w", id, err)
	}
	p.group = group
	return p, nil
}

// report is what the node says of its replica.
func (p *partition) report() groupReport {
	r := statusReport(p.group.Status())
	at := p.replica.position()
	r.Serves = p.serving.Load()
	r.Partition, r.Txid, r.First, r.Digests = p.id, at.mark, at.first, p.digests.newest()
	if why := p.fenced.Load(); why != nil {
		r.Fenced = *why
	}
	if r.leads() {
		r.Forgot = p.group.PeersThatLostEntries()
		r.Full = p.fullText()
	}
	if r.leads() || r.Applied >= r.Commit && r.Commit > 0 && p.followsLevel(r) {
		p.level.Store(true)
	}
	return r
}

// followsLevel tells whether the replica has what its leader last said that it
// had committed.
func (p *partition) followsLevel(r groupReport) bool {
	_, leader, ok := p.node.peers.leader(p.id, time.Now())
	return ok && r.Applied+promoteLag >= leader.Commit
}

// unserved says what keeps the replica from being served, "" if nothing does.
func (p *partition) unserved() string {
	status := p.group.Status()
	switch {
	case p.fenced.Load() != nil:
		return fmt.Sprintf("partition %d is fenced: %s", p.id, *p.fenced.Load())
	case p.disputed.Load() != nil:
		return fmt.Sprintf("partition %d takes no part: %s", p.id, *p.disputed.Load())
	case status.Leader == "":
		return fmt.Sprintf("partition %d follows no leader", p.id)
	case p.refused.Load() != nil:
		return fmt.Sprintf("partition %d is not served: %s", p.id, p.refused.Load())
	case status.State == "leader" && !p.serving.Load():
		return fmt.Sprintf("partition %d is not served yet", p.id)
	case status.State != "leader" && !p.level.Load():
		return fmt.Sprintf("partition %d is catching up", p.id)
	}
	return ""
}

// leadPause keeps a partition whose sessions can't begin from trying it as
// fast as it can.
const leadPause = 20 * time.Millisecond

// run serves the partition whenever this node leads it, until ctx ends.
func (p *partition) run(ctx context.Context) {
	var background sync.WaitGroup
	background.Go(func() { p.retain(ctx.Done()) })
	background.Go(func() { p.findUnsendable(ctx) })
	defer background.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.group.Leadership():
		}
		for p.group.Leading() && ctx.Err() == nil {
			err := p.lead(ctx)
			if errors.As(err, new(handing)) || ctx.Err() != nil {
				p.willing = true
				p.log.Info("leading ended", "because", endedBecause(ctx, err))
				continue
			}
			logEnd(p.log, "leading ended", err, p.willing)
			select { // each beginning costs an entry of the log
			case <-ctx.Done():
			case <-time.After(leadPause):
			}
		}
	}
}

// awaitLoss waits until leadership has ended, and reports whether it did before ctx.
// changes may still hold a change from before this leadership began, so each is checked
// against leads.
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

// endedBecause says why leadership was given up.
func endedBecause(ctx context.Context, err error) string {
	if ctx.Err() != nil {
		return "the node stops, or gives its replica up"
	}
	return err.Error()
}

// logEnd logs that leadership ended with err. It is a warning unless the node was
// willing to end it.
func logEnd(log *slog.Logger, msg string, err error, willing bool) {
	level := slog.LevelWarn
	if willing && errors.Is(err, raftstore.ErrNotLeader) {
		level = slog.LevelInfo
	}
	log.Log(context.Background(), level, msg, "because", err)
}

// lead serves as the partition's leader, from the barrier that makes its
// state the newest until leadership is lost, a proposal fails, or ctx ends.
func (p *partition) lead(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	select {
	case <-p.node.cleared:
	case <-ctx.Done():
		return ctx.Err()
	}
	if why := p.fenced.Load(); why != nil {
		p.handOver("")
		return fmt.Errorf("%w: %s", errFenced, *why)
	}
	term := p.group.Term()
	if err := p.group.Barrier(ctx); err != nil {
		return fmt.Errorf("barrier: %w", err)
	}
	if now := p.group.Term(); now != term { // what it certified in the old term would be void
		return fmt.Errorf("%w: term %d is over, this is %d", raftstore.ErrNotLeader, term, now)
	}
	p.term.Store(term)
	p.replica.certifier.rollback()

	var background sync.WaitGroup
	background.Go(func() {
		if awaitLoss(ctx, p.group.Leadership(), func() bool { return p.group.Term() == term && p.group.Leading() }) {
			cancel(raftstore.ErrNotLeader)
		}
	})
	p.queue.accepting(true)
	p.cursors.accepting(true)
	p.end.Store(&cancel)
	newSession(p.sessionConfig(term, cancel)).start(ctx, &background)
	background.Go(func() { p.writeCursors(ctx, term) })
	background.Go(func() { p.reconcile(ctx) })
	subscribed, err := p.subscribeAtLast(ctx)
	if err == nil {
		p.serving.Store(true)
		p.willing = false
		p.node.helloSoon()
		p.log.Info("leading", "term", term, "high_water_mark", p.replica.position().mark)
		p.node.advise("leader", map[string]any{"partition": p.id, "leader": p.node.opts.Name, "term": term})
		<-ctx.Done()
	}
	cancel(err)
	p.serving.Store(false)
	why := context.Cause(ctx)
	successor := false
	if way, asked := errors.AsType[handing](why); asked || errors.Is(why, context.Canceled) && p.node.Err() == nil {
		background.Wait() // what is in flight is answered, what comes in waits
		if successor = p.handOver(way.to); successor {
			successor = p.awaitSuccessor()
		} else if asked {
			p.stayed.Store(time.Now().UnixNano())
		}
	}
	p.node.unsubscribeAll(subscribed)
	p.letGo(successor)
	background.Wait()
	return why
}

// sessionConfig returns what a session is given that leads in a term.
func (p *partition) sessionConfig(term uint64, end func(error)) sessionConfig {
	n := p.node
	return sessionConfig{
		partition: p.id, partitions: n.Partitions(), names: n.names, term: term, log: p.log, metrics: &p.metrics, stages: n.metrics.stages,
		queue: p.queue, certifier: p.replica.certifier, inflight: n.inflight,
		propose: func(data []byte) proposal { return p.group.Propose(data) }, rejected: p.fullError,
		mark: func() uint64 { return p.replica.position().mark }, confirmLeader: func() bool { return p.leads(term) }, end: end,
		nats: n.nats, replies: n.appends, feeds: n.feeds, feedKey: n.feedKey(), adviseRefused: p.adviseRefused,
	}
}

// letGo closes the queues. What waits in them goes to the successor, if one
// serves the partition, and is refused otherwise.
func (p *partition) letGo(successor bool) {
	for _, q := range []struct {
		*queue
		subject string
	}{{p.queue, p.node.names.Append(p.id)}, {p.cursors, p.node.names.Cursor(p.id, "any")}} {
		rest := q.accepting(false)
		if successor && p.node.nats.interest(q.subject) {
			p.passOn(rest)
		} else {
			p.turnAway(rest)
		}
	}
}

// passOn sends messages again, for whom leads now.
func (p *partition) passOn(ms []*natslink.Message) {
	for _, m := range ms {
		p.node.sender.Send(natslink.AppendForward(nil, m))
	}
}

// handing ends a session that is to make way for another node's.
type handing struct{ to string }

func (h handing) Error() string { return "leadership is handed over to " + h.to }

// makeWay has the session that is under way end, and its leadership handed
// over to a node, unless that has just failed.
func (p *partition) makeWay(_ context.Context, to string) error {
	if since := time.Since(time.Unix(0, p.stayed.Load())); since < handOverPause {
		return fmt.Errorf("leadership could not be handed over %v ago", since.Round(time.Millisecond))
	}
	if end := p.end.Load(); end != nil {
		(*end)(handing{to})
	}
	return nil
}

// awaitSuccessor returns when another node says that it serves the partition;
// false says that none did for a while.
func (p *partition) awaitSuccessor() bool {
	patience := time.NewTimer(successorTime)
	defer patience.Stop()
	for {
		heard := p.node.peers.next()
		if _, r, ok := p.node.peers.leader(p.id, time.Now()); ok && r.Serves && r.Term >= p.group.Status().Term {
			return true
		}
		select {
		case <-heard:
		case <-patience.C:
			return false
		}
	}
}

// successorTime is how long a leader that has handed over keeps requests for
// the next one.
const successorTime = 500 * time.Millisecond

func (p *partition) subscribe(ctx context.Context) ([]subscribed, error) {
	names, group := p.node.names, p.node.queueGroup()
	var all []subscribed
	for _, s := range []struct {
		link    *natslink.Link
		subject string
		handle  func(*natslink.Message)
	}{
		{p.node.appends, names.Append(p.id), p.onAppend},
		{p.node.appends, names.KeyedAppend(p.id, "*"), p.onAppend},
		{p.node.appends, names.Batch(p.id), p.onAppend},
		{p.node.reads, names.Read(p.id), p.onRead(ctx, p.serveRead)},
		{p.node.reads, names.Get(p.id), p.onRead(ctx, p.serveGet)},
		{p.node.reads, names.PartitionInfo(p.id), p.onRead(ctx, p.serveInfo)},
		{p.node.reads, names.Cursor(p.id, "*"), p.onCursor},
		{p.node.reads, names.Admin("trim", label(p.id)), p.onRead(ctx, p.serveTrim)},
	} {
		// A queue group: while an old leader does not know of the new one, a
		// request must reach one of the two, or "nothing was done" could be
		// said of what the other one did.
		id, err := s.link.Subscribe(s.subject, group, s.handle)
		if err != nil {
			return all, err
		}
		all = append(all, subscribed{s.link, id})
	}
	for _, l := range []*natslink.Link{p.node.appends, p.node.reads} {
		var ids []int
		for _, s := range all {
			if s.link == l {
				ids = append(ids, s.id)
			}
		}
		if err := l.Confirm(ctx, ids...); err != nil {
			return all, err
		}
	}
	return all, nil
}

// subscribeAtLast subscribes, as often as it takes until the NATS server takes all
// of it. Meanwhile the partition is not served in part, and another node leads it if
// one is there.
func (p *partition) subscribeAtLast(ctx context.Context) ([]subscribed, error) {
	defer p.refused.Store(nil)
	for {
		all, err := p.subscribe(ctx)
		refused, is := errors.AsType[natslink.RefusedError](err)
		if !is {
			return all, err
		}
		p.refused.Store(&refused)
		p.node.unsubscribeAll(all)
		if heir := p.heir(); heir != "" && p.makeWay(ctx, heir) == nil {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(natslink.RetryInterval):
		}
	}
}

// leads tells whether a majority confirms that this node still leads in a term.
// Only then does it know where the log ends: a leader that was paused does not
// know what others have committed since, and that something is ahead of the log
// is said for good.
func (p *partition) leads(term uint64) bool {
	ctx, cancel := context.WithTimeout(context.Background(), verifyTime)
	defer cancel()
	return p.group.VerifyLeader(ctx, term) == nil
}

const verifyTime = 2 * time.Second

// notConfirmedError refuses a request that is ahead of the log, or would be if this
// node still led, which no majority confirms.
func notConfirmedError(partition int) *subjects.Error {
	return subjects.Errorf(subjects.Unavailable, "this node may not lead partition %d any more: nothing was done, try again", partition)
}

// queueGroup is the queue group of the nodes that answer requests. Nobody else
// knows its name, so that nobody else can join it and take requests: see
// docs/adr/0021.
func (n *Node) queueGroup() string {
	return "cantus-" + hex.EncodeToString(n.derive("queue group")[:16])
}

// unsubscribeTime bounds the wait for the NATS server to let go of
// subscriptions.
const unsubscribeTime = 5 * time.Second

// onAppend takes appends and batches in. It runs on the link's reading
// goroutine and must neither block nor send.
func (p *partition) onAppend(m *natslink.Message) { p.enqueue(p.queue, m) }

func (p *partition) enqueue(q *queue, m *natslink.Message) {
	switch q.put(m) {
	case full:
		p.turnBack(m)
	case closed:
		p.turnAway([]*natslink.Message{m})
	}
}

func busyError(partition int) *subjects.Error {
	return subjects.Errorf(subjects.Busy, "partition %d has too many requests waiting: back off and try again", partition)
}

// turnBack answers a message for which there is no room. It waits for nothing:
// the replica's lock is held for long while a large batch is certified.
func (p *partition) turnBack(m *natslink.Message) {
	if m.Reply == "" {
		p.node.sender.Send(p.refuse(m, busyError(p.id)))
		return
	}
	p.metrics.refused(p.endpoint(m), p.busy.reason)
	p.node.sender.Send(p.busy.append(nil, m.Reply, p.replica.mark.Load()))
}

// turnAway answers messages that nothing was done for.
func (p *partition) turnAway(ms []*natslink.Message) {
	for _, m := range ms {
		p.node.sender.Send(p.refuse(m, subjects.Errorf(subjects.Unavailable,
			"this node does not serve partition %d any more: try again", p.id)))
	}
}

// refuse gives the message that refuses m as a whole.
func (p *partition) refuse(m *natslink.Message, e *subjects.Error) []byte {
	endpoint := p.endpoint(m)
	p.metrics.refused(endpoint, e.Reason)
	if m.Reply == "" {
		return p.adviseRefused(endpoint, msgID(m.Header), e)
	}
	mark := p.replica.position().mark
	return appendRefusal(nil, m.Reply, e, subjects.Reply{Partition: p.id, Error: e, HighWaterMark: &mark})
}

// endpoint names the endpoint that a message came in at, as discovery does.
func (p *partition) endpoint(m *natslink.Message) string {
	rest := m.Subject[len(p.node.names.Prefix)+1:]
	verb, _, _ := strings.Cut(rest, ".")
	switch verb {
	case "info":
		return "partition_info"
	case "replica":
		return "replica_read"
	}
	return verb
}

// msgID finds the message id of a message that was not decoded.
func msgID(header []byte) (id []byte) {
	_ = subjects.ScanBlock(header, func(key, value []byte) error {
		if string(key) == subjects.HeaderMsgID {
			id = value
		}
		return nil
	})
	return id
}

// adviseRefused tells by an advisory what could not be answered.
func (p *partition) adviseRefused(endpoint string, msgID []byte, e *subjects.Error) []byte {
	fields := map[string]any{"partition": p.id, "endpoint": endpoint, "error": e}
	if len(msgID) > 0 {
		fields["msg_id"] = string(msgID)
	}
	return p.node.advisory("refused", fields)
}

// trailing gives the last token of a subject.
func trailing(subject string) string {
	for i := len(subject) - 1; i >= 0; i-- {
		if subject[i] == '.' {
			return subject[i+1:]
		}
	}
	return subject
}

// advisory gives an event as a message.
func (n *Node) advisory(kind string, fields map[string]any) []byte {
	fields["type"], fields["node"], fields["time"] = kind, n.opts.Name, time.Now().UTC()
	return natslink.AppendPub(nil, n.names.Advisory(kind), mustJSON(fields))
}

// advise publishes an event.
func (n *Node) advise(kind string, fields map[string]any) { n.sender.Send(n.advisory(kind, fields)) }

func label(partition int) string { return strconv.Itoa(partition) }
