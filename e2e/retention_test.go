package e2e_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/internal/workload"
)

// A policy trims what an archiver has archived, under load, while leaders are
// killed, and the archiver too. The backup has the whole log from its first
// transaction on, and restored into another cluster it is what was
// acknowledged; what is left in the cluster is the end of it, on every replica.
func TestClusterArchiveFirst(t *testing.T) {
	// ids are remembered, and their transactions stay: more than others append
	// before a writer whose leader was killed tries again.
	const ids = 3000
	c := startCluster(t, 3, "--partitions", "2", "--retention-interval", "100ms", "--msg-ids", fmt.Sprint(ids), "--msg-id-window", "30m")
	to := filepath.Join(t.TempDir(), "backup")
	client := c.dial(c.nodes[0].name)
	if code, stdout, stderr := cantus(t, "retention", "set", "all", "--server", c.url(), "--count", "20", "--archive", "archive"); code != 0 {
		t.Fatalf("set: %s%s", stdout, stderr)
	}
	c.writerLimit = 250 * time.Millisecond
	load := startLoad(c, 2)
	kills := testkit.Sized(1, 2, 10)
	for i := range kills {
		archiver, err := run("backup", "--server", c.url(), "--to", to, "--every", "20ms", "--cursor", "archive", "--json", "--quiet")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(archiver.kill)
		c.awaitTrim(t, client, i%2)
		watcher := c.dial(c.nodes[i%3].name)
		leader, err := c.leader(t.Context(), watcher, i%2)
		if err != nil {
			t.Fatal(err)
		}
		leader.kill()
		if err := c.awaitOther(t.Context(), c.dial(c.other(leader).name), leader); err != nil {
			t.Fatal(err)
		}
		c.awaitTrim(t, c.dial(c.other(leader).name), i%2)
		archiver.kill()
		if err := leader.start(); err != nil {
			t.Fatal(err)
		}
		client = c.dial(c.nodes[0].name)
		if err := c.awaitReady(t.Context(), client); err != nil {
			t.Fatal(err)
		}
	}
	load.stop(t)
	code, stdout, stderr := cantus(t, "backup", "--server", c.url(), "--to", to, "--cursor", "archive", "--json", "--quiet")
	if code != 0 {
		t.Fatalf("backup ended with %d: %s%s", code, stdout, stderr)
	}
	verified := verifyBackup(t, to)
	for p := range 2 {
		err := c.until(t.Context(), "what is archived trimmed", func(ctx context.Context) string {
			info, err := client.Info(ctx, p)
			if err == nil && info.HighWaterMark < info.FirstTxid+ids+20 {
				return ""
			}
			return fmt.Sprintf("the log has %d to %d, %v", info.FirstTxid, info.HighWaterMark, err)
		})
		if err != nil {
			t.Fatal(err)
		}
		info := mustInfo(t, client, p)
		if verified[p] != info.Digest {
			t.Errorf("partition %d has the digest %s, its backup %s", p, info.Digest, verified[p])
		}
		load.checkKept(t, client, p, info.FirstTxid, info.HighWaterMark)
	}
	load.checkRestored(t, to)
	c.awaitPlaced()
	c.stopAll()
	for _, n := range c.nodes {
		code, stdout, stderr := cantus(t, "verify", n.dir)
		for p := range 2 {
			if code != 0 || !strings.Contains(stdout, verified[p][:12]) {
				t.Errorf("node %s has not the digest %s: verify ends with %d: %s%s", n.name, verified[p], code, stdout, stderr)
			}
		}
	}
}

// checkKept checks that the transactions that a partition keeps are those that
// were acknowledged, and that one of them is a duplicate when it is sent again.
func (l *load) checkKept(t *testing.T, client *workload.Client, p int, first, last uint64) {
	t.Helper()
	msgs, _, refused, err := client.ReadFrom(t.Context(), "read", p, map[string]any{"from": first, "max": 65536, "max_bytes": 8 << 20})
	if err != nil || refused != nil || uint64(len(msgs)) != last-first+1 {
		t.Fatalf("partition %d from %d to %d: %d transactions, %v, %v", p, first, last, len(msgs), refused, err)
	}
	for i, m := range msgs {
		if want := l.acked[p][first+uint64(i)]; string(m.Data) != want {
			t.Fatalf("partition %d: txid %d is %s, acknowledged was %q", p, first+uint64(i), m.Data, want)
		}
	}
	txid := first + (last-first)/2
	payload := l.acked[p][txid]
	again, err := l.cluster.keep(t.Context(), client, workload.NewAppend(p, payload, "Nats-Msg-Id", payload))
	if err != nil || !again.Duplicate || again.Txid != txid {
		t.Errorf("transaction %d of partition %d, sent again, is %+v, %v", txid, p, again, err)
	}
}

// awaitTrim waits until a partition is trimmed further than it is now.
func (c *cluster) awaitTrim(t *testing.T, client *workload.Client, partition int) {
	t.Helper()
	first := uint64(0)
	err := c.until(t.Context(), "a trim", func(ctx context.Context) string {
		info, err := client.Info(ctx, partition)
		switch {
		case err != nil:
		case first == 0:
			first = info.FirstTxid
		case info.FirstTxid > first:
			return ""
		}
		return fmt.Sprintf("the log begins at %d, %v", info.FirstTxid, err)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// other returns a node that is not n.
func (c *cluster) other(n *node) *node {
	for _, m := range c.nodes {
		if m != n {
			return m
		}
	}
	return nil
}

// checkRestored restores a backup into another cluster, and checks that its
// logs are what was acknowledged.
func (l *load) checkRestored(t *testing.T, from string) {
	t.Helper()
	restored := startCluster(second{t}, 3, "--partitions", fmt.Sprint(l.partitions), "--msg-id-window", "30m")
	if code, stdout, stderr := cantus(t, "restore", "--server", restored.url(), "--from", from, "--quiet"); code != 0 {
		t.Fatalf("restore ended with %d: %s%s", code, stdout, stderr)
	}
	client := restored.dial(restored.nodes[0].name)
	for p := range l.partitions {
		l.checkLog(t, p, drain(t, client, p))
	}
}
