package broker

import (
	"cmp"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cantuslog/cantus/lockmgr"
	"github.com/cantuslog/cantus/raftstore"
)

// partitionCollector has the metrics of the node's replicas. A partition
// without a replica here has none but "replica_open" and "leader_known".
type partitionCollector struct {
	self        string // this node
	meta        *meta
	peers       *peers
	controllers []*replicaController
}

func newPartitionCollector(self string, m *meta, p *peers, controllers []*replicaController) *partitionCollector {
	return &partitionCollector{self: self, meta: m, peers: p, controllers: controllers}
}

// replicaView is a replica as it is at a scrape.
type replicaView struct {
	r        *replica
	at       position
	status   raftstore.Status
	serves   bool // it leads and accepts requests
	locks    lockmgr.Stats
	batches  int // in flight
	requests int // queued
	queued   int // bytes
	bytes    uint64
	cursors  int
	behind   uint64 // transactions
	lag      time.Duration
	voters   int
	caughtUp int // of voters
	away     int // of voters
}

func (c *partitionCollector) view(r *replica, now time.Time) *replicaView {
	v := &replicaView{r: r, at: r.state.position(), status: r.group.Status(), serves: r.serving.Load()}
	v.locks, v.batches = r.state.certifier.figures()
	v.requests, v.queued = r.queue.waiting()
	searched, bytes := r.logChecker.queue.waiting()
	v.requests, v.queued = v.requests+searched, v.queued+bytes
	v.bytes, v.cursors = r.state.figures()
	if v.status.State != "leader" {
		v.behind, v.lag = r.lag.read(v.at.mark, now)
	}
	if v.serves {
		v.caughtUp = len(r.votersCaughtUp(v.status.Replicas, r.group.PeersThatLostEntries(), now))
	}
	for _, member := range v.status.Replicas {
		if !member.Voter {
			continue
		}
		v.voters++
		if _, here := c.peers.report(member.Name, r.id, now); member.Name != c.self && !here {
			v.away++
		}
	}
	return v
}

// partitionFigure is a metric of a replica.
type partitionFigure struct {
	scraped
	leader bool // only the leader's replica has it
	value  func(*replicaView) float64
}

