package broker

import (
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// replica is this node's replica of one partition: its log, its state and its
// Raft group, and, while it leads, the tenure that serves it.
type replica struct {
	id      int
	host    host
	face    face // how clients see the partition; another one takes another replica
	log     *slog.Logger
	store   *wal.Log
	state   *partitionState
	group   *raftstore.Group
	queue   *queue
	metrics partitionMetrics

	serving atomic.Bool // a tenure of this node serves the partition
	// readTerm is the latest term in which this node led and had applied every
	// entry committed in earlier terms.
	readTerm     atomic.Uint64
	caughtUp     atomic.Bool // the replica has caught up with its leader once
	lag          replicaLag
	subscribed   []subscribed                          // of the tenure, or of the last if this node still leads; owned by run
	transferring bool                                  // the last tenure ended for a transfer, and none served since; owned by run
	refused      atomic.Pointer[natslink.RefusedError] // why a tenure can't serve: the NATS server refused a subscription
	opened       chan struct{}                         // closed when group is set, or will never be

	digests    digests
	tenure     tenureEnd
	fencing    fencing
	transfer   transfer
	gate       diskGate
	unsendable unsendable
	refusals   refusals
	view            // under the cluster's names
	faced      view // under those of a namespace, if the partition belongs to one
	archived   archiveReader
	cursors    cursorWriter
	trimmer    trimmer
	restorer   restorer
	retainer   retainer
	limiter    limiter
	indexer    indexer
	logChecker logChecker
}

// view serves the requests to a partition that are not appends, under the names
// of the cluster or of a namespace.
type view struct {
	requests   requestServer
	reader     reader
	info       partitionInfo
	cursorList cursorList
}

// openReplica restores the partition's state from its log and starts its
// replica. voters are the group's first members, nil unless this node is one of
// them.
func openReplica(h host, id int, log *wal.Log, voters []string) (*replica, error) {
	r := &replica{
		id: id, host: h, log: h.log.With("partition", id),
		store: log, queue: newQueue(h.queueBytes),
		metrics: h.metrics.partition(id, h.stats),
		opened:  make(chan struct{}),
	}
	r.state = newPartitionState(r.store, h.state, h.now, h.fail, &r.digests)
	if h.tracer != nil {
		r.state.traced = func(b wal.Batch, begun time.Time) { h.tracer.Applied(id, b, begun) }
	}
	r.wire()
	opts := h.groupOptions(uint32(id), r.store, r.state, r.log)
	opts.Voters, opts.Full, opts.PeerFull = voters, r.gate.rejectsEntries, r.gate.peerFull
	opts.HaltedItself, opts.PeerLostEntries = r.fencing.contradicted, r.fencing.peerLostEntries
	opts.Halted = r.fencing.load()
	defer close(r.opened)
	group, err := raftstore.Open(opts)
	if err != nil {
		return nil, fmt.Errorf("partition %d: %w", id, err)
	}
	r.setGroup(group)
	return r, nil
}

// wire makes the replica's parts. Those that need the group get it in
// setGroup.
func (r *replica) wire() {
	h, position := &r.host, r.state.position
	r.face = face{names: h.names, number: r.id, partitions: h.partitions, feedKey: h.feedKey, batch: h.names.Batch(r.id)}
	if h.facts != nil { // as in all but some tests
		facts, _ := h.facts()
		part, _ := facts.PartOf(r.id)
		r.face = r.face.in(part)
	}
	r.archived.partition, r.archived.archive, r.archived.log, r.archived.metrics, r.archived.reads = r.id, h.archive, r.log, &r.metrics, h.archiving
	r.archived.cluster, r.archived.position, r.archived.history = h.cluster, r.state.position, r.state.pastClusters
	r.indexer = indexer{
		partition: r.id, label: label(r.id), log: r.log, store: r.store, position: position,
		current: func() bool { return r.group.Current() }, options: h.indexes,
		drops: make(chan uint64, 1),
	}
	r.state.certifier.mayHaveID, r.state.certifier.loadIDs = r.indexer.mayHaveID, r.indexer.loadIDs
	cursors := newQueue(h.queueBytes)
	times := timeSearch{store: r.store, between: r.state.timesBetween, scans: h.scans, archived: r.archived.find}
	r.unsendable = unsendable{partition: r.id, names: r.face.names, log: r.log, store: r.store, nats: h.nats, position: position}
	r.gate = diskGate{partition: r.id, self: h.name, space: h.space, peers: h.peers, announce: h.announce, opened: r.opened}
	r.fencing = fencing{
		partition: r.id, self: h.name, log: r.log, store: r.store, digests: &r.digests, tenure: &r.tenure,
		advise: h.advise, announce: h.announce, fail: h.fail, background: h.background, opened: r.opened,
	}
	r.transfer = transfer{partition: r.id, log: r.log, peers: h.peers, tenure: &r.tenure, electionTimeout: h.electionTimeout}
	r.refusals = refusals{
		face: &r.face, outer: h.names, partition: r.id, metrics: &r.metrics, outbox: h.outbox, encodeAdvisory: h.encodeAdvisory,
		mark: r.state.mark.Load, busyReply: newBusyReply(r.face.number),
		conflicts: conflictAdvice{
			partition: r.id, now: h.now, room: h.nats.MaxPayload,
			encode:   func(event string, fields map[string]any) []byte { return h.encodeAdvisory(h.names, event, fields) },
			interest: func() bool { return h.nats.MayHaveInterest(h.names.Advisory("conflict")) },
		},
	}
	r.wireView(&r.view, h.names, r.id, times)
	r.wireView(&r.faced, r.face.names, r.face.number, times)
	r.view.info.part = r.face.part
	r.wireLogChecker()
	r.gate.queues = []*queue{r.queue, r.logChecker.queue, cursors}
	r.cursors = cursorWriter{
		partition: r.id, face: &r.face, queue: cursors, state: r.state, gate: &r.gate, limiter: &r.limiter, now: h.now,
		metrics: &r.metrics, requests: &r.requests, refusals: &r.refusals, order: newCursorOrder(r.state), refusesRecords: recordsGate{h.facts, h.peers}.refusal,
	}
	r.trimmer = trimmer{
		partition: r.id, log: r.log, store: r.store, state: r.state, gate: &r.gate, requests: &r.requests,
		advise: h.advise, step: h.trimming, contradicted: r.fencing.contradicted,
	}
	made := time.Now()
	r.retainer = retainer{
		partition: r.id, log: r.log, store: r.store, state: r.state, trim: r.trimmer.trim, requests: &r.requests,
		facts: h.facts, others: h.peers.clocks, now: h.now, steady: func() time.Duration { return time.Since(made) }, interval: h.retentionInterval, advise: h.advise, lag: h.metrics.cursorLag,
	}
	r.limiter = limiter{
		partition: r.id, now: func() time.Time { return made.Add(time.Since(made)) }, facts: h.facts, kept: r.state.kept.Load, refusals: h.metrics.limited,
	}
	f := &r.face
	mirrored := publisher{
		partition: f.number, names: f.names, packed: f.names.PackedFeed(f.number), log: r.log, enc: encoder{partition: f.number, names: f.names},
		key: f.feedKey, nats: h.nats, feeds: h.feeds, metrics: &r.metrics,
	}
	r.restorer = restorer{
		partition: r.id, cluster: h.cluster, state: r.state, gate: &r.gate, requests: &r.requests, now: h.now,
		feed: mirrored.publishLog, ended: r.adviseLeader, refusesRecords: recordsGate{h.facts, h.peers}.refusal,
	}
}

func (r *replica) wireLogChecker() {
	r.logChecker = logChecker{
		batchSubject: r.face.batch, queue: newQueue(r.host.queueBytes), back: r.queue,
		refusals: &r.refusals, certifier: r.state.certifier, reader: &r.reader, limits: r.host.nats, most: messageBytes,
	}
}

// wireView makes the parts of a view.
func (r *replica) wireView(v *view, names subjects.Names, number int, times timeSearch) {
	h, position := &r.host, r.state.position
	v.requests = requestServer{
		partition: number, names: names, log: r.log, metrics: &r.metrics, position: position,
		start: h.startRead, answers: h.reads, refusals: h.readOutbox, term: r.readTerm.Load,
	}
	v.reader = reader{
		partition: number, cluster: h.cluster, names: names, metrics: &r.metrics, store: r.store, position: position, history: r.state.pastClusters, newest: r.state.certifier.newest,
		unsendable: &r.unsendable, nats: h.nats, answers: h.reads, pacer: h.pacer, scans: h.scans,
		times: times, archived: &r.archived, indexer: &r.indexer,
	}
	v.info = partitionInfo{
		partition: r.id, number: number, self: h.name, state: r.state, peers: h.peers, term: r.readTerm.Load,
		fullText: r.gate.fullText, requests: &v.requests, times: times, archived: &r.archived, retention: r.retainer.summary, limits: r.limiter.info,
	}
	v.cursorList = cursorList{partition: number, state: r.state, term: r.readTerm.Load, nats: h.nats, requests: &v.requests}
}

func (r *replica) setGroup(group *raftstore.Group) {
	r.group, r.gate.group, r.fencing.group, r.transfer.group = group, group, group, group
	r.cursors.propose = func(data []byte) proposal { return group.Propose(data) }
	r.requests.group, r.info.group, r.cursors.group, r.trimmer.group, r.restorer.group = group, group, group, group, group
	r.cursorList.group, r.retainer.group = group, group
	r.faced.requests.group, r.faced.info.group, r.faced.cursorList.group = group, group, group
}

// report returns the node's report of its replica, and notes when the replica
// has caught up with its leader.
func (r *replica) report() groupReport {
	status := r.group.Status()
	report := statusReport(status)
	at := r.state.position()
	report.Serves = r.serving.Load()
	report.Partition, report.Txid, report.First, report.Digests = r.id, at.mark, at.first, r.digests.newest()
	if why := r.fencing.fenced.Load(); why != nil {
		report.Fenced = *why
	}
	report.Halted = r.fencing.halted.Load() != nil
	if report.leads() {
		report.Forgot = r.group.PeersThatLostEntries()
		report.Full, report.Limited = r.gate.fullText(), r.limiter.text()
		report.CaughtUp = r.votersCaughtUp(status.Replicas, report.Forgot, time.Now())
	}
	if report.leads() || r.follows(report) {
		r.caughtUp.Store(true)
	}
	return report
}

// votersCaughtUp returns the voters that the partition can go on with, as this
// replica knows them as their leader. They must have room, and not be among
// those that have lost entries.
func (r *replica) votersCaughtUp(replicas []raftstore.Replica, lost map[string]string, now time.Time) []string {
	if r.fencing.barred() != "" {
		return nil
	}
	report := func(name string) (groupReport, bool) {
		if room, _ := r.host.space.hasRoom(name, now); !room || lost[name] != "" {
			return groupReport{}, false
		}
		return r.host.peers.report(name, r.id, now)
	}
	names := votersCaughtUp(replicas, r.host.name, report, r.group.Reachable)
	if r.host.space.isFull() {
		return slices.DeleteFunc(names, func(name string) bool { return name == r.host.name })
	}
	return names
}

// follows reports whether the replica has caught up with its leader, as the
// leader has last reported, and has applied an entry of its leader's term:
// until then its log may be another one, which the leader's contradicts. It
// notes how far behind it is.
func (r *replica) follows(report groupReport) bool {
	now := time.Now()
	name, leader, ok := r.host.peers.leader(r.id, now)
	if !ok {
		return false
	}
	r.lag.observe(report.Txid, leader.Txid, now)
	compared, _ := r.fencing.digests.compare(leader.Digests)
	if compared == nothing {
		compared = r.fencing.comparisons.with(name) // both may have gone on since
	}
	return hasCaughtUp(report, leader, compared) && (r.caughtUp.Load() || r.group.Current())
}

// hasCaughtUp reports whether a replica is at most maxLag entries behind what
// its leader has committed, and its log is the leader's: their digests are
// equal at a transaction that both have. Terms don't show that. On an older
// copy of its directory a node votes twice in a term, and Raft can't tell the
// entries of that term's two leaders apart.
func hasCaughtUp(own, leader groupReport, compared comparison) bool {
	return own.Applied >= own.Commit && own.Commit > 0 && own.Applied+maxLag >= leader.Commit && (compared == equal || compared == nothing && own.Txid == 0)
}

// unserved returns why the partition is not served, or this replica follows no
// leader; "" if neither is the case.
func (r *replica) unserved() string {
	status := r.group.Status()
	switch {
	case r.fencing.fenced.Load() != nil:
		return fmt.Sprintf("partition %d is fenced: %s", r.id, *r.fencing.fenced.Load())
	case r.fencing.halted.Load() != nil:
		return fmt.Sprintf("partition %d is halted: %s", r.id, *r.fencing.halted.Load())
	case status.Leader == "":
		return fmt.Sprintf("partition %d follows no leader", r.id)
	case r.refused.Load() != nil:
		return fmt.Sprintf("partition %d is not served: %s", r.id, r.refused.Load())
	case status.State == "leader" && !r.serving.Load():
		return fmt.Sprintf("partition %d is not served yet", r.id)
	case status.State != "leader" && !r.caughtUp.Load():
		if r.host.space.isFull() {
			return fmt.Sprintf("partition %d is to catch up: %s", r.id, errFull)
		}
		return fmt.Sprintf("partition %d is catching up", r.id)
	}
	return ""
}

// rejected returns why no transaction can be stored now, nil if it can.
func (r *replica) rejected() error {
	switch at := r.state.position(); {
	case at.restoring:
		return errRestoring(r.face.number)
	case at.mirrorOf != "":
		return errMirror(r.face.number, at.mirrorOf)
	}
	if err := r.gate.fullError(); err != nil {
		return err
	}
	if e := r.limiter.full(r.limiter.limits.Load()); e != nil {
		return e
	}
	return nil
}

// onAppend queues appends and batches. It runs on the reading goroutine of the
// connection and must not block.
func (r *replica) onAppend(m *natslink.Message) {
	if limits := r.limiter.limits.Load(); limits != nil {
		if why := r.limiter.admitMessage(limits, m, m.Subject == r.face.batch); why != nil {
			r.refusals.reject(m, why)
			return
		}
	}
	r.queue.putOrReject(m, &r.refusals)
}
