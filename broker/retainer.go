package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// retainer trims a partition by its policy, on its leader. Each tenure has a
// goroutine, run, that looks every interval. It also reports how far the
// policy's cursors are behind: a consumer or an archiver that has died can't.
type retainer struct {
	partition int
	log       *slog.Logger
	store     *wal.Log
	state     *partitionState
	group     *raftstore.Group
	trim      func(ctx context.Context, may func(trimPoint) bool) (trimDone, error)
	requests  *requestServer
	facts     func() (cluster.Facts, <-chan struct{})
	others    func(now time.Time) []time.Time // the clocks of other nodes
	now       func() time.Time
	steady    func() time.Duration // a clock that can't be set
	interval  time.Duration
	advise    func(event string, fields map[string]any)
	lag       cursorLag

	mu    sync.Mutex
	clock *believedClock // of this tenure
	// behind is what the last advisory of this tenure said of the archive, and
	// advised whether there was one.
	behind, advised bool
	warned          bool // of the clock
}

// cursorLag are the gauges of how far the cursors of policies are behind.
type cursorLag struct{ transactions, seconds *prometheus.GaugeVec }

func newCursorLag(registry *prometheus.Registry) cursorLag {
	gauge := func(name, help string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "cantus", Name: name, Help: help}, []string{"partition", "cursor"})
		registry.MustRegister(g)
		return g
	}
	return cursorLag{
		transactions: gauge("retention_cursor_lag_transactions", "How many transactions a cursor of the partition's retention policy has not passed, as its leader sees it."),
		seconds:      gauge("retention_cursor_lag_seconds", "For how long the oldest transaction has been there that the cursor has not passed."),
	}
}

// clear removes the values of a partition.
func (l *cursorLag) clear(partition int) {
	of := prometheus.Labels{"partition": label(partition)}
	l.transactions.DeletePartialMatch(of)
	l.seconds.DeletePartialMatch(of)
}

// set shows the lag of a policy's cursors.
func (l *cursorLag) set(partition int, cursors []subjects.RetentionCursor) {
	l.clear(partition)
	for _, c := range cursors {
		l.transactions.WithLabelValues(label(partition), c.Name).Set(float64(c.LagTransactions))
		l.seconds.WithLabelValues(label(partition), c.Name).Set(c.LagSeconds)
	}
}

// firstWait spreads the partitions of a node over the interval: by the golden
// ratio, so that no two are close.
func (r *retainer) firstWait() time.Duration {
	_, share := math.Modf(float64(r.partition+1) * (math.Sqrt(5) - 1) / 2)
	return time.Duration(share * float64(r.interval))
}

// run trims the partition by its policy until ctx ends.
func (r *retainer) run(ctx context.Context) {
	r.begin()
	defer r.lag.clear(r.partition)
	for wait := r.firstWait(); ; wait = r.interval {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if err := r.step(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn("the partition was not trimmed by its policy", "err", err)
		}
	}
}

// begin begins a tenure.
func (r *retainer) begin() {
	var newest time.Time
	r.state.mu.Lock()
	if r.state.mark.Load() > 0 {
		newest = time.Unix(0, r.state.lastTime)
	}
	r.state.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clock, r.behind, r.advised = newBelievedClock(r.now(), newest, r.steady()), false, false
}

// step looks once, and trims what may go unless a trim was applied just before,
// perhaps one of another leader.
func (r *retainer) step(ctx context.Context) error {
	facts, _ := r.facts()
	policy, _, is := facts.RetentionOf(r.partition)
	if !is || r.state.position().restoring {
		r.lag.clear(r.partition)
		return nil
	}
	v, err := r.view(policy)
	if err != nil {
		return err
	}
	r.warnOfClock(v.clock)
	r.lag.set(r.partition, v.cursors)
	r.adviseArchive(policy, v)
	if since := r.now().Sub(r.state.lastTrim()); since >= 0 && since < r.interval {
		return nil
	}
	if !v.moves(r.state) {
		return nil
	}
	_, err = r.trim(ctx, v.limits.may)
	return err
}

// retentionView is what a policy means for the log at a moment.
type retentionView struct {
	limits  retentionLimits
	clock   string // why ages are not measured by the leader's clock, "" if they are
	cursors []subjects.RetentionCursor
	missing map[string]bool // cursors that do not exist: a session's may be at 0
	behind  bool            // the archive
}

