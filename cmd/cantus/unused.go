package main

import (
	"context"
	"errors"
	"slices"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// checkUnused returns an error unless each partition is empty, or goesOn
// accepts it, because an interrupted command goes on there. Call it before
// anything is changed: a command that was sent to the wrong cluster must not
// take that one's empty partitions out of service.
func checkUnused(ctx context.Context, l *natsConn, partitions []int, goesOn func(subjects.PartitionInfo) bool) error {
	for _, n := range partitions {
		var info subjects.PartitionInfo
		err := newBackupSource(l).again(ctx, func() (_ bool, err error) {
			info = subjects.PartitionInfo{}
			return false, l.ask(ctx, l.names.PartitionInfo(n), nil, &info)
		})
		switch {
		case errors.Is(err, nats.ErrNoResponders):
			return l.noLeader(ctx, n)
		case err != nil:
			return l.explain(err)
		case info.HighWaterMark > 0 && !goesOn(info):
			return failf(exitConflict, "partition %d of this cluster is in use, and its last txid is %d: nothing was changed; use a new, empty cluster", n, info.HighWaterMark)
		}
	}
	return nil
}

// hasPast reports whether transactions of a partition were committed in a
// cluster before they came into this one.
func hasPast(info subjects.PartitionInfo, cluster string) bool {
	return slices.ContainsFunc(info.History, func(p subjects.PastCluster) bool { return p.Cluster == cluster })
}
