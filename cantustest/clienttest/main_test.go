package client_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/internal/testkit"
)

const patience = testkit.Patience

func TestMain(m *testing.M) {
	testkit.Main(m)
}

// soon returns a context that ends a test that would hang.
var soon = testkit.Soon

// openNode runs a node without ports.
func openNode(t testing.TB, opts broker.Options) *broker.Node {
	t.Helper()
	if opts.Partitions == 0 {
		opts.Partitions = 2
	}
	n, err := broker.Open(soon(t), t.TempDir(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close the node: %v", err)
		}
	})
	return n
}

// connect returns a connection to a node. It is closed when the test ends.
func connect(t testing.TB, n *broker.Node, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := n.Conn(append([]nats.Option{
		nats.MaxReconnects(-1), nats.ReconnectWait(5 * time.Millisecond), nats.ReconnectJitter(time.Millisecond, time.Millisecond),
	}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// newClient returns a client. It is closed when the test ends.
func newClient(t testing.TB, nc *nats.Conn, opts client.Options) *client.Client {
	t.Helper()
	c, err := client.New(nc, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close the client: %v", err)
		}
	})
	return c
}

// newLog returns a node with two partitions and a client of it.
func newLog(t testing.TB) (*broker.Node, *client.Client) {
	t.Helper()
	n := openNode(t, broker.Options{})
	return n, newClient(t, connect(t, n), client.Options{})
}

// mustAppend appends, and fails the test if that fails.
func mustAppend(t testing.TB, c *client.Client, req client.Request) client.Receipt {
	t.Helper()
	r, err := c.Append(soon(t), &req)
	if err != nil {
		t.Fatalf("append %q: %v", req.Payload, err)
	}
	return r
}

// readAll reads a partition up to its present high-water mark and checks that
// nothing is missing. It is the oracle of most tests.
func readAll(t testing.TB, c *client.Client, partition int) []*client.Transaction {
	t.Helper()
	ctx := soon(t)
	mark, err := c.HighWaterMark(ctx, partition)
	if err != nil {
		t.Fatal(err)
	}
	var all []*client.Transaction
	if mark == 0 {
		return nil
	}
	for tx, err := range c.All(ctx, partition, 0, client.FollowOptions{}) {
		if err != nil {
			t.Fatalf("read partition %d: %v", partition, err)
		}
		if want := uint64(len(all) + 1); tx.Txid != want || tx.Partition != partition {
			t.Fatalf("partition %d: txid %d of partition %d where %d was next", partition, tx.Txid, tx.Partition, want)
		}
		if all = append(all, tx); tx.Txid == mark {
			break
		}
	}
	return all
}

// checkOnce checks that each of n payloads "0" to "n-1" is in the partition
// exactly once, and nothing else.
func checkOnce(t testing.TB, c *client.Client, partition, n int) {
	t.Helper()
	seen := map[string]int{}
	for _, tx := range readAll(t, c, partition) {
		seen[string(tx.Payload)]++
	}
	for i := range n {
		if got := seen[fmt.Sprint(i)]; got != 1 {
			t.Errorf("payload %d is in the log %d times", i, got)
		}
		delete(seen, fmt.Sprint(i))
	}
	if len(seen) > 0 {
		t.Errorf("never appended, and in the log: %v", seen)
	}
}

// appendMany appends payloads "0" to "n-1" without waiting in between, and
// returns the receipts.
func appendMany(t testing.TB, c *client.Client, partition, n int) []client.Receipt {
	t.Helper()
	ctx := soon(t)
	var futures []*client.Future
	for i := range n {
		f, err := c.AppendAsync(ctx, &client.Request{Partition: partition, Payload: []byte(fmt.Sprint(i))})
		if err != nil {
			t.Fatalf("append %d: %v", i, err)
		}
		futures = append(futures, f)
	}
	return waitAll(t, futures)
}

func waitAll(t testing.TB, futures []*client.Future) []client.Receipt {
	t.Helper()
	ctx := soon(t)
	receipts := make([]client.Receipt, len(futures))
	for i, f := range futures {
		r, err := f.Wait(ctx)
		if err != nil {
			t.Fatalf("append %d: %v", i, err)
		}
		receipts[i] = r
	}
	return receipts
}

// wantErr checks that err matches target.
func wantErr(t testing.TB, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("error %v; want %v", err, target)
	}
}
