package main

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// mirrorMetrics are those of a mirror.
type mirrorMetrics struct {
	registry            *prometheus.Registry
	behind, lag         *prometheus.GaugeVec
	heard               *prometheus.GaugeVec
	failures            *prometheus.CounterVec
	transactions, bytes prometheus.Counter
	delay               prometheus.Histogram
}

func newMirrorMetrics(partitions []int) *mirrorMetrics {
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "cantus_mirror", Name: name, Help: help}, []string{"partition"})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "cantus_mirror", Name: name, Help: help})
	}
	m := &mirrorMetrics{
		registry: prometheus.NewRegistry(),
		behind:   gauge("lag_transactions", "How many transactions the source had, when it was last heard, that the mirror did not have yet."),
		lag: gauge("lag_seconds",
			"While the mirror is behind: how long ago the last transaction was committed that it has. The clocks of source and mirror must agree."),
		heard: gauge("last_heard_timestamp_seconds", "When the source's partition last answered, in Unix time; 0 for not yet."),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "cantus_mirror", Name: "failures_total", Help: "Attempts that failed, on either side, and were followed by another.",
		}, []string{"partition"}),
		transactions: counter("transactions_total", "Transactions that were sent to the mirror."),
		bytes:        counter("bytes_total", "Bytes of the batches that were sent to the mirror."),
		delay: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "cantus_mirror", Name: "delay_seconds", Buckets: prometheus.ExponentialBuckets(0.001, 2, 16),
			Help: "How long after their commit at the source the newest of the transactions sent at once were in the mirror.",
		}),
	}
	for _, p := range partitions {
		for _, v := range []*prometheus.GaugeVec{m.behind, m.lag, m.heard} {
			v.WithLabelValues(strconv.Itoa(p))
		}
		m.failures.WithLabelValues(strconv.Itoa(p))
	}
	m.registry.MustRegister(m.behind, m.lag, m.heard, m.failures, m.transactions, m.bytes, m.delay,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// observe records how far a partition is behind, after the source has answered.
func (m *mirrorMetrics) observe(l *logMirror) {
	m.heard.WithLabelValues(strconv.Itoa(l.partition)).SetToCurrentTime()
	m.lags(l)
}

// failed counts an attempt that failed.
func (m *mirrorMetrics) failed(l *logMirror) {
	m.failures.WithLabelValues(strconv.Itoa(l.partition)).Inc()
	m.lags(l)
}

func (m *mirrorMetrics) lags(l *logMirror) {
	seconds := 0.0
	if l.behind() > 0 && !l.lastTime.IsZero() {
		seconds = time.Since(l.lastTime).Seconds()
	}
	m.behind.WithLabelValues(strconv.Itoa(l.partition)).Set(float64(l.behind()))
	m.lag.WithLabelValues(strconv.Itoa(l.partition)).Set(seconds)
}

// arrived observes what the mirror has got.
func (m *mirrorMetrics) arrived(l *logMirror) {
	if l.at.txid == l.expected.Txid && !l.lastTime.IsZero() && l.at.txid > l.counted {
		l.counted = l.at.txid
		m.delay.Observe(time.Since(l.lastTime).Seconds())
	}
}
