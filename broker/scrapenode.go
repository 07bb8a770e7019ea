package broker

import (
	"runtime"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/wal"
)

// nodeCollector has the metrics of the node that belong to no partition.
type nodeCollector struct {
	self    string
	version string
	locks   int // the most of a partition
	ids     int
	limits  *limits
	ready   func() bool
	facts   func() (facts cluster.Facts, changed <-chan struct{})
	peers   *peers
	space   *space
	store   *wal.Store
	server  natsServer
}

var (
	buildInfo      = scrapedGauge("build_info", "Always 1: the labels have the node's version and that of Go.", "version", "go_version")
	nodeReady      = scrapedGauge("ready", "1 if every partition of this node is served.")
	nodeMembers    = scrapedGauge("members", "Nodes that are members of the cluster.")
	membersAway    = scrapedGauge("members_away", "Other members that this node does not hear of.")
	readsNow       = scrapedGauge("reads_in_progress", "Reads that are being answered, those that wait at the end of a log included.")
	queueLimit     = scrapedGauge("requests_queued_limit_bytes", "Bytes of messages that may wait in front of a partition (--queue-size).")
	lockLimit      = scrapedGauge("lock_table_limit", "Recorded locks that a partition knows exactly, at most (--locks).")
	messageIDLimit = scrapedGauge("message_ids_limit", "Message ids that a partition remembers, at most (--msg-ids).")

	diskFree    = scrapedGauge("disk_free_bytes", "Bytes free on the file system of the data directory, as of a second ago.")
	diskSize    = scrapedGauge("disk_size_bytes", "Bytes of the file system of the data directory.")
	diskReserve = scrapedGauge("disk_reserve_bytes", "Free bytes below which this node takes no transactions (--reserve).")
	diskFull    = scrapedGauge("disk_full", "1 if this node takes no more transactions because its disk has no room.")

	storeSize      = scrapedGauge("store_size_bytes", "Bytes of the disk that the stored logs take.")
	storeTables    = scrapedGauge("store_tables", "Tables of the store's index, by level.", "level")
	storeTableSize = scrapedGauge("store_table_bytes", "Bytes of the tables of the store's index, by level.", "level")
	storeMerges    = scrapedCounter("store_compactions_total", "Compactions of the whole index because of what was deleted, since the node started.")
	storeReclaimed = scrapedCounter("store_files_reclaimed_total", "Files of the store that were rewritten to free space, since the node started.")

	journalSize     = scrapedGauge("journal_size_bytes", "Bytes of the disk that the write-ahead log takes.")
	journalSegments = scrapedGauge("journal_segments", "Segments of the write-ahead log that hold what no checkpoint has yet.")
	journalQueued   = scrapedGauge("journal_queued_bytes", "Bytes that wait to be written to the write-ahead log.")
	journalFrames   = scrapedCounter("journal_frames_total", "Frames that were written to the write-ahead log, since the node started.")
	journalCommits  = scrapedCounter("journal_commits_total", "Writes that went into these frames together.")
	journalSyncs    = scrapedCounter("journal_syncs_total", "Syncs of the write-ahead log, since the node started.")
	journalWritten  = scrapedCounter("journal_written_bytes_total", "Bytes that were written to the write-ahead log, since the node started.")
	checkpoints     = scrapedCounter("checkpoints_total", "Checkpoints that were taken since the node started.")
	checkpointLast  = scrapedGauge("checkpoint_last_timestamp_seconds", "When the last checkpoint was taken, in Unix time; 0 for none since the node started.")

	natsClients = scrapedGauge("nats_connections", "Connections of clients to this node's NATS server, the node's own included.")
	natsSlow    = scrapedCounter("nats_slow_consumers_total", "Connections that the NATS server has closed because they took too little.")
	certExpiry  = scrapedGauge("certificate_expiry_timestamp_seconds", "When the certificate of a port expires, in Unix time. Replication uses that of \"cluster\".", "port")

	nodeScraped = []scraped{
		buildInfo, nodeReady, nodeMembers, membersAway, readsNow, queueLimit, lockLimit, messageIDLimit, diskFree, diskSize, diskReserve, diskFull,
		storeSize, storeTables, storeTableSize, storeMerges, storeReclaimed, journalSize, journalSegments, journalQueued, journalFrames,
		journalCommits, journalSyncs, journalWritten, checkpoints, checkpointLast, natsClients, natsSlow, certExpiry,
	}
)

// Describe implements [prometheus.Collector].
func (c *nodeCollector) Describe(to chan<- *prometheus.Desc) {
	for _, s := range nodeScraped {
		to <- s.desc
	}
}

// Collect implements [prometheus.Collector].
func (c *nodeCollector) Collect(to chan<- prometheus.Metric) {
	buildInfo.send(to, 1, c.version, runtime.Version())
	nodeReady.send(to, bit(c.ready()))
	facts, _ := c.facts()
	away, now := 0, time.Now()
	for name := range facts.Nodes {
		if name != c.self && !c.peers.alive(name, now) {
			away++
		}
	}
	nodeMembers.send(to, float64(len(facts.Nodes)))
	membersAway.send(to, float64(away))
	readsNow.send(to, float64(c.limits.readsNow.Load()))
	queueLimit.send(to, float64(c.limits.queueBytes.Load()))
	lockLimit.send(to, float64(c.locks))
	messageIDLimit.send(to, float64(c.ids))

	server := c.server.Stats()
	natsClients.send(to, float64(server.Clients))
	natsSlow.send(to, float64(server.SlowConsumers))
	for _, shown := range c.server.Certificates() {
		certExpiry.send(to, float64(shown.Expires.Unix()), shown.Port)
	}
	c.collectDisk(to)
	c.collectStore(to)
}

func (c *nodeCollector) collectDisk(to chan<- prometheus.Metric) {
	diskFree.send(to, float64(c.space.free.Load()))
	diskReserve.send(to, float64(c.space.reserve()))
	diskFull.send(to, bit(c.space.isFull()))
	if size, err := wal.DiskSize(c.store.Dir()); err == nil { // else it is not known
		diskSize.send(to, float64(size))
	}
	if journal, store, err := c.store.DiskUsage(); err == nil {
		journalSize.send(to, float64(journal))
		storeSize.send(to, float64(store))
	}
}

func (c *nodeCollector) collectStore(to chan<- prometheus.Metric) {
	s := c.store.Stats()
	for i, l := range s.Levels {
		storeTables.send(to, float64(l.Tables), strconv.Itoa(i))
		storeTableSize.send(to, float64(l.Bytes), strconv.Itoa(i))
	}
	storeMerges.send(to, float64(s.Merges))
	storeReclaimed.send(to, float64(s.Reclaimed))
	journalSegments.send(to, float64(s.Journal.Segments))
	journalQueued.send(to, float64(s.Journal.Queued))
	journalFrames.send(to, float64(s.Journal.Frames))
	journalCommits.send(to, float64(s.Journal.Commits))
	journalSyncs.send(to, float64(s.Journal.Syncs))
	journalWritten.send(to, float64(s.Journal.Bytes))
	checkpoints.send(to, float64(s.Checkpoints))
	last := 0.0
	if !s.LastCheckpoint.IsZero() {
		last = float64(s.LastCheckpoint.UnixNano()) / float64(time.Second)
	}
	checkpointLast.send(to, last)
}
