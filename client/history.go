package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// CheckHistory returns a [*HistoryError] if the partition does not have the
// transactions up to txid that the cluster with the given id had: it has
// another history, and a consumer that has applied them must not go on with it.
// It retries until ctx ends.
//
// A Follower checks that by itself, for what it has applied and for positions
// of [FollowOptions.Clusters].
func (c *Client) CheckHistory(ctx context.Context, partition int, txid uint64, cluster string) error {
	if txid == 0 || cluster == "" {
		return nil
	}
	body, err := json.Marshal(subjects.ReadRequest{From: txid + 1, Max: 1, HeadersOnly: true, Cluster: cluster})
	if err != nil {
		return err
	}
	err = c.call(ctx, partition, c.names.Read(partition), body, func(m *nats.Msg, _ int) (error, bool) {
		if m.Header.Get(subjects.HeaderErrorCode) == "" {
			return nil, true // a transaction, or the end
		}
		err, final := readRefusal(m, partition, txid, cluster)
		return err, final
	})
	var other *HistoryError
	if err == nil || errors.As(err, &other) {
		return err
	}
	return fmt.Errorf("check the history of partition %d: %w", partition, err)
}

// readRefusal returns the error of a refused read by a client that has the
// transactions up to after from a cluster, and whether it is final.
func readRefusal(m *nats.Msg, partition int, after uint64, cluster string) (err error, final bool) {
	var r subjects.Reply
	if err := json.Unmarshal(m.Data, &r); err != nil || r.Error == nil {
		return fmt.Errorf("read: malformed refusal: %q", m.Data), false
	}
	mark := uint64(0)
	if r.HighWaterMark != nil {
		mark = *r.HighWaterMark
	}
	final = isFinal(r.Error)
	if r.Error.Reason == subjects.Ahead && r.Error.Cluster != "" {
		return &HistoryError{
			RefusedError: refusedError(*r.Error, partition, "", mark), After: after, Had: cluster, Cluster: r.Error.Cluster, Common: r.Error.Txid,
		}, final
	}
	return refusal(*r.Error, partition, "", mark), final
}

func isFinal(e *subjects.Error) bool { return dispositionOf(e) == final }
