package client

import (
	"context"
	"fmt"
)

// Nobody answers for a partition that does not exist, as for one that has no leader
// at the moment. So where nobody answers, the client asks once how many partitions
// there are: the number is fixed when a cluster is founded.

// noPartition is the error for a partition that the cluster does not have.
type noPartitionError struct{ partition, partitions int }

func (e *noPartitionError) Error() string {
	return fmt.Sprintf("client: partition %d does not exist: this cluster has %d (0 to %d)", e.partition, e.partitions, e.partitions-1)
}

func (*noPartitionError) Is(target error) bool { return target == ErrNoPartition }

// missing returns an error if the cluster is known not to have the partition.
func (c *Client) checkPartition(partition int) error {
	if n := int(c.partitions.Load()); n > 0 && partition >= n {
		return &noPartitionError{partition, n}
	}
	return nil
}

// nobody deals with the news that nobody answers for a partition. It returns an error
// if that will stay so, and else has the cluster's size asked for, if it is not known.
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

// findSize asks for the number of partitions, and ends what waits for one that does
// not exist. Without an answer, the next request that nobody answers has it asked for
// again.
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
