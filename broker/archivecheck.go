package broker

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cantuslog/cantus/wal"
)

const (
	// archiveLook is how often the archive is checked if nothing else asks for
	// it. Every archiveTick the node finds out whether something does: the log
	// was trimmed, or a read has failed.
	archiveLook = time.Minute
	archiveTick = 200 * time.Millisecond
	// archiveLacks and archiveFails replace archiveLook if something
	// was not in the archive, or if it could not be read.
	archiveLacks = 10 * time.Second
	archiveFails = 2 * time.Second
	// archiveTime is how long a check waits for the archive.
	archiveTime = time.Minute
	// archiveShare bounds the time that checks take: after each, the node waits
	// that many times as long.
	archiveShare = 20
)

// archiveChecked is what a check of the archive has found.
type archiveChecked struct {
	base  wal.Base
	first uint64 // the oldest transaction that is there, 0 for none
	err   error  // why there is no older one, or none at all; nil if it has all that it should
	at    time.Time
}

// why returns err as text for clients. It withholds read errors, which may name
// a path on the node.
func (c *archiveChecked) why() string {
	switch {
	case c.err == nil:
		return ""
	case errors.Is(c.err, ErrNotArchived):
		return notArchivedText(c.err)
	}
	return "it can't be read; the node's log says why"
}

// notArchivedText returns what is behind ErrNotArchived.
func notArchivedText(err error) string {
	return strings.TrimPrefix(err.Error(), ErrNotArchived.Error()+": ")
}

// from returns the oldest transaction that is read from the archive, 0 for
// none, and why there is none, or no older one, "" for no reason. It says only
// what was verified for a log with this base.
func (a *archiveReader) from(base wal.Base) (first uint64, why string) {
	if a.archive == nil || base.Txid == 0 {
		return 0, ""
	}
	c := a.checked.Load()
	if c == nil || c.base != base {
		return 0, "it is being checked"
	}
	return c.first, c.why()
}

// isDue reports whether the archive should be checked for a log with this base.
func (a *archiveReader) isDue(base wal.Base) bool {
	c := a.checked.Load()
	return c == nil || c.base != base || time.Since(c.at) > c.goodFor() || a.suspected.Load()
}

func (c *archiveChecked) goodFor() time.Duration {
	switch {
	case c.err == nil:
		return archiveLook
	case errors.Is(c.err, ErrNotArchived):
		return archiveLacks
	}
	return archiveFails
}

// check checks the archive, and logs what is so, if that is new.
func (a *archiveReader) check(ctx context.Context, base wal.Base, clusters []string) {
	a.suspected.Store(false)
	patient, cancel := context.WithTimeout(ctx, archiveTime)
	defer cancel()
	now := &archiveChecked{base: base}
	now.first, now.err = a.archive.Check(patient, a.partition, base, clusters)
	if ctx.Err() != nil {
		return
	}
	if now.err == nil && base.Txid > 0 && (now.first == 0 || now.first > base.Txid) {
		now.first, now.err = 0, fmt.Errorf("%w: it has no transactions up to %d", ErrNotArchived, base.Txid)
	}
	now.at = time.Now()
	before := a.checked.Swap(now)
	if !now.news(before) {
		return
	}
	switch {
	case now.err == nil && base.Txid == 0:
		a.log.Info("the archive can be read, and nothing was trimmed yet")
	case now.err == nil:
		a.log.Info("the archive is usable", "from_txid", now.first, "to_txid", base.Txid)
	case now.first > 0:
		a.log.Warn("the archive is usable in part", "from_txid", now.first, "to_txid", base.Txid, "because", now.err)
	default:
		a.log.Warn("the archive is not usable", "because", now.err)
	}
}

// news reports whether a check has found something else than the one before.
func (c *archiveChecked) news(before *archiveChecked) bool {
	if before == nil || (c.err == nil) != (before.err == nil) || c.first != before.first {
		return true
	}
	return c.err != nil && c.err.Error() != before.err.Error()
}

// watchArchive checks the archive of each partition: at first, when its log was
// trimmed or a read has failed, and every minute. It reads little at a time.
func watchArchive(ctx context.Context, parts func() iter.Seq[*archiveReader]) {
	wait := func(d time.Duration) bool {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(d):
			return true
		}
	}
	for wait(archiveTick) {
		for a := range parts() {
			began := time.Now()
			if a.checkIfDue(ctx) && !wait(min(archiveShare*time.Since(began), archiveLook)) {
				return
			}
		}
	}
}

// checkIfDue checks the archive if that is due, and reports whether it was.
func (a *archiveReader) checkIfDue(ctx context.Context) bool {
	at := a.position()
	if at.restoring || !a.isDue(at.base) {
		return false
	}
	clusters := []string{a.cluster, at.mirrorOf} // that the transactions may be from
	for _, past := range a.history() {
		clusters = append(clusters, past.ID)
	}
	a.check(ctx, at.base, clusters)
	return true
}

// archiveMetrics count the reads that go to the archive.
type archiveMetrics struct{ reads, bytes, failures *prometheus.CounterVec }

func newArchiveMetrics(registry *prometheus.Registry) archiveMetrics {
	counter := func(name, help string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "cantus", Subsystem: "archive", Name: name, Help: help}, []string{"partition"})
		registry.MustRegister(c)
		return c
	}
	return archiveMetrics{
		reads:    counter("reads_total", "Reads that were answered with transactions out of the archive."),
		bytes:    counter("read_bytes_total", "Bytes of the archive's transactions that those reads have gone through."),
		failures: counter("read_failures_total", "Reads that the archive could not answer: it lacks something, or can't be read in time."),
	}
}

// readArchive counts a read that has gone through some bytes of the archive, if
// it has.
func (m *partitionMetrics) readArchive(bytes int) {
	if bytes == 0 {
		return
	}
	m.archiveReads.Inc()
	m.archiveBytes.Add(float64(bytes))
}
