package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/internal/workload"
)

// second is a test that starts another cluster.
type second struct{ testing.TB }

// A backup is taken under load, and restored into three other nodes while their
// leaders are killed, and the restore too. Then both clusters have the same
// log, and a consumer that is ahead of the backup is told so.
func TestClusterRestore(t *testing.T) {
	original := startCluster(t, 3, "--partitions", "2", "--msg-id-window", "30m")
	from := filepath.Join(t.TempDir(), "backup")
	client := original.dial(original.nodes[0].name)
	load := startLoad(original, 2)
	for p := range 2 {
		original.awaitMark(client, p, testkit.Sized[uint64](200, 500, 20_000))
		mustSetCursor(t, client, p, "billing", 150)
	}
	original.backUp(t, from) // while transactions are appended
	load.stop(t)
	original.backUp(t, from)
	logs, infos := map[int][]*nats.Msg{}, map[int]workload.PartitionInfo{}
	for p := range 2 {
		logs[p], infos[p] = drain(t, client, p), mustInfo(t, client, p)
	}
	lost := original.mustKeep(client, 0, "not in the backup")

	restored := startCluster(second{t}, 3, "--partitions", "2", "--msg-id-window", "30m")
	restoreWithKills(t, restored, from, infos)
	watcher := restored.dial(restored.nodes[0].name)
	for p := range 2 {
		restored.awaitMark(watcher, p, infos[p].HighWaterMark)
		info := mustInfo(t, watcher, p)
		if info.HighWaterMark != infos[p].HighWaterMark || info.Digest != infos[p].Digest {
			t.Errorf("partition %d ends at %d with the digest %s, the original at %d with %s", p, info.HighWaterMark, info.Digest, infos[p].HighWaterMark, infos[p].Digest)
		}
		checkRestoredLog(t, logs[p], drain(t, watcher, p))
		if got, want := mustCursor(t, watcher, p, "billing"), mustCursor(t, client, p, "billing"); got != want || !strings.Contains(got, `"txid":150`) {
			t.Errorf("the cursor of partition %d is %s, and was %s", p, got, want)
		}
		first := logs[p][0]
		again, err := restored.keep(t.Context(), watcher, workload.NewAppend(p, string(first.Data), "Nats-Msg-Id", first.Header.Get("Cantus-Msg-Id")))
		if err != nil || !again.Duplicate || again.Txid != 1 {
			t.Errorf("the first transaction of partition %d, sent again, is %+v, %v", p, again, err)
		}
	}
	checkToldAhead(t, client, watcher, lost.Txid)
	restored.checkSame(t, logs)
}

// restoreWithKills restores a backup into a cluster. It kills the leader of
// each partition once the restore has begun there, and the restore itself.
func restoreWithKills(t *testing.T, c *cluster, from string, infos map[int]workload.PartitionInfo) {
	t.Helper()
	args := []string{"restore", "--server", c.url(), "--from", from, "--json", "--quiet"}
	client := c.dial(c.nodes[0].name)
	for p := range 2 {
		restore, err := run(args...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(restore.kill)
		var leader *node
		err = c.until(t.Context(), "a restored transaction", func(ctx context.Context) string {
			info, err := client.Info(ctx, p)
			if err != nil {
				return err.Error()
			}
			leader = c.node(info.Leader)
			if info.HighWaterMark == 0 {
				return "none"
			}
			return ""
		})
		if err != nil {
			t.Fatal(err)
		}
		leader.kill()
		if err := c.awaitOther(t.Context(), c.dial(c.without(leader).name), leader); err != nil {
			t.Fatal(err)
		}
		restore.kill()
		if err := leader.start(); err != nil {
			t.Fatal(err)
		}
		c.awaitPlaced()
	}
	code, stdout, stderr := cantus(t, args...)
	if code != 0 {
		t.Fatalf("restore ended with %d: %s%s", code, stdout, stderr)
	}
	done := 0
	for line := range strings.Lines(stdout) {
		var r struct {
			Partition int
			LastTxid  uint64 `json:"last_txid"`
			Digest    string
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		if done++; r.LastTxid != infos[r.Partition].HighWaterMark || r.Digest != infos[r.Partition].Digest {
			t.Errorf("restore says %s", line)
		}
	}
	if done != 2 {
		t.Errorf("restore says %s", stdout)
	}
}

// without returns another node than n.
func (c *cluster) without(n *node) *node {
	return c.nodes[slices.IndexFunc(c.nodes, func(o *node) bool { return o != n })]
}

// checkRestoredLog compares transactions with those that were backed up, all
// headers included.
func checkRestoredLog(t *testing.T, want, got []*nats.Msg) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d transactions, want %d", len(got), len(want))
	}
	for i := range want {
		if string(got[i].Data) != string(want[i].Data) || fmt.Sprint(got[i].Header) != fmt.Sprint(want[i].Header) {
			t.Fatalf("transaction %d is %v %q, and was %v %q", i+1, got[i].Header, got[i].Data, want[i].Header, want[i].Data)
		}
	}
}

// checkToldAhead reads with the cluster from which a consumer has all up to a
// transaction that is not in the backup.
func checkToldAhead(t *testing.T, original, restored *workload.Client, applied uint64) {
	t.Helper()
	var info struct{ ID string }
	m, err := original.Request(t.Context(), nats.NewMsg("cantus.info"))
	if err != nil || json.Unmarshal(m.Data, &info) != nil || info.ID == "" {
		t.Fatalf("info: %v, %v", m, err)
	}
	request := nats.NewMsg("cantus.read.0")
	request.Data = fmt.Appendf(nil, `{"from":%d,"cluster":%q}`, applied+1, info.ID)
	answer, err := restored.Request(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	var refused struct {
		Error struct {
			Reason  string
			Txid    uint64
			Cluster string
		}
	}
	if err := json.Unmarshal(answer.Data, &refused); err != nil || refused.Error.Reason != "ahead" || refused.Error.Txid != applied-1 ||
		refused.Error.Cluster == info.ID || refused.Error.Cluster == "" {
		t.Errorf("a consumer that is ahead is answered with %s", answer.Data)
	}
}

func mustSetCursor(t *testing.T, c *workload.Client, partition int, name string, txid uint64) {
	t.Helper()
	m := nats.NewMsg(fmt.Sprintf("cantus.cursor.%d.%s", partition, name))
	m.Data = fmt.Appendf(nil, `{"txid":%d}`, txid)
	testkit.Until(t, "the cursor is set", func() bool {
		answer, err := c.Request(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		refused := answer.Header.Get("Nats-Service-Error") != ""
		if refused && !strings.Contains(string(answer.Data), unavailable) {
			t.Fatalf("set the cursor: %s", answer.Data)
		}
		return !refused
	})
}

// mustCursor returns a cursor's position and its time.
func mustCursor(t *testing.T, c *workload.Client, partition int, name string) string {
	t.Helper()
	var answer *nats.Msg
	testkit.Until(t, "the cursor is read", func() bool {
		var err error
		if answer, err = c.Request(t.Context(), nats.NewMsg(fmt.Sprintf("cantus.cursor.%d.%s", partition, name))); err != nil {
			t.Fatal(err)
		}
		return !strings.Contains(string(answer.Data), unavailable)
	})
	at, _, _ := strings.Cut(string(answer.Data), `,"high_water_mark"`)
	return at
}
