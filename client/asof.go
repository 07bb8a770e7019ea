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

// TxidAt returns the txid of a partition's last transaction at or before a
// time, 0 if there is none. A state that has applied the partition up to it is
// the state as of that time. For a time that has just passed, or has not passed
// yet by the leader's clock, later transactions may still be at or before it.
//
// It returns [ErrTrimmed] if transactions later than at were trimmed, so that
// the txid is not known any more, and [ErrOptions] for a time that is not from
// 1678 to 2261. It retries until ctx ends.
func (c *Client) TxidAt(ctx context.Context, partition int, at time.Time) (uint64, error) {
	if _, err := subjects.ParseTime(at.UTC().Format(time.RFC3339Nano)); err != nil {
		return 0, fmt.Errorf("%w: at: %w", ErrOptions, err)
	}
	body, err := json.Marshal(subjects.InfoRequest{At: at.UTC()})
	if err != nil {
		return 0, err
	}
	var info subjects.PartitionInfo
	err = c.call(ctx, partition, c.names.PartitionInfo(partition), body, func(m *nats.Msg, _ int) (error, bool) {
		info = subjects.PartitionInfo{}
		err := json.Unmarshal(m.Data, &info)
		switch {
		case err != nil:
			return err, false
		case info.Error != nil:
			return refusal(*info.Error, partition, "", info.HighWaterMark), dispositionOf(info.Error) == final
		case info.AsOf == nil:
			return errors.New("the answer has no txid"), false
		}
		return nil, true
	})
	if err != nil {
		return 0, fmt.Errorf("txid of partition %d at %s: %w", partition, at.UTC().Format(time.RFC3339Nano), err)
	}
	return *info.AsOf, nil
}

// PositionsAt returns the positions of partitions as of a time: a follower that
// begins there gets the transactions after that time. For those at or after it,
// give at.Add(-1). It calls [Client.TxidAt] for each partition.
func (c *Client) PositionsAt(ctx context.Context, at time.Time, partitions ...int) (Positions, error) {
	after := make(Positions, len(partitions))
	for _, p := range partitions {
		txid, err := c.TxidAt(ctx, p, at)
		if err != nil {
			return nil, err
		}
		after[p] = txid
	}
	return after, nil
}
