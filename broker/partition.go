package broker

import (
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/wal"
)

// partition is this node's replica of one partition: its log, its state and its
// Raft group, and, while it leads, the session that serves it.
type partition struct {
	id      int
	host    host
	log     *slog.Logger
	store   *wal.Log
	replica *replica
	group   *raftstore.Group
	queue   *queue
	metrics partitionMetrics

	serving atomic.Bool // a session of this node serves the partition
	// readTerm is the latest term in which this node led and had applied every
	// entry committed in earlier terms.
	readTerm     atomic.Uint64
	caughtUp     atomic.Bool                           // the replica has caught up with its leader once
	subscribed   []subscribed                          // of the session, or of the last if this node still leads; owned by run
	transferring bool                                  // the last session ended for a transfer, and none served since; owned by run
	refused      atomic.Pointer[natslink.RefusedError] // why a session can't serve: the NATS server refused a subscription
	opened       chan struct{}                         // closed when group is set, or will never be

	digests    digests
	session    sessionEnd
	fencing    fencing
	transfer   transfer
	gate       diskGate
	unsendable unsendable
	refusals   refusals
	requests   requestServer
	reader     reader
	archived   archived
	info       partitionInfo
	cursors    cursorWriter
	cursorList cursorList
	trimmer    trimmer
	restorer   restorer
	retainer   retainer
}

// openPartition restores the partition's state from its log and starts its
// replica. voters are the group's first members, nil unless this node is one of
// them.
func openPartition(h host, id int, log *wal.Log, voters []string) (*partition, error) {
	p := &partition{
		id: id, host: h, log: h.log.With("partition", id),
		store: log, queue: newQueue(h.queueBytes),
		metrics: h.metrics.partition(id, h.stats),
		opened:  make(chan struct{}),
	}
	p.replica = newReplica(p.store, h.replica, h.now, h.fail, &p.digests)
	p.wire()
	opts := h.groupOptions(uint32(id), p.store, p.replica, p.log)
	opts.Voters, opts.Full, opts.PeerFull = voters, p.gate.rejectsEntries, p.gate.peerFull
	opts.HaltedItself, opts.PeerLostEntries = p.fencing.contradicted, p.fencing.peerLostEntries
	opts.Halted = p.fencing.load()
	defer close(p.opened)
	group, err := raftstore.Open(opts)
	if err != nil {
		return nil, fmt.Errorf("partition %d: %w", id, err)
	}
	p.setGroup(group)
	return p, nil
}

// wire makes the partition's parts. Those that need the group get it in
// setGroup.
func (p *partition) wire() {
	h, position := &p.host, p.replica.position
	p.archived.partition, p.archived.archive, p.archived.log, p.archived.metrics, p.archived.reads = p.id, h.archive, p.log, &p.metrics, h.archiving
	cursors := newQueue(h.queueBytes)
	times := timeSearch{store: p.store, between: p.replica.timesBetween, scans: h.scans, archived: p.archived.find}
	p.unsendable = unsendable{partition: p.id, names: h.names, log: p.log, store: p.store, nats: h.nats, position: position}
	p.gate = diskGate{partition: p.id, self: h.name, space: h.space, peers: h.peers, announce: h.announce, queues: []*queue{p.queue, cursors}, opened: p.opened}
	p.fencing = fencing{
		partition: p.id, self: h.name, log: p.log, store: p.store, digests: &p.digests, session: &p.session,
		diverged: func() { h.metrics.diverged.WithLabelValues(label(p.id)).Set(1) },
		advise:   h.advise, announce: h.announce, fail: h.fail, background: h.background, opened: p.opened,
	}
	p.transfer = transfer{partition: p.id, log: p.log, peers: h.peers, session: &p.session, electionTimeout: h.electionTimeout}
	p.refusals = refusals{
		partition: p.id, names: h.names, metrics: &p.metrics, sender: h.sender, encodeAdvisory: h.encodeAdvisory,
		position: position, mark: p.replica.mark.Load, busyReply: newBusyReply(p.id),
	}
	p.requests = requestServer{
		partition: p.id, names: h.names, log: p.log, metrics: &p.metrics, position: position,
		start: h.startRead, answers: h.reads, refusals: h.readSender, term: p.readTerm.Load,
	}
	p.reader = reader{
		partition: p.id, cluster: h.cluster, names: h.names, metrics: &p.metrics, store: p.store, position: position, history: p.replica.pastClusters, newest: p.replica.certifier.newest,
		unsendable: &p.unsendable, nats: h.nats, answers: h.reads, pacer: h.pacer, scans: h.scans,
		times: times, archived: &p.archived,
	}
	p.info = partitionInfo{
		partition: p.id, self: h.name, replica: p.replica, peers: h.peers, term: p.readTerm.Load,
		fullText: p.gate.fullText, requests: &p.requests, times: times, archived: &p.archived, retention: p.retainer.summary,
	}
	p.cursors = cursorWriter{
		partition: p.id, queue: cursors, replica: p.replica, gate: &p.gate, now: h.now,
		metrics: &p.metrics, requests: &p.requests, refusals: &p.refusals,
	}
	p.cursorList = cursorList{partition: p.id, replica: p.replica, term: p.readTerm.Load, nats: h.nats, requests: &p.requests}
	p.trimmer = trimmer{
		partition: p.id, log: p.log, store: p.store, replica: p.replica, gate: &p.gate, requests: &p.requests,
		advise: h.advise, step: h.trimming, contradicted: p.fencing.contradicted,
	}
	made := time.Now()
	p.retainer = retainer{
		partition: p.id, log: p.log, store: p.store, replica: p.replica, trim: p.trimmer.trim, requests: &p.requests,
		facts: h.facts, others: h.peers.clocks, now: h.now, steady: func() time.Duration { return time.Since(made) }, interval: h.retentionInterval, advise: h.advise, lag: h.metrics.cursorLag,
	}
	mirrored := publisher{
		partition: p.id, names: h.names, packed: h.names.PackedFeed(p.id), log: p.log, enc: encoder{partition: p.id, names: h.names},
		key: h.feedKey, nats: h.nats, feeds: h.feeds,
	}
	p.restorer = restorer{
		partition: p.id, cluster: h.cluster, replica: p.replica, gate: &p.gate, requests: &p.requests, now: h.now,
		feed: mirrored.publishLog, ended: p.adviseLeader,
	}
}