var partitionFigures = []partitionFigure{
	{scrapedGauge("leading", "1 if this node leads the partition and accepts its requests.", "partition"), false,
		func(v *replicaView) float64 { return bit(v.serves) }},
	{scrapedGauge("high_water_mark", "The txid of the last committed transaction that this node's replica has applied.", "partition"), false,
		func(v *replicaView) float64 { return float64(v.at.mark) }},
	{scrapedGauge("first_txid", "The txid of the oldest transaction that is kept; one more than the high-water mark if none is.", "partition"), false,
		func(v *replicaView) float64 { return float64(v.at.first) }},
	{scrapedGauge("log_bytes", "Bytes of the entries that the partition's log keeps.", "partition"), false,
		func(v *replicaView) float64 { return float64(v.bytes) }},
	{scrapedCounter("log_entries_read_total", "Entries of the log that were read: for readers, for other replicas, and at the start.", "partition"), false,
		func(v *replicaView) float64 { return float64(v.r.store.EntriesRead()) }},

	{scrapedGauge("requests_queued", "Messages that wait to be certified.", "partition"), false,
		func(v *replicaView) float64 { return float64(v.requests) }},
	{scrapedGauge("requests_queued_bytes", "Bytes of the messages that wait to be certified.", "partition"), false,
		func(v *replicaView) float64 { return float64(v.queued) }},
	{scrapedGauge("transactions_in_flight", "Transactions that were certified and are not committed yet.", "partition"), false,
		func(v *replicaView) float64 { return float64(v.locks.InFlight) }},
	{scrapedGauge("batches_in_flight", "Batches that were certified and are not committed yet.", "partition"), false,
		func(v *replicaView) float64 { return float64(v.batches) }},

	{scrapedGauge("lock_table_locks", "Recorded locks that the partition knows exactly.", "partition"), false,
		func(v *replicaView) float64 { return float64(v.locks.Locks) }},
	{scrapedGauge("lock_table_floor_txid", "The newest transaction of which the lock table has forgotten a lock. Forgotten locks are looked up in the log.", "partition"), false,
		func(v *replicaView) float64 { return float64(v.locks.Floor) }},
	{scrapedGauge("message_ids", "Message ids that are remembered.", "partition"), false,
		func(v *replicaView) float64 { return float64(v.locks.IDs) }},
	{scrapedGauge("sessions", "Sessions that are remembered.", "partition"), false,
		func(v *replicaView) float64 { return float64(v.locks.Sessions) }},
	{scrapedGauge("name_index_txid", "The newest transaction in the index of kinds, locks and message ids; 0 if the node keeps none.", "partition"), false,
		func(v *replicaView) float64 { return float64(v.r.indexer.through()) }},
	{scrapedGauge("name_index_bytes", "Bytes of the files of that index.", "partition"), false,
		func(v *replicaView) float64 { return float64(v.r.indexer.size()) }},
	{scrapedGauge("cursors", "Cursors of the partition.", "partition"), false,
		func(v *replicaView) float64 { return float64(v.cursors) }},
	{scrapedGauge("archived_from_txid", "The oldest transaction from which on the archive was found to have all that was trimmed; 0 for none, or if nothing was trimmed.", "partition"), false,
		func(v *replicaView) float64 {
			first, _ := v.r.archived.from(v.at.base)
			return float64(first)
		}},

	{scrapedGauge("replica_lag_transactions", "Transactions that the partition's leader had, when it last announced it, and this replica has not.", "partition"), false,
		func(v *replicaView) float64 { return float64(v.behind) }},
	{scrapedGauge("replica_lag_seconds", "For how long the leader has had a transaction that this replica has not; 0 if there is none.", "partition"), false,
		func(v *replicaView) float64 { return v.lag.Seconds() }},
	{scrapedGauge("replica_diverged", "1 if this replica has another log than the others and is fenced.", "partition"), false,
		func(v *replicaView) float64 { return bit(v.r.fencing.diverged()) }},
	{scrapedGauge("replica_halted", "1 if this replica is halted because its log may be the wrong one.", "partition"), false,
		func(v *replicaView) float64 { return bit(v.r.fencing.halted.Load() != nil) }},

	{scrapedGauge("voters", "Replicas that vote.", "partition"), true,
		func(v *replicaView) float64 { return float64(v.voters) }},
	{scrapedGauge("voters_away", "Replicas that vote and are not heard of.", "partition"), true,
		func(v *replicaView) float64 { return float64(v.away) }},
	{scrapedGauge("voters_caught_up", "Replicas that vote and that the partition can go on with: they are there, have caught up and have room.", "partition"), true,
		func(v *replicaView) float64 { return float64(v.caughtUp) }},
	{scrapedGauge("storage_full", "1 if the partition refuses transactions because disks are full.", "partition"), true,
		func(v *replicaView) float64 { return bit(v.r.gate.fullError() != nil) }},
}

var (
	replicaOpen      = scrapedGauge("replica_open", "1 if the replica that this node should have is open, 0 while it is fetched or repaired.", "partition")
	leaderKnown      = scrapedGauge("leader_known", "1 if this node knows the partition's leader: by its replica, or without one by what other nodes say. \"facts\" is the group of the cluster's facts.", "partition")
	raftTerm         = scrapedGauge("raft_term", "The newest Raft term that this replica has seen; it rises with each election.", "partition")
	archiveUsable    = scrapedGauge("archive_usable", "1 if the archive was found to have all that was trimmed. Only a node with an archive has it.", "partition")
	cursorBehind     = scrapedGauge("cursor_lag_transactions", "Transactions that the cursor has not passed, on the leader; of the 100 cursors that are the furthest behind.", "partition", "cursor")
	cursorMoved      = scrapedGauge("cursor_last_set_timestamp_seconds", "When the cursor was last set, in Unix time; on the leader, of the same cursors.", "partition", "cursor")
	namespaceLimit   = scrapedGauge("namespace_limit", "A limit of the namespace that the partition belongs to, on the leader: transactions and bytes a second, and bytes kept.", "partition", "namespace", "limit")
	partitionScraped = []scraped{replicaOpen, leaderKnown, raftTerm, archiveUsable, cursorBehind, cursorMoved, namespaceLimit}
)

