package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/internal/workload"
)

// dial returns a client that waits for an answer as long as tests do.
func dial(tb testing.TB, url string, opts ...nats.Option) *workload.Client {
	tb.Helper()
	c, err := workload.Dial(url, opts...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.Conn.Close)
	c.Limit, c.Overdue = patience, fmt.Errorf("no answer within %v", patience)
	return c
}

// drain reads a whole partition.
func drain(tb testing.TB, c *workload.Client, partition int) []*nats.Msg {
	tb.Helper()
	var all []*nats.Msg
	testkit.Until(tb, "the partition is read", func() bool {
		var err error
		all, err = c.Drain(tb.Context(), partition)
		if err != nil && !strings.Contains(err.Error(), "503 unavailable") && !errors.Is(err, nats.ErrNoResponders) {
			tb.Fatal(err)
		}
		return err == nil
	})
	return all
}

func mustInfo(tb testing.TB, c *workload.Client, partition int) workload.PartitionInfo {
	tb.Helper()
	var info workload.PartitionInfo
	testkit.Until(tb, "the partition is served", func() (ok bool) {
		var err error
		if info, err = c.Info(tb.Context(), partition); err != nil && !strings.Contains(err.Error(), unavailable) && !errors.Is(err, nats.ErrNoResponders) {
			tb.Fatal(err)
		}
		return err == nil
	})
	return info
}

// unavailable is part of a refusal by a node that leads no more. Nothing was
// done: the request may be sent again.
const unavailable = `"reason":"unavailable"`

// Await blocks until the node serves.
func (n *node) Await(ctx context.Context, _ int) error {
	select {
	case <-n.serving():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
