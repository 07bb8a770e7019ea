package broker

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/subjects"
)

// retentionPolicy returns a policy as the facts have it. The error is a bad
// request.
func retentionPolicy(p *subjects.RetentionPolicy) (r cluster.Retention, err error) {
	bad := func(format string, args ...any) (cluster.Retention, error) {
		return cluster.Retention{}, subjects.Errorf(subjects.BadRequest, "policy."+format, args...)
	}
	for _, f := range []struct {
		name, value string
		to          *time.Duration
	}{{"age", p.Age, &r.Age}, {"archive_lag", p.ArchiveLag, &r.ArchiveLag}} {
		if f.value == "" {
			continue
		}
		if *f.to, err = subjects.ParseDuration(f.value); err != nil || *f.to == 0 {
			return bad(`%s: %q is not a time, such as "720h"`, f.name, clip([]byte(f.value)))
		}
	}
	if p.ArchiveLag != "" && p.Archive == "" {
		return bad("archive_lag: there is no archive: name the cursor that backups move, as archive")
	}
	r.Bytes, r.Count, r.Archive = p.Bytes, p.Count, p.Archive
	r.Cursors = slices.Clone(p.Cursors)
	if p.Archive != "" {
		r.Cursors = append(r.Cursors, p.Archive)
		r.ArchiveLag = cmp.Or(r.ArchiveLag, defaultArchiveLag)
	}
	slices.Sort(r.Cursors)
	r.Cursors = slices.Compact(r.Cursors)
	if len(r.Cursors) > subjects.MaxRetentionCursors {
		return bad("cursors: there are %d: at most %d are allowed", len(r.Cursors), subjects.MaxRetentionCursors)
	}
	for _, name := range r.Cursors {
		if err := subjects.CheckCursor(name); err != nil {
			return bad("cursors: %v", err)
		}
	}
	if !r.Bounded() && len(r.Cursors) == 0 {
		return cluster.Retention{}, subjects.Errorf(subjects.BadRequest, "policy: it says nothing: give it at least one of age, bytes, count, cursors and archive")
	}
	return r, nil
}

// defaultArchiveLag is how long a transaction may wait for the archive until it
// is behind, if the policy does not say.
const defaultArchiveLag = 24 * time.Hour

// shownPolicy is the inverse of retentionPolicy.
func shownPolicy(r cluster.Retention) *subjects.RetentionPolicy {
	p := &subjects.RetentionPolicy{Bytes: r.Bytes, Count: r.Count, Archive: r.Archive}
	if r.Age > 0 {
		p.Age = shortDuration(r.Age)
	}
	if r.Archive != "" {
		p.ArchiveLag = shortDuration(r.ArchiveLag)
	}
	for _, name := range r.Cursors {
		if name != r.Archive {
			p.Cursors = append(p.Cursors, name)
		}
	}
	return p
}

// shortDuration is d.String() without zeros at the end.
func shortDuration(d time.Duration) string {
	switch {
	case d%time.Hour == 0:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d%time.Minute == 0 && d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return d.String()
}

// policyWarnings returns what may be meant otherwise in a policy, as text for
// people.
func policyWarnings(r cluster.Retention) []string {
	if r.Archive != "" {
		return nil
	}
	return []string{"this policy may trim transactions that are in no backup. To keep them until they are, " +
		"add --archive NAME, the cursor that \"cantus backup --cursor NAME\" moves"}
}

// onRetention sets or removes a policy.
func (o *operations) onRetention(ctx context.Context, m *natslink.Message) (any, error) {
	var r subjects.RetentionRequest
	if err := smallJSON(m.Payload, &r); err != nil {
		return nil, err
	}
	partition, whose := cluster.AllPartitions, "all partitions that have none of their own"
	if r.Partition != nil {
		if *r.Partition < 0 {
			return nil, subjects.Errorf(subjects.BadRequest, "there is no partition %d", *r.Partition)
		}
		partition, whose = *r.Partition, fmt.Sprintf("partition %d", *r.Partition)
	}
	if r.Policy == nil {
		return o.decide(ctx, func(f cluster.Facts) (cluster.Command, error) { return f.SetRetention(partition, nil) },
			"the policy of %s is removed", whose)
	}
	policy, err := retentionPolicy(r.Policy)
	if err != nil {
		return nil, err
	}
	reply, err := o.decide(ctx, func(f cluster.Facts) (cluster.Command, error) { return f.SetRetention(partition, &policy) },
		"the policy of %s is set", whose)
	if done, is := reply.(subjects.AdminReply); is {
		done.Warnings = append(policyWarnings(policy), done.Warnings...)
		reply = done
	}
	return reply, err
}

// retentionLimits are a policy at a moment: which points of a log may go.
type retentionLimits struct {
	passed  uint64 // the last transaction that all cursors have passed
	bounded bool   // olderThan, bytes and count say what may go
	// olderThan is in Unix nanoseconds. size is the log's, and mark its last
	// transaction.
	olderThan               int64
	size, mark, bytes, kept uint64
}

// limitsOf returns a policy's limits for a log, by a clock.
func limitsOf(r cluster.Retention, clock time.Time, size, mark uint64, cursors map[string]uint64) retentionLimits {
	l := retentionLimits{passed: math.MaxUint64, bounded: r.Bounded(), size: size, mark: mark, bytes: r.Bytes, kept: r.Count}
	if r.Age > 0 {
		l.olderThan = clock.Add(-r.Age).UnixNano()
	}
	for _, name := range r.Cursors {
		l.passed = min(l.passed, cursors[name])
	}
	return l
}

// may reports whether a point of the log may go. It holds for all points up to
// some point, and for none after it.
func (l *retentionLimits) may(p trimPoint) bool { return p.Txid <= l.passed && l.due(p) }

// due is may without the cursors.
func (l *retentionLimits) due(p trimPoint) bool {
	switch {
	case !l.bounded:
		return true
	case p.time < l.olderThan:
		return true
	case l.bytes > 0 && p.bytes <= l.size && l.size-p.bytes >= l.bytes:
		return true
	}
	return l.kept > 0 && l.mark >= p.Txid && l.mark-p.Txid >= l.kept
}