func (p *partition) setGroup(group *raftstore.Group) {
	p.group, p.gate.group, p.fencing.group, p.transfer.group = group, group, group, group
	p.requests.group, p.info.group, p.cursors.group, p.trimmer.group, p.restorer.group = group, group, group, group, group
	p.cursorList.group, p.retainer.group = group, group
}

// report returns the node's report of its replica, and notes when the replica
// has caught up with its leader.
func (p *partition) report() groupReport {
	r := statusReport(p.group.Status())
	at := p.replica.position()
	r.Serves = p.serving.Load()
	r.Partition, r.Txid, r.First, r.Digests = p.id, at.mark, at.first, p.digests.newest()
	if why := p.fencing.fenced.Load(); why != nil {
		r.Fenced = *why
	}
	if r.leads() {
		r.Forgot = p.group.PeersThatLostEntries()
		r.Full = p.gate.fullText()
	}
	if r.leads() || r.Applied >= r.Commit && r.Commit > 0 && p.hasCaughtUp(r) {
		p.caughtUp.Store(true)
	}
	return r
}

// hasCaughtUp reports whether the replica is at most maxLag entries behind what
// its leader last reported as committed.
func (p *partition) hasCaughtUp(r groupReport) bool {
	_, leader, ok := p.host.peers.leader(p.id, time.Now())
	return ok && r.Applied+maxLag >= leader.Commit
}

// unserved returns why the partition is not served, or this replica follows no
// leader; "" if neither is the case.
func (p *partition) unserved() string {
	status := p.group.Status()
	switch {
	case p.fencing.fenced.Load() != nil:
		return fmt.Sprintf("partition %d is fenced: %s", p.id, *p.fencing.fenced.Load())
	case p.fencing.halted.Load() != nil:
		return fmt.Sprintf("partition %d takes no part: %s", p.id, *p.fencing.halted.Load())
	case status.Leader == "":
		return fmt.Sprintf("partition %d follows no leader", p.id)
	case p.refused.Load() != nil:
		return fmt.Sprintf("partition %d is not served: %s", p.id, p.refused.Load())
	case status.State == "leader" && !p.serving.Load():
		return fmt.Sprintf("partition %d is not served yet", p.id)
	case status.State != "leader" && !p.caughtUp.Load():
		if p.host.space.isFull() {
			return fmt.Sprintf("partition %d is to catch up: %s", p.id, errFull)
		}
		return fmt.Sprintf("partition %d is catching up", p.id)
	}
	return ""
}

// rejected returns why no transaction can be stored now, nil if it can.
func (p *partition) rejected() error {
	switch at := p.replica.position(); {
	case at.restoring:
		return errRestoring(p.id)
	case at.mirrorOf != "":
		return errMirror(p.id, at.mirrorOf)
	}
	return p.gate.fullError()
}

// onAppend queues appends and batches. It runs on the reading goroutine of the
// connection and must not block.
func (p *partition) onAppend(m *natslink.Message) { p.queue.putOrReject(m, &p.refusals) }
