package client_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/cantustest"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/internal/relay"
	"github.com/cantuslog/cantus/internal/testkit"
)

// errDone ends a Follow that has seen everything it needs.
var errDone = errors.New("done")

// fillWide appends count transactions of 16 KiB to each partition, of kinds a
// and b in turn. Their payloads begin with their txids.
func fillWide(t testing.TB, c *client.Client, partitions, count int) {
	t.Helper()
	rest := strings.Repeat("x", 16<<10)
	for i := 1; i <= count; i++ {
		var futures []*client.Future // one for each partition: those that are sent again may change places
		for p := range partitions {
			f, err := c.AppendAsync(soon(t), &client.Request{
				Partition: p, Kind: string(rune('b' - i%2)), AppendLocks: []string{fmt.Sprint("l.", i%2)}, Payload: fmt.Appendf(nil, "%08d%s", i, rest),
			})
			if err != nil {
				t.Fatal(err)
			}
			futures = append(futures, f)
		}
		for _, f := range futures {
			if _, err := f.Wait(soon(t)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// followWhole follows partitions of fillWide to their ends and fails the test
// if the handler does not get every transaction that passes the filters, once
// and in order.
func followWhole(t *testing.T, c *client.Client, partitions, count int, opts client.FollowOptions) {
	t.Helper()
	step := 2
	if len(opts.Kinds) == 0 && opts.Lock == "" {
		step = 1
	}
	after := map[int]uint64{}
	next := make([]int, partitions)
	for p := range partitions {
		after[p], next[p] = 0, 1
	}
	var mu sync.Mutex
	left := partitions
	ctx, cancel := context.WithCancelCause(soon(t))
	err := c.Follow(ctx, after, func(_ context.Context, tx *client.Transaction) error {
		mu.Lock()
		defer mu.Unlock()
		if want := next[tx.Partition]; tx.Txid != uint64(want) || string(tx.Payload[:8]) != fmt.Sprintf("%08d", want) {
			return fmt.Errorf("partition %d: txid %d came where %d was next", tx.Partition, tx.Txid, want)
		}
		if next[tx.Partition] += step; next[tx.Partition] > count {
			if left--; left == 0 {
				cancel(errDone)
			}
		}
		return nil
	}, opts)
	if !errors.Is(err, errDone) {
		mu.Lock()
		defer mu.Unlock()
		t.Errorf("%+v: %v; %d partitions did not come to their end: %v", opts, err, left, next)
	}
}

var filters = []client.FollowOptions{{Kinds: []string{"a"}}, {Lock: "l.1"}, {}}

// TestFollowersNoticeLostMessages loses messages in the middle of reads. If
// there are filters, no gap of txids shows that.
func TestFollowersNoticeLostMessages(t *testing.T) {
	const count = 300
	l := cantustest.New(t, cantustest.Options{})
	c := l.NewClient(t, client.Options{MinBackoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond})
	fillWide(t, c, 1, count)
	for _, opts := range filters {
		for part := 1; part <= 4; part++ {
			l.FailNext(7, cantustest.Read, cantustest.LosePart(part))
		}
		l.FailNext(3, cantustest.Read, cantustest.RepeatAnswer())
		followWhole(t, c, 1, count, opts)
	}
}

// TestFollowersOverASlowLine follows many partitions at once over a connection
// that carries less than the node sends, with a small buffer in the server.
func TestFollowersOverASlowLine(t *testing.T) {
	testkit.NotShort(t, "a line is slow")
	const partitions, count = 16, 100
	config := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(config, []byte("host: 127.0.0.1\nport: -1\nmax_pending: 8388608\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n := openNode(t, broker.Options{Partitions: partitions, NATSConfig: config})
	fillWide(t, newClient(t, connect(t, n), client.Options{}), partitions, count)
	nc, err := nats.Connect(relay.Slow(t, n.ClientURL(), 60<<20), nats.MaxReconnects(-1), nats.ReconnectWait(5*time.Millisecond), nats.Timeout(patience))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	lost := make(chan struct{})
	nc.SetDisconnectErrHandler(func(*nats.Conn, error) { close(lost) })
	c := newClient(t, nc, client.Options{})
	for _, opts := range filters {
		followWhole(t, c, partitions, count, opts)
	}
	select {
	case <-lost:
		t.Error("the server closed the connection")
	default:
	}
}
