package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// survey is what a cluster said about itself, for its health.
type survey struct {
	cluster    subjects.ClusterInfo
	partitions []partitionAnswer
	// status is one node's view, nil if it is not known; unknown says why.
	status  *subjects.ClusterStatus
	unknown string
}

// partitionAnswer is how a partition's leader answered: refused is the reason
// of its refusal, and silent says why there was no answer. Without any of these
// there is no leader.
type partitionAnswer struct {
	info    *subjects.PartitionInfo
	refused subjects.Reason
	silent  string
}

// leaderless reports whether there is no leader.
func (a partitionAnswer) leaderless() bool {
	return a.info == nil && a.refused == "" && a.silent == ""
}

// survey asks a node about the cluster, the leader of each partition about
// that, and then a node about all replicas. A partition that does not answer,
// and a status that the user may not see, are no errors.
func (l *natsConn) survey(ctx context.Context, at moment) (s survey, err error) {
	if s.cluster, err = l.cluster(ctx); err != nil {
		return s, err
	}
	if s.partitions, err = l.askPartitions(ctx, at, s.cluster.Partitions); err != nil {
		return s, err
	}
	// The user may lack the permission, which ends all requests under way: this
	// one is the last.
	var status subjects.ClusterStatus
	err = l.ask(ctx, l.names.Admin("status"), nil, &status)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		s.unknown = "no node answers " + l.names.Admin("status")
		if s.cluster.Namespace != "" {
			s.unknown = fmt.Sprintf("the prefix leads to the namespace %s, and only the cluster's own leads to the nodes", s.cluster.Namespace)
		}
	case errors.Is(err, context.Canceled):
		return s, l.explain(err)
	case err != nil:
		s.unknown = l.explain(err).Error()
	default:
		s.status = &status
	}
	return s, nil
}

// askAtOnce is how many partitions are asked concurrently.
const askAtOnce = 64

// askPartitions asks the leader of each partition.
func (l *natsConn) askPartitions(ctx context.Context, at moment, n int) ([]partitionAnswer, error) {
	answers, errs := make([]partitionAnswer, n), make([]error, n)
	var next atomic.Int64
	var asking sync.WaitGroup
	for range min(askAtOnce, n) {
		asking.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				answers[i], errs[i] = l.askPartition(ctx, at, i)
			}
		})
	}
	asking.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, l.explain(err)
		}
	}
	return answers, nil
}

// askPartition asks the leader of a partition. If the last transaction at or
// before at is not known any more, the answer has none. An error says that the
// question is wrong, or that it was not asked.
func (l *natsConn) askPartition(ctx context.Context, at moment, partition int) (a partitionAnswer, err error) {
	var request any
	if at != (moment{}) {
		request = subjects.InfoRequest{At: time.Time(at)}
	}
	info := subjects.PartitionInfo{Partition: partition}
	err = l.ask(ctx, l.names.PartitionInfo(partition), request, &info)
	refused, _ := errors.AsType[*subjects.Error](err)
	if refused != nil && refused.Reason == subjects.Trimmed {
		err = l.ask(ctx, l.names.PartitionInfo(partition), nil, &info)
		refused, _ = errors.AsType[*subjects.Error](err)
	}
	switch {
	case err == nil:
		return partitionAnswer{info: &info}, nil
	case errors.Is(err, nats.ErrNoResponders):
		return partitionAnswer{}, nil
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		return partitionAnswer{silent: l.explain(err).Error()}, nil
	case refused != nil && request == nil:
		return partitionAnswer{refused: refused.Reason}, nil
	}
	return a, err
}
