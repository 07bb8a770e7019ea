package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/internal/workload"
)

// A cluster that is trimmed is read from its first transaction on, out of its
// archive, on each node, and while leaders are killed.
func TestClusterArchive(t *testing.T) {
	c, client, before := startTrimmed(t, filepath.Join(t.TempDir(), "backup"))
	testkit.Until(t, "info says that the archive is whole", func() bool { return archivedFrom(t, client) == 1 })
	same := func(what string, got []*nats.Msg) {
		t.Helper()
		if len(got) != len(before)+1 {
			t.Fatalf("%s: %d transactions, want %d", what, len(got), len(before)+1)
		}
		checkRestoredLog(t, before, got[:len(before)])
	}
	same("after the trim", drain(t, client, 0))
	for _, n := range c.nodes {
		same(n.name, drainReplica(t, c.dialOnly(n)))
	}
	for range testkit.Sized(1, 1, 5) {
		c.readWhileLeadersAreKilled(t, filepath.Join(t.TempDir(), "export"), len(before)+1)
	}
}

// startTrimmed starts a cluster whose archive has the beginning of its only
// partition. It returns what was in the log before it was trimmed; there is one
// transaction more now.
func startTrimmed(tb testing.TB, to string) (c *cluster, client *workload.Client, before []*nats.Msg) {
	tb.Helper()
	c = startCluster(tb, 3, "--partitions", "1", "--msg-ids", "1", "--archive", to)
	load := startLoad(c, 1)
	client = c.dial(c.nodes[0].name)
	c.awaitMark(client, 0, testkit.Sized[uint64](300, 600, 20_000))
	load.stop(tb)
	before = drain(tb, client, 0)
	c.backUp(tb, to)
	c.trimTo(tb, client, uint64(len(before))-20)
	c.mustKeep(client, 0, "later")
	for _, n := range c.nodes { // a replica that has not trimmed its log yet reads from it
		testkit.Until(tb, n.name+" has trimmed its log", func() bool { return n.running().stderr.has("msg=trimmed") })
	}
	return c, client, before
}

// trimTo trims partition 0 so that it begins with a transaction.
func (c *cluster) trimTo(tb testing.TB, client *workload.Client, first uint64) {
	tb.Helper()
	if code, stdout, stderr := cantus(tb, "trim", "0", "--before", fmt.Sprint(first), "--server", c.url()); code != 0 {
		tb.Fatalf("trim ended with %d: %s%s", code, stdout, stderr)
	}
	_, _, refused, err := client.Read(tb.Context(), 0, map[string]any{"from": 1, "max": 1})
	if err != nil || refused != nil {
		tb.Fatalf("the first transaction is not read: %v, %v", refused, err)
	}
}

func archivedFrom(t *testing.T, client *workload.Client) uint64 {
	t.Helper()
	var info struct {
		First        uint64 `json:"first_txid"`
		ArchivedFrom uint64 `json:"archived_from"`
	}
	m, err := client.Request(t.Context(), nats.NewMsg("cantus.info.0"))
	if err != nil || json.Unmarshal(m.Data, &info) != nil || info.First < 2 {
		t.Fatalf("info: %+v, %v", info, err)
	}
	return info.ArchivedFrom
}

// drainReplica reads partition 0 from the replica of a node.
func drainReplica(t *testing.T, client *workload.Client) (all []*nats.Msg) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for from := uint64(1); ; {
		got, end, refused, err := client.ReadFrom(t.Context(), "replica.read", 0, map[string]any{"from": from, "max": 400})
		for err == nil && refused != nil && refused.Reason == "unavailable" && time.Now().Before(deadline) {
			got, end, refused, err = client.ReadFrom(t.Context(), "replica.read", 0, map[string]any{"from": from, "max": 400})
		}
		if err != nil || refused != nil || end.Next < from {
			t.Fatalf("from %d: %+v, %v, %v", from, end, refused, err)
		}
		if all = append(all, got...); end.Next > end.HighWaterMark {
			return all
		}
		from = end.Next
	}
}

// readWhileLeadersAreKilled exports partition 0 again and again while its
// leader is killed and another one takes over.
func (c *cluster) readWhileLeadersAreKilled(t *testing.T, file string, want int) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	exports := make(chan error, 1)
	begun := make(chan struct{}, 1) // one is done, and the next one begins
	go func() {
		for ctx.Err() == nil {
			code, _, stderr := cantus(t, "export", "0", file, "--server", c.url())
			if code == 4 { // the first question was lost with the leader: try again
				continue
			}
			text, err := os.ReadFile(file)
			if lines := strings.Count(string(text), "\n"); code != 0 || err != nil || lines != want {
				exports <- fmt.Errorf("export ended with %d and %d lines, want %d: %s%w", code, lines, want, stderr, err)
				return
			}
			if err := os.Remove(file); err != nil {
				exports <- err
				return
			}
			select {
			case begun <- struct{}{}:
			default:
			}
		}
		exports <- nil
	}()
	watcher := c.dial(c.nodes[0].name)
	leader, err := c.leader(t.Context(), watcher, 0)
	if err != nil {
		t.Fatal(err)
	}
	again := func() {
		t.Helper()
		select {
		case <-begun:
		case err := <-exports:
			t.Fatal(err)
		}
	}
	again()
	leader.kill()
	if err := c.awaitOther(t.Context(), c.dial(c.without(leader).name), leader); err != nil {
		t.Fatal(err)
	}
	again()
	stop()
	if err := <-exports; err != nil {
		t.Fatal(err)
	}
	if err := leader.start(); err != nil {
		t.Fatal(err)
	}
	c.awaitPlaced()
}