// moves reports whether anything may go, as far as that is known without
// reading the log.
func (v *retentionView) moves(s *partitionState) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mark.Load() < s.first { // only other entries are left
		return s.bytes-s.baseBytes >= idleBytes
	}
	return v.limits.passed >= s.first
}

// idleBytes is how many bytes of other entries a log without transactions has
// before they are worth a trim.
const idleBytes = 1 << 20

// view returns what a policy means for the log now.
func (r *retainer) view(policy cluster.Retention) (v retentionView, err error) {
	now := r.now()
	r.mu.Lock()
	if r.clock == nil {
		r.clock = newBelievedClock(now, now, r.steady())
	}
	believed, why := r.clock.read(now, r.steady(), r.others(now))
	r.mu.Unlock()
	if policy.Age > 0 {
		v.clock = why
	}
	r.state.mu.Lock()
	positions := map[string]uint64{}
	v.missing = map[string]bool{}
	for _, name := range policy.Cursors {
		at, exists := r.state.cursors[name]
		positions[name], v.missing[name] = at.Txid, !exists
	}
	v.limits = limitsOf(policy, believed, r.state.bytes, r.state.mark.Load(), positions)
	r.state.mu.Unlock()
	for _, name := range policy.Cursors {
		c := subjects.RetentionCursor{Name: name, Txid: positions[name]}
		if c.Txid < v.limits.mark {
			c.LagTransactions = v.limits.mark - c.Txid
			since, err := r.timeOf(c.Txid + 1)
			if err != nil {
				return v, err
			}
			if since > 0 {
				c.LagSeconds = max(0, now.Sub(time.Unix(0, since)).Seconds())
			}
		}
		v.behind = v.behind || name == policy.Archive && c.LagSeconds > policy.ArchiveLag.Seconds()
		v.cursors = append(v.cursors, c)
	}
	return v, nil
}

// timeOf returns the time of a transaction, in Unix nanoseconds, or of the
// oldest one kept if it was trimmed; 0 if that is none.
func (r *retainer) timeOf(txid uint64) (int64, error) {
	for {
		at := r.state.position()
		if txid = max(txid, at.first); txid > at.mark {
			return 0, nil
		}
		for _, b := range r.store.Batches(txid, at.index) {
			switch {
			case b.Err == nil:
				return b.Batch.Time + int64(txid-b.Batch.First), nil
			case !errors.Is(b.Err, wal.ErrTrimmed) || r.state.position().first == at.first:
				return 0, fmt.Errorf("time of transaction %d: %w", txid, b.Err)
			}
		}
	}
}

// warnOfClock logs that ages are no longer measured by the node's clock.
func (r *retainer) warnOfClock(why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if is := why != ""; is != r.warned {
		if r.warned = is; is {
			r.log.Warn("the partition is not trimmed by the age that the clock shows: check the clock", "because", why)
		}
	}
}

// adviseArchive publishes that the archive has fallen behind, or has caught up
// again. A tenure begins with what is so: the leader before it may have said
// something else.
func (r *retainer) adviseArchive(policy cluster.Retention, v retentionView) {
	i := slices.IndexFunc(v.cursors, func(c subjects.RetentionCursor) bool { return c.Name == policy.Archive })
	if policy.Archive == "" || i < 0 {
		return
	}
	r.mu.Lock()
	changed, first := v.behind != r.behind, !r.advised
	r.behind, r.advised = v.behind, true
	r.mu.Unlock()
	if !changed && !first {
		return
	}
	c := v.cursors[i]
	r.advise("archive", map[string]any{
		"partition": r.partition, "cursor": c.Name, "behind": v.behind, "txid": c.Txid,
		"lag_transactions": c.LagTransactions, "lag_seconds": c.LagSeconds,
	})
	if v.behind {
		r.log.Warn("the archive is behind: check the process that backs the log up", "cursor", c.Name, "txid", c.Txid, "lag_transactions", c.LagTransactions,
			"lag", time.Duration(c.LagSeconds*float64(time.Second)).Round(time.Second))
	} else if changed {
		r.log.Info("the archive is no longer behind", "cursor", c.Name, "txid", c.Txid)
	}
}

