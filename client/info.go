package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// Partitions tells how many partitions the cluster has. It asks once, and
// again and again until ctx ends if nobody answers.
func (c *Client) Partitions(ctx context.Context) (int, error) {
	if n := c.size.Load(); n > 0 {
		return int(n), nil
	}
	info, err := c.clusterInfo(ctx)
	if err != nil {
		return 0, err
	}
	if info.Partitions < 1 || info.Partitions > subjects.MaxPartitions {
		return 0, fmt.Errorf("cluster info: %d partitions", info.Partitions)
	}
	c.size.Store(int64(info.Partitions)) // fixed when the cluster was founded
	return info.Partitions, nil
}

// clusterInfo asks any node to describe the cluster.
func (c *Client) clusterInfo(ctx context.Context) (subjects.ClusterInfo, error) {
	var info struct {
		subjects.ClusterInfo
		Error *subjects.Error `json:"error"`
	}
	if err := c.askJSON(ctx, -1, c.names.Info(), &info, &info.Error); err != nil {
		return info.ClusterInfo, fmt.Errorf("cluster info: %w", err)
	}
	return info.ClusterInfo, nil
}

// Partition tells where a key's transactions go, as append by key does: by
// FNV-1a of the key, modulo the number of partitions.
func (c *Client) Partition(ctx context.Context, key string) (int, error) {
	n, err := c.Partitions(ctx)
	if err != nil {
		return 0, err
	}
	return subjects.PartitionOf(key, n), nil
}

// HighWaterMark asks the leader for the partition's high-water mark. It holds
// all that was acknowledged before.
func (c *Client) HighWaterMark(ctx context.Context, partition int) (uint64, error) {
	var info subjects.PartitionInfo
	if err := c.askJSON(ctx, partition, c.names.PartitionInfo(partition), &info, &info.Error); err != nil {
		return 0, fmt.Errorf("info of partition %d: %w", partition, err)
	}
	return info.HighWaterMark, nil
}

// askJSON requests JSON until it gets some, or a refusal that is final: refused
// points into reply.
func (c *Client) askJSON(ctx context.Context, partition int, subject string, reply any, refused **subjects.Error) error {
	return c.request(ctx, partition, subject, nil, func(m *nats.Msg, _ int) (error, bool) {
		*refused = nil
		if err := json.Unmarshal(m.Data, reply); err != nil {
			return err, false
		}
		if *refused == nil {
			return nil, true
		}
		return *refused, courseOf(*refused) == final
	})
}

// request sends until take is content with the answer, or says that its
// error is final. The partition is the one whose leader answers, -1 if any node
// does.
func (c *Client) request(ctx context.Context, partition int, subject string, body []byte, take func(m *nats.Msg, try int) (err error, done bool)) error {
	a := c.ask(partition)
	defer a.done()
	for tries := 1; ; tries++ {
		try, cancel := a.try(ctx)
		m, err := c.nc.RequestWithContext(try, subject, body)
		cancel()
		done := false
		switch {
		case err == nil:
			if err, done = take(m, tries); done {
				return err
			}
		case isClosed(err):
			return fmt.Errorf("%w: %w", ErrClosed, err)
		case errors.Is(err, nats.ErrNoResponders):
			err = ErrNoLeader
			if partition < 0 {
				break
			}
			if missing := c.nobody(partition); missing != nil {
				return missing
			}
		case try.Err() != nil:
			err = ErrNoAnswer
		}
		select {
		case <-time.After(c.backoff(tries)):
		case <-a.again:
		case <-ctx.Done():
			return fmt.Errorf("%w; last try: %w", context.Cause(ctx), err)
		case <-c.closing:
			return ErrClosed
		}
	}
}
