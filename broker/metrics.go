package broker

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/cantuslog/cantus/internal/invariant"
	"github.com/cantuslog/cantus/lockmgr"
	"github.com/cantuslog/cantus/subjects"
)

// metrics are the node's counters, in a registry of its own: several nodes may
// live in one process. What need not be counted as it happens is read at a
// scrape: see partitionCollector and nodeCollector.
type metrics struct {
	registry    *prometheus.Registry
	appended    *prometheus.CounterVec
	refusals    *prometheus.CounterVec
	conflicts   *prometheus.CounterVec
	forgotten   *prometheus.CounterVec
	leaderships *prometheus.CounterVec
	batches     *prometheus.CounterVec
	bytes       *prometheus.CounterVec
	reads       *prometheus.CounterVec
	sent        *prometheus.CounterVec
	fed         *prometheus.CounterVec
	commit      *prometheus.HistogramVec
	stages      stageMetrics
	archive     archiveMetrics
	rejected    *prometheus.CounterVec

	cursorLag                   cursorLag
	limited                     *prometheus.CounterVec
	damageFound, damageRepaired *prometheus.CounterVec
	damaged, scrubbed           prometheus.Gauge
	scrubBytes                  prometheus.Counter
}

func newMetrics() *metrics {
	m := &metrics{registry: prometheus.NewRegistry()}
	byPartition := []string{"partition"}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "cantus", Name: name, Help: help}, labels)
		m.registry.MustRegister(c)
		return c
	}
	m.appended = counter("transactions_committed_total", "Transactions that this node has committed as a leader.", byPartition...)
	m.refusals = counter("requests_refused_total", "Requests that were refused, by the reason that the client was given.", "partition", "reason")
	m.conflicts = counter("conflicts_total", "Transactions that were refused because of a conflict, by the mode of the lock that the refusal names, or unless for a condition.", "partition", "mode")
	m.forgotten = counter("conflicts_forgotten_total", "Those of the conflicts that may be false: what was trimmed, or too much of the log, would have to be searched.", byPartition...)
	m.leaderships = counter("leaderships_total", "How often this node has begun to lead the partition.", byPartition...)
	m.batches = counter("batches_committed_total", "Batches (Raft entries) that this node has committed as a leader.", byPartition...)
	m.bytes = counter("batch_bytes_total", "Bytes of the batches committed.", byPartition...)
	m.reads = counter("reads_total", "Reads that were answered.", byPartition...)
	m.sent = counter("transactions_read_total", "Transactions that reads were answered with.", byPartition...)
	m.fed = counter("feed_bytes_total", "Bytes that were published on the feed.", byPartition...)
	m.rejected = counter("node_messages_rejected_total", "Messages for nodes that were not believed, by what is wrong with them.", "what")
	m.commit = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "cantus", Name: "batch_commit_seconds",
		Help:    "From the certification of a batch until it is synced, committed and applied.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 2, 16),
	}, byPartition)
	m.registry.MustRegister(m.commit, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.limited = counter("limit_refusals_total", "Requests that were refused because of a limit of the partition's namespace, by the limit.", "partition", "limit")
	m.addDamage(counter)
	m.stages, m.archive, m.cursorLag = newStageMetrics(m.registry), newArchiveMetrics(m.registry), newCursorLag(m.registry)
	for _, what := range rejectedForms {
		m.rejected.WithLabelValues(what)
	}
	for _, i := range invariant.All() {
		if !i.IsEvent() {
			m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
				Namespace: "cantus", Name: "invariant_violations_total", Help: "How often a statement that is always true was false, in this process.",
				ConstLabels: prometheus.Labels{"invariant": i.Name()},
			}, func() float64 { return float64(i.Count()) }))
		}
	}
	return m
}

// rejectedForms are the values of the label "what" of messages that are
// rejected.
var rejectedForms = []string{"answer", "key", "malformed", "signature", "wrapped secret"}

// addDamage adds the metrics of scrubs. Those of damage are 0 at first, so that
// the first damage is an increase.
func (m *metrics) addDamage(counter func(name, help string, labels ...string) *prometheus.CounterVec) {
	const damage = ": of the partition, of the cluster's facts, or, without a name, of a file that is not part of one log."
	m.damageFound = counter("damage_found_total", "Damage that was found on this node's disk"+damage, "partition")
	m.damageRepaired = counter("damage_repaired_total", "Damage on this node's disk that the node has repaired"+damage, "partition")
	for _, where := range []string{"", "facts"} {
		m.damageFound.WithLabelValues(where)
		m.damageRepaired.WithLabelValues(where)
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "cantus", Name: name, Help: help})
		m.registry.MustRegister(g)
		return g
	}
	m.damaged = gauge("damaged", "How many damages on this node's disk are not repaired.")
	m.scrubbed = gauge("scrub_last_complete_timestamp_seconds", "When this node last completed a scrub of its disk, in Unix time; 0 for not yet.")
	m.scrubBytes = prometheus.NewCounter(prometheus.CounterOpts{Namespace: "cantus", Name: "scrub_bytes_total", Help: "Bytes that scrubs have read."})
	m.registry.MustRegister(m.scrubBytes)
}

func (m *metrics) setDamaged(n int) { m.damaged.Set(float64(n)) }

// partitionMetrics are one partition's, looked up once.
type partitionMetrics struct {
	appended, batches, bytes, reads, sent, fed prometheus.Counter
	leaderships, forgotten                     prometheus.Counter
	commit                                     prometheus.Observer
	refusals                                   *prometheus.CounterVec
	conflicts                                  map[string]prometheus.Counter // by mode
	stats                                      *serviceStats

	archiveReads, archiveBytes, archiveFailures prometheus.Counter
}

func (m *metrics) partition(id int, stats *serviceStats) partitionMetrics {
	l := label(id)
	m.damageFound.WithLabelValues(l)
	m.damageRepaired.WithLabelValues(l)
	conflicts := map[string]prometheus.Counter{}
	for _, mode := range []string{lockmgr.Read.String(), lockmgr.Write.String(), conditionMode} {
		conflicts[mode] = m.conflicts.WithLabelValues(l, mode)
	}
	return partitionMetrics{
		appended: m.appended.WithLabelValues(l), batches: m.batches.WithLabelValues(l), bytes: m.bytes.WithLabelValues(l),
		reads: m.reads.WithLabelValues(l), sent: m.sent.WithLabelValues(l), fed: m.fed.WithLabelValues(l), commit: m.commit.WithLabelValues(l),
		leaderships: m.leaderships.WithLabelValues(l), forgotten: m.forgotten.WithLabelValues(l), conflicts: conflicts,
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

// conflicted counts a refusal if it is one because of a conflict. The conflict
// that it names is the newest: if that one may be false, all may.
func (m *partitionMetrics) conflicted(e *subjects.Error) {
	mode, forgotten := "", false
	switch {
	case e.Reason != subjects.Conflict:
		return
	case e.Unless != nil:
		mode, forgotten = conditionMode, e.Unless.Forgotten
	case len(e.Conflicts) > 0:
		mode, forgotten = e.Conflicts[0].Mode, e.Conflicts[0].Forgotten
	}
	if c := m.conflicts[mode]; c != nil {
		c.Inc()
	}
	if forgotten {
		m.forgotten.Inc()
	}
}

// conditionMode stands for the mode of a lock where a condition matches.
const conditionMode = "unless"

func (m *partitionMetrics) read(transactions int) {
	m.reads.Inc()
	m.sent.Add(float64(transactions))
}
