package broker

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/cantuslog/cantus/internal/invariant"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// metrics are the node's, in a registry of its own: several nodes may live in
// one process.
type metrics struct {
	registry *prometheus.Registry
	appended *prometheus.CounterVec
	refusals *prometheus.CounterVec
	batches  *prometheus.CounterVec
	bytes    *prometheus.CounterVec
	reads    *prometheus.CounterVec
	sent     *prometheus.CounterVec
	commit   *prometheus.HistogramVec
	stages   stageMetrics
	archive  archiveMetrics
	diverged *prometheus.GaugeVec
	rejected *prometheus.CounterVec

	cursorLag                   cursorLag
	damageFound, damageRepaired *prometheus.CounterVec
	damaged, scrubbed           prometheus.Gauge
	scrubBytes                  prometheus.Counter
}

func newMetrics() *metrics {
	byPartition := []string{"partition"}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "cantus", Name: name, Help: help}, labels)
	}
	m := &metrics{
		registry: prometheus.NewRegistry(),
		appended: counter("transactions_committed_total", "Transactions that this node has committed as a leader.", byPartition...),
		refusals: counter("requests_refused_total", "Requests that were refused, by the reason that the client was given.", "partition", "reason"),
		batches:  counter("batches_committed_total", "Batches (Raft entries) that this node has committed as a leader.", byPartition...),
		rejected: counter("node_messages_rejected_total", "Messages for nodes that were not believed, by what is wrong with them.", "what"),
		bytes:    counter("batch_bytes_total", "Bytes of the batches committed.", byPartition...),
		reads:    counter("reads_total", "Reads that were answered.", byPartition...),
		sent:     counter("transactions_read_total", "Transactions that reads were answered with.", byPartition...),
		commit: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "cantus", Name: "batch_commit_seconds",
			Help:    "From the certification of a batch until it is synced, committed and applied.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 16),
		}, byPartition),
	}
	m.archive = newArchiveMetrics(m.registry)
	m.diverged = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: "cantus", Name: "replica_diverged", Help: "1 if this node's replica has another log than the others and is fenced.",
	}, byPartition)
	const damage = ": of the partition, of the cluster's facts, or, without a name, of a file that is not part of one log."
	m.damageFound = counter("damage_found_total", "Damage that was found on this node's disk"+damage, byPartition...)
	m.damageRepaired = counter("damage_repaired_total", "Damage on this node's disk that the node has repaired"+damage, byPartition...)
	m.damaged = prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "cantus", Name: "damaged", Help: "How many damages on this node's disk are not repaired."})
	m.scrubbed = prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: "cantus", Name: "scrub_last_complete_timestamp_seconds", Help: "When this node last completed a scrub of its disk, in Unix time; 0 for not yet.",
	})
	m.scrubBytes = prometheus.NewCounter(prometheus.CounterOpts{Namespace: "cantus", Name: "scrub_bytes_total", Help: "Bytes that scrubs have read."})
	m.stages = newStageMetrics(m.registry)
	m.cursorLag = newCursorLag(m.registry)
	for _, i := range invariant.All() {
		if !i.IsEvent() {
			m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
				Namespace: "cantus", Name: "invariant_violations_total", Help: "How often a statement that is always true was false, in this process.",
				ConstLabels: prometheus.Labels{"invariant": i.Name()},
			}, func() float64 { return float64(i.Count()) }))
		}
	}
	m.registry.MustRegister(m.damageFound, m.damageRepaired, m.damaged, m.scrubbed, m.scrubBytes, m.diverged, m.rejected, m.appended, m.refusals, m.batches, m.bytes, m.reads, m.sent, m.commit,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) setDamaged(n int) { m.damaged.Set(float64(n)) }

// watched is what the gauges show.
type watched struct {
	ready       func() bool
	free        func() int64 // bytes on the disk
	full        func() bool  // the node takes no more transactions
	store       *wal.Store
	controllers []*replicaController
}