// Describe implements [prometheus.Collector].
func (c *partitionCollector) Describe(to chan<- *prometheus.Desc) {
	for _, f := range partitionFigures {
		to <- f.desc
	}
	for _, s := range partitionScraped {
		to <- s.desc
	}
}

// Collect implements [prometheus.Collector].
func (c *partitionCollector) Collect(to chan<- prometheus.Metric) {
	now := time.Now()
	facts, _ := c.meta.current()
	group(to, "facts", c.meta.group.Status())
	for _, controller := range c.controllers {
		r, partition := controller.current(), label(controller.id)
		if r != nil || controller.wanted(facts) {
			replicaOpen.send(to, bit(r != nil), partition)
		}
		if r == nil {
			_, _, known := c.peers.leader(controller.id, now)
			leaderKnown.send(to, bit(known), partition)
			continue
		}
		v := c.view(r, now)
		group(to, partition, v.status)
		for _, f := range partitionFigures {
			if v.serves || !f.leader {
				f.send(to, f.value(v), partition)
			}
		}
		if checked := r.archived.checked.Load(); r.archived.archive != nil && checked != nil {
			archiveUsable.send(to, bit(checked.err == nil), partition)
		}
		if v.serves {
			sendCursors(to, partition, r.state)
			sendLimits(to, partition, r)
		}
	}
}

// group sends what Raft knows of a group.
func group(to chan<- prometheus.Metric, partition string, s raftstore.Status) {
	leaderKnown.send(to, bit(s.Leader != ""), partition)
	raftTerm.send(to, float64(s.Term), partition)
}

// shownCursors bounds the cursors of a partition that have metrics: clients
// make cursors, and name them.
const shownCursors = 100

// sendCursors sends how far cursors are behind.
func sendCursors(to chan<- prometheus.Metric, partition string, s *partitionState) {
	for _, c := range s.furthestBehind(shownCursors) {
		cursorBehind.send(to, float64(c.lag), partition, c.name)
		cursorMoved.send(to, float64(c.set)/float64(time.Second), partition, c.name)
	}
}

// sendLimits sends the limits of a partition that is served.
func sendLimits(to chan<- prometheus.Metric, partition string, r *replica) {
	limits := r.limiter.limits.Load()
	if limits == nil {
		return
	}
	for i, value := range []uint64{limits.Transactions, limits.Bytes, limits.Kept} {
		if value > 0 {
			namespaceLimit.send(to, float64(value), partition, r.face.part.Namespace, limitNames[i])
		}
	}
}

// laggingCursor is a cursor and what it has not passed.
type laggingCursor struct {
	name string
	lag  uint64 // transactions
	set  int64  // when, in Unix nanoseconds
}

// furthestBehind returns the cursors that are the furthest behind, at most a
// number of them.
func (s *partitionState) furthestBehind(most int) []laggingCursor {
	s.mu.Lock()
	mark := s.mark.Load()
	all := make([]laggingCursor, 0, len(s.cursors))
	for name, c := range s.cursors {
		all = append(all, laggingCursor{name, mark - min(mark, c.Txid), c.Time})
	}
	s.mu.Unlock()
	slices.SortFunc(all, func(a, b laggingCursor) int {
		return cmp.Or(cmp.Compare(b.lag, a.lag), cmp.Compare(a.name, b.name))
	})
	return all[:min(most, len(all))]
}
