package client

import (
	"context"
	"fmt"
)

// Nobody answers for a partition that does not exist, nor for one that has no
// leader at the moment. So if nobody answers, the client asks once for the
// number of partitions, which is fixed when a cluster is founded.

// noPartitionError is the error for a partition that the cluster does not have.
type noPartitionError struct{ partition, partitions int }

func (e *noPartitionError) Error() string {
	return fmt.Sprintf("client: partition %d does not exist: this cluster has %d (0 to %d)", e.partition, e.partitions, e.partitions-1)
}

func (*noPartitionError) Is(target error) bool { return target == ErrNoPartition }

// checkPartition returns an error if the cluster is known not to have the
// partition.
func (c *Client) checkPartition(partition int) error {
	if n := int(c.partitions.Load()); n > 0 && partition >= n {
		return &noPartitionError{partition, n}
	}
	return nil
}

// onNoResponders handles an answer by NATS that nobody subscribes to the
// partition's subject. It returns an error if the partition does not exist. If
// that is not known, it starts to ask for the number of partitions.
func (c *Client) onNoResponders(partition int) error {
	if c.partitions.Load() > 0 {
		return c.checkPartition(partition)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed == nil && !c.fetchingPartitions {
		c.fetchingPartitions = true
		c.running.Go(c.fetchPartitions)
	}
	return nil
}

// fetchPartitions asks for the number of partitions, and ends the senders and
// streams of partitions that do not exist. If it gets no answer, the next call
// of onNoResponders asks again.
func (c *Client) fetchPartitions() {
	ctx, cancel := c.untilClosed()
	defer cancel()
	ctx, stop := context.WithTimeout(ctx, c.opts.AttemptTimeout)
	defer stop()
	_, err := c.Partitions(ctx)
	c.mu.Lock()
	c.fetchingPartitions = false
	c.mu.Unlock()
	if err != nil {
		return
	}
	senders, streams := c.sendersAndStreams()
	for _, s := range senders {
		if err := c.checkPartition(s.partition); err != nil {
			s.close(err)
		}
	}
	for _, s := range streams {
		if err := c.checkPartition(s.partition); err != nil {
			s.end(err)
		}
	}
}
