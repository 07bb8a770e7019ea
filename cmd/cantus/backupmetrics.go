package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/cantuslog/cantus/internal/backup"
)

// backupMetrics are those of an archiver.
type backupMetrics struct {
	registry      *prometheus.Registry
	lastSuccess   prometheus.Gauge
	runs          *prometheus.CounterVec
	lag           *prometheus.GaugeVec
	transactions  prometheus.Counter
	bytes, stored prometheus.Counter
}

func newBackupMetrics() *backupMetrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "cantus_backup", Name: name, Help: help})
	}
	m := &backupMetrics{
		registry: prometheus.NewRegistry(),
		lastSuccess: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "cantus_backup", Name: "last_success_timestamp_seconds",
			Help: "When the last run ended that brought every partition up to date, in Unix time; 0 for not yet.",
		}),
		runs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "cantus_backup", Name: "runs_total", Help: "Runs, by how they ended: done or failed.",
		}, []string{"result"}),
		lag: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "cantus_backup", Name: "lag_transactions", Help: "How many transactions the partition's log had, when it was last looked at, that are not read yet.",
		}, []string{"partition"}),
		transactions: counter("transactions_total", "Transactions that were added to the backup."),
		bytes:        counter("bytes_total", "Bytes of the batches that were added to the backup."),
		stored:       counter("stored_bytes_total", "Bytes of segments that were written, those of merged ones included."),
	}
	for _, result := range []string{"done", "failed"} {
		m.runs.WithLabelValues(result)
	}
	m.registry.MustRegister(m.lastSuccess, m.runs, m.lag, m.transactions, m.bytes, m.stored,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// ran counts a run.
func (m *backupMetrics) ran(err error) {
	if err != nil {
		m.runs.WithLabelValues("failed").Inc()
		return
	}
	m.runs.WithLabelValues("done").Inc()
	m.lastSuccess.SetToCurrentTime()
}

// added counts what a run has added.
func (m *backupMetrics) added(r backup.Result) {
	m.transactions.Add(float64(r.Transactions))
	m.bytes.Add(float64(r.Bytes))
	m.stored.Add(float64(r.Stored))
}

func (m *backupMetrics) progress(at backup.Progress) {
	m.lag.WithLabelValues(strconv.Itoa(at.Partition)).Set(float64(at.Last - at.Txid))
}

// serveMetrics serves metrics at an address, "" for none, until stop is called.
func serveMetrics(registry *prometheus.Registry, addr string, p *program) (stop func(), err error) {
	if addr == "" {
		return func() {}, nil
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	s := newMetricsServer(mux)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			p.note("the HTTP server ended: %v", err)
		}
	}()
	p.note("metrics on http://%s/metrics", l.Addr())
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if s.Shutdown(ctx) != nil {
			_ = s.Close()
		}
		<-ended
	}, nil
}

// newMetricsServer returns a server that waits for no client for long.
func newMetricsServer(h http.Handler) *http.Server {
	return &http.Server{Handler: h, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
}