// serve describes how the partition is trimmed, and what would go now.
func (r *retainer) serve(ctx context.Context, m *natslink.Message) error {
	var q subjects.RetentionQuery
	if err := smallJSON(m.Payload, &q); err != nil {
		return err
	}
	facts, _ := r.facts()
	policy, own, is := facts.RetentionOf(r.partition)
	if q.Policy != nil {
		var err error
		if policy, err = retentionPolicy(q.Policy); err != nil {
			return err
		}
		is = true
	}
	if err := r.group.VerifyLeader(ctx, r.requests.term()); err != nil {
		return err
	}
	if r.state.position().restoring {
		return errRestoring(r.partition)
	}
	reply := r.describe()
	if is {
		reply.Policy, reply.Own, reply.Warnings = shownPolicy(policy), own, policyWarnings(policy)
		if err := r.explain(&reply, policy); err != nil {
			return err
		}
	}
	r.requests.answer(natslink.AppendPub(nil, m.Reply, mustJSON(reply)))
	return nil
}

// summary returns how the partition is trimmed, in short; nil if it has no
// policy, or if that is not known at the moment.
func (r *retainer) summary() *subjects.RetentionInfo {
	facts, _ := r.facts()
	policy, own, is := facts.RetentionOf(r.partition)
	if !is || r.state.position().restoring {
		return nil
	}
	v, err := r.view(policy)
	if err != nil {
		r.log.Warn("it is not known what retention waits for", "err", err)
		return nil
	}
	s := &subjects.RetentionInfo{Policy: *shownPolicy(policy), Own: own, ArchiveBehind: v.behind}
	due, _, _ := r.state.lastKnownPoint(v.limits.due)
	long := cmp.Or(policy.ArchiveLag, defaultArchiveLag).Seconds()
	for _, c := range v.cursors {
		switch {
		case v.limits.mark == 0:
		case c.Txid == 0, policy.Bounded() && c.Txid < due.Txid, !policy.Bounded() && c.LagSeconds > long, v.behind && c.Name == policy.Archive:
			s.Waits = append(s.Waits, c)
		}
	}
	return s
}

// describe returns what is kept.
func (r *retainer) describe() subjects.RetentionReply {
	r.state.mu.Lock()
	defer r.state.mu.Unlock()
	return subjects.RetentionReply{
		Partition: r.partition, FirstTxid: r.state.first, HighWaterMark: r.state.mark.Load(), Bytes: r.state.bytes - r.state.basePoint().bytes,
	}
}

// explain adds what a policy would trim now, and what it would not.
func (r *retainer) explain(reply *subjects.RetentionReply, policy cluster.Retention) error {
	v, err := r.view(policy)
	if err != nil {
		return err
	}
	reply.Cursors, reply.ArchiveBehind = v.cursors, v.behind
	due, _, err := r.state.lastPointThat(v.limits.due)
	if err != nil {
		return err
	}
	held := r.state.certifier.oldestID()
	goes, found, err := r.state.lastPointThat(func(p trimPoint) bool { return v.limits.may(p) && (held == 0 || p.Txid < held) })
	if err != nil {
		return err
	}
	base := reply.FirstTxid - 1
	if found && goes.Txid > base {
		reply.Goes = &subjects.RetentionGoes{
			LastTxid: goes.Txid, LastTime: time.Unix(0, goes.time).UTC(), Transactions: goes.Txid - base,
			Bytes: reply.Bytes - min(reply.Bytes, v.limits.size-min(v.limits.size, goes.bytes)),
		}
	}
	if v.clock != "" {
		reply.Holds = append(reply.Holds, v.clock)
	}
	for _, c := range v.cursors {
		switch {
		case c.Txid == 0 && v.limits.mark == 0:
		case v.missing[c.Name]:
			reply.Holds = append(reply.Holds, fmt.Sprintf("the cursor %s does not exist: everything is kept for it", c.Name))
		case c.Txid == 0:
			reply.Holds = append(reply.Holds, fmt.Sprintf("the cursor %s is at 0: everything is kept for it", c.Name))
		case c.Txid < due.Txid:
			reply.Holds = append(reply.Holds, fmt.Sprintf("the cursor %s is at %d: %s kept for it", c.Name, c.Txid, couldGo(max(c.Txid, base)+1, due.Txid)))
		}
	}
	if held > 0 && held <= min(due.Txid, v.limits.passed) {
		reply.Holds = append(reply.Holds, fmt.Sprintf("the message id of transaction %d is not old enough: ids are remembered for %v at least", held, r.state.window))
	}
	return nil
}

// couldGo describes the transactions that only a cursor holds.
func couldGo(first, last uint64) string {
	if first == last {
		return fmt.Sprintf("transaction %d, which could go, is", first)
	}
	return fmt.Sprintf("the transactions from %d to %d, which could go, are", first, last)
}
