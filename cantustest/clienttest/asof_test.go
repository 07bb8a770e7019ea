package client_test

import (
	"context"
	"errors"
	"math"
	"testing"
	"time"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/client"
)

func TestTxidAtATime(t *testing.T) {
	n := openNode(t, broker.Options{Partitions: 2})
	c, ctx := newClient(t, connect(t, n), client.Options{}), soon(t)
	at := func(partition int, when time.Time) uint64 {
		t.Helper()
		txid, err := c.TxidAt(ctx, partition, when)
		if err != nil {
			t.Fatal(err)
		}
		return txid
	}
	if txid := at(0, time.Now()); txid != 0 {
		t.Errorf("in an empty log it is %d", txid)
	}
	appendMany(t, c, 0, 50)
	all := readAll(t, c, 0)
	for _, tx := range all {
		if txid := at(0, tx.Time); txid != tx.Txid {
			t.Errorf("at the time of %d it is %d", tx.Txid, txid)
		}
		if txid := at(0, tx.Time.Add(-1)); txid != tx.Txid-1 {
			t.Errorf("before %d it is %d", tx.Txid, txid)
		}
	}
	for _, when := range []time.Time{time.Unix(0, math.MaxInt64), all[49].Time.Add(time.Hour)} {
		if txid := at(0, when); txid != 50 {
			t.Errorf("after the last one it is %d", txid)
		}
	}
	if txid := at(0, time.Unix(0, math.MinInt64)); txid != 0 {
		t.Errorf("before the first one it is %d", txid)
	}

	// A follower from a time on gets what is at or after it, and no other.
	after, err := c.PositionsAt(ctx, all[20].Time.Add(-1), 0, 1)
	if err != nil || len(after) != 2 || after[1] != 0 {
		t.Fatalf("%v, %v", after, err)
	}
	done := errors.New("seen")
	err = c.Follow(ctx, client.Positions{0: after[0]}, func(_ context.Context, tx *client.Transaction) error {
		if tx.Txid != all[20].Txid {
			t.Errorf("the first one is %d", tx.Txid)
		}
		return done
	}, client.FollowOptions{})
	wantErr(t, err, done)

	for _, when := range []time.Time{{}, time.Unix(0, math.MaxInt64).Add(1)} {
		_, err = c.TxidAt(ctx, 0, when)
		wantErr(t, err, client.ErrOptions)
	}
	_, err = c.PositionsAt(ctx, time.Now(), 0, 7)
	wantErr(t, err, client.ErrNoPartition)
}
