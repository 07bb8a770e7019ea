package main

import (
	"context"
	"errors"
	"fmt"
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
		info, err := partitionInfo(ctx, l, n)
		switch {
		case err != nil:
			return err
		case info.HighWaterMark > 0 && !goesOn(info):
			return failf(exitConflict, "partition %d of this cluster is in use, and its last txid is %d: nothing was changed; use a new, empty cluster", n, info.HighWaterMark)
		}
	}
	return nil
}

// checkRestorable is checkUnused for logs that are to be restored.
func checkRestorable(ctx context.Context, l *natsConn, logs []*logRestore) error {
	for _, r := range logs {
		info, err := partitionInfo(ctx, l, r.log.Partition)
		if err != nil {
			return err
		}
		if err := r.check(info); err != nil {
			return fmt.Errorf("partition %d: %w", r.log.Partition, err)
		}
	}
	return nil
}

// partitionInfo asks the leader of a partition for its state, again and again
// while there is none.
func partitionInfo(ctx context.Context, l *natsConn, n int) (info subjects.PartitionInfo, err error) {
	err = newBackupSource(l).again(ctx, func() (_ bool, err error) {
		info = subjects.PartitionInfo{}
		return false, l.ask(ctx, l.names.PartitionInfo(n), nil, &info)
	})
	if errors.Is(err, nats.ErrNoResponders) {
		return info, l.noLeader(ctx, n)
	}
	return info, l.explain(err)
}

// hasPast reports whether transactions of a partition were committed in a
// cluster before they came into this one.
func hasPast(info subjects.PartitionInfo, cluster string) bool {
	return slices.ContainsFunc(info.History, func(p subjects.PastCluster) bool { return p.Cluster == cluster })
}
