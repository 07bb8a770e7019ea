package client

import (
	"context"
	"fmt"

	"github.com/cantuslog/cantus/subjects"
)

// Partitions returns the number of partitions of the cluster. It asks once, and
// retries until ctx ends if nobody answers.
func (c *Client) Partitions(ctx context.Context) (int, error) {
	if n := c.partitions.Load(); n > 0 {
		return int(n), nil
	}
	info, err := c.clusterInfo(ctx)
	if err != nil {
		return 0, err
	}
	if info.Partitions < 1 || info.Partitions > subjects.MaxPartitions {
		return 0, fmt.Errorf("cluster info: %d partitions", info.Partitions)
	}
	c.partitions.Store(int64(info.Partitions)) // fixed when the cluster was founded
	return info.Partitions, nil
}

// clusterInfo asks any node to describe the cluster.
func (c *Client) clusterInfo(ctx context.Context) (subjects.ClusterInfo, error) {
	var info struct {
		subjects.ClusterInfo
		Error *subjects.Error `json:"error"`
	}
	if err := c.callJSON(ctx, -1, c.names.Info(), &info, &info.Error); err != nil {
		return info.ClusterInfo, fmt.Errorf("cluster info: %w", err)
	}
	return info.ClusterInfo, nil
}

// Partition returns the partition of a key, as append by key computes it: the
// FNV-1a hash of the key modulo the number of partitions.
func (c *Client) Partition(ctx context.Context, key string) (int, error) {
	n, err := c.Partitions(ctx)
	if err != nil {
		return 0, err
	}
	return subjects.PartitionOf(key, n), nil
}

// HighWaterMark asks the leader for the partition's high-water mark, which
// includes everything acknowledged before the call. It retries until ctx ends.
func (c *Client) HighWaterMark(ctx context.Context, partition int) (uint64, error) {
	var info subjects.PartitionInfo
	if err := c.callJSON(ctx, partition, c.names.PartitionInfo(partition), &info, &info.Error); err != nil {
		return 0, fmt.Errorf("info of partition %d: %w", partition, err)
	}
	return info.HighWaterMark, nil
}