// watch adds the gauges that are read off the node when it is scraped.
func (m *metrics) watch(w watched) {
	gauge := func(name, help string, value func() float64) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "cantus", Name: name, Help: help}, value))
	}
	gauge("ready", "1 if every partition of this node is served.", func() float64 {
		if w.ready() {
			return 1
		}
		return 0
	})
	gauge("disk_free_bytes", "Bytes free on the file system of the data directory, as of a second ago.", func() float64 {
		return float64(w.free())
	})
	gauge("disk_full", "1 if this node takes no more transactions because its disk has no room.", func() float64 {
		if w.full() {
			return 1
		}
		return 0
	})
	gauge("journal_frames", "Frames that the write-ahead log has synced since it was opened.", func() float64 {
		return float64(w.store.Stats().Journal.Frames)
	})
	gauge("journal_bytes", "Bytes that the write-ahead log has written since it was opened.", func() float64 {
		return float64(w.store.Stats().Journal.Bytes)
	})
	for _, c := range w.controllers {
		of := func(name, help string, value func(*replica) float64) {
			m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Namespace: "cantus", Name: name, Help: help, ConstLabels: prometheus.Labels{"partition": label(c.id)},
			}, func() float64 {
				if r := c.current(); r != nil {
					return value(r)
				}
				return 0
			}))
		}
		of("high_water_mark", "The txid of the last committed transaction that this node's replica has applied.",
			func(r *replica) float64 { return float64(r.state.position().mark) })
		of("log_entries_read", "Entries of the partition's log that were read since the node started: for readers, for other replicas, and at the start.",
			func(r *replica) float64 { return float64(r.store.EntriesRead()) })
		of("requests_queued", "Messages that wait to be certified.", func(r *replica) float64 { return float64(r.queue.length()) })
		of("archived_from", "The oldest transaction from which on the archive was found to have all that was trimmed; 0 for none, or if nothing was trimmed.",
			func(r *replica) float64 {
				first, _ := r.archived.from(r.state.position().base)
				return float64(first)
			})
		of("leading", "1 if this node leads the partition.", func(r *replica) float64 {
			if r.serving.Load() {
				return 1
			}
			return 0
		})
	}
}

// partitionMetrics are one partition's, looked up once.
type partitionMetrics struct {
	appended, batches, bytes, reads, sent prometheus.Counter
	commit                                prometheus.Observer
	refusals                              *prometheus.CounterVec
	stats                                 *serviceStats

	archiveReads, archiveBytes, archiveFailures prometheus.Counter
}

func (m *metrics) partition(id int, stats *serviceStats) partitionMetrics {
	l := label(id)
	return partitionMetrics{
		appended: m.appended.WithLabelValues(l), batches: m.batches.WithLabelValues(l), bytes: m.bytes.WithLabelValues(l),
		reads: m.reads.WithLabelValues(l), sent: m.sent.WithLabelValues(l), commit: m.commit.WithLabelValues(l),
		refusals: m.refusals.MustCurryWith(prometheus.Labels{"partition": l}), stats: stats,
		archiveReads: m.archive.reads.WithLabelValues(l), archiveBytes: m.archive.bytes.WithLabelValues(l), archiveFailures: m.archive.failures.WithLabelValues(l),
	}
}

func (m *partitionMetrics) committed(transactions, bytes int, took time.Duration) {
	m.appended.Add(float64(transactions))
	m.batches.Inc()
	m.bytes.Add(float64(bytes))
	m.commit.Observe(took.Seconds())
}

// answered counts n messages to an endpoint that took a time each.
func (m *partitionMetrics) answered(endpoint string, n int, took time.Duration) {
	if n > 0 {
		m.stats.add(endpoint, n, time.Duration(n)*took)
	}
}

func (m *partitionMetrics) refused(endpoint string, reason subjects.Reason) {
	m.refusals.WithLabelValues(string(reason)).Inc()
	m.stats.fail(endpoint, string(reason))
}

func (m *partitionMetrics) read(transactions int) {
	m.reads.Inc()
	m.sent.Add(float64(transactions))
}
