package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/internal/workload"
)

// surviving is what `cantus recover --json` prints.
type surviving struct {
	Cluster    string
	ID         string
	Members    []string
	Partitions []struct {
		Replica   bool
		LastTxid  uint64 `json:"last_txid"`
		Committed uint64 `json:"known_committed"`
		Digest    string
		Nodes     []string
	}
	Refused   string
	Recovered *struct{ Cluster, ID string }
}

// mustRecover runs cantus recover.
func mustRecover(t *testing.T, args ...string) (s surviving) {
	t.Helper()
	code, stdout, stderr := cantus(t, append([]string{"recover", "--json"}, args...)...)
	if code != 0 || json.Unmarshal([]byte(stdout), &s) != nil {
		t.Fatalf("recover %v ended with %d: %s%s", args, code, stdout, stderr)
	}
	return s
}

// typedRecover runs cantus recover, and types the name that it asks for.
func typedRecover(t *testing.T, name string, args ...string) (s surviving) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, append([]string{"recover", "--json"}, args...)...)
	cmd.Stdin = strings.NewReader(name + "\n")
	out, err := cmd.Output()
	if err != nil || json.Unmarshal(out, &s) != nil {
		t.Fatalf("recover %v: %v: %s", args, err, out)
	}
	return s
}

// acks are what writers were told.
type acks struct {
	mu   sync.Mutex
	all  map[int]map[uint64]string // payloads by txid, by partition
	ends context.CancelFunc
	done sync.WaitGroup
}

// startWriters appends to partitions until stop.
func startWriters(t *testing.T, c *cluster, partitions, each int) *acks {
	ctx, cancel := context.WithCancel(t.Context())
	a := &acks{all: map[int]map[uint64]string{}, ends: cancel}
	t.Cleanup(a.stop)
	for p := range partitions {
		a.all[p] = map[uint64]string{}
		for w := range each {
			client := c.dial(c.nodes[w%len(c.nodes)].name)
			a.done.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					payload := fmt.Sprintf("p%d-w%d-%d", p, w, i)
					r, err := c.keep(ctx, client, workload.NewAppend(p, payload, "Nats-Msg-Id", payload))
					if err == nil {
						a.mu.Lock()
						a.all[p][r.Txid] = payload
						a.mu.Unlock()
					}
				}
			})
		}
	}
	return a
}

func (a *acks) stop() {
	a.ends()
	a.done.Wait()
}

// newest returns the newest transaction of a partition that was acknowledged.
func (a *acks) newest(partition int) (newest uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for txid := range a.all[partition] {
		newest = max(newest, txid)
	}
	return newest
}

// await waits until every partition has acknowledged a transaction past those
// of since.
func (a *acks) await(t *testing.T, c *cluster, since map[int]uint64, more uint64) {
	t.Helper()
	err := c.until(t.Context(), "written", func(context.Context) string {
		for p := range a.all {
			if n := a.newest(p); n < since[p]+more {
				return fmt.Sprintf("partition %d is at %d", p, n)
			}
		}
		return ""
	})
	if err != nil {
		t.Fatal(err)
	}
}

// clusterID returns the id of the cluster that answers.
func clusterID(t *testing.T, client *workload.Client) string {
	t.Helper()
	var info struct{ ID string }
	m, err := client.Request(t.Context(), nats.NewMsg("cantus.info"))
	if err != nil || json.Unmarshal(m.Data, &info) != nil || info.ID == "" {
		t.Fatalf("info is %v, %v", m, err)
	}
	return info.ID
}

// readWith reads one message of the answer to a read that names a cluster.
func readWith(t *testing.T, client *workload.Client, partition int, from uint64, id string) *nats.Msg {
	t.Helper()
	m := nats.NewMsg(fmt.Sprintf("cantus.read.%d", partition))
	m.Data = fmt.Appendf(nil, `{"from":%d,"max":1,"cluster":%q}`, from, id)
	answer, err := client.Request(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// renamed replaces the arguments of a node whose cluster has another name now.
func (n *node) renamed(name string) { n.args = append(n.args, "--cluster-name", name) }

// Two of three nodes are lost under load, after the third was cut off, so that
// they have acknowledged more than it. It is recovered, serves what it had, and
// gets two new nodes. A consumer that is ahead is told so. The lost nodes come
// back, form their old cluster, and the two don't mix.
func TestRecoverALostMajority(t *testing.T) {
	c := startCluster(t, 3, "--partitions", "2")
	old := c.dial(c.nodes[0].name)
	oldID := clusterID(t, old)
	writers := startWriters(t, c, 2, 4)
	writers.await(t, c, nil, testkit.Sized[uint64](100, 500, 5000))
	survivor, lost := c.nodes[0], c.nodes[1:]
	survivor.kill()
	writers.await(t, c, map[int]uint64{0: writers.newest(0), 1: writers.newest(1)}, 50) // what it lacks
	for _, n := range lost {
		n.kill()
	}
	writers.stop()

	said := mustRecover(t, survivor.dir)
	if said.Cluster != "cantus" || said.ID != oldID || said.Recovered != nil || said.Refused != "" || !slices.Equal(said.Members, []string{"n1", "n2", "n3"}) {
		t.Errorf("recover says %+v", said)
	}
	began := time.Now()
	recovered := typedRecover(t, "cantus", survivor.dir, "--new-name", "cantus-2")
	if recovered.Recovered == nil || recovered.Recovered.ID == oldID || recovered.Recovered.Cluster != "cantus-2" {
		t.Fatalf("recover says %+v", recovered)
	}
	// It starts, and the lost nodes come back as they were, a majority of the old
	// cluster.
	survivor.renamed("cantus-2")
	for _, n := range c.nodes {
		if err := n.launch(); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range c.nodes {
		if err := n.awaitReady(); err != nil {
			t.Fatal(err)
		}
	}
	client := c.dialOnly(survivor)
	marks := map[int]uint64{}
	for p, has := range said.Partitions {
		info := mustInfo(t, client, p)
		if has.LastTxid == 0 || info.HighWaterMark != has.LastTxid || info.Digest != has.Digest {
			t.Errorf("partition %d serves %d with the digest %s, recover has said %d and %s", p, info.HighWaterMark, info.Digest, has.LastTxid, has.Digest)
		}
		next := c.mustKeep(client, p, fmt.Sprintf("after %d", p))
		if next.Txid != has.LastTxid+1 {
			t.Errorf("the next transaction of partition %d is %d, after %d", p, next.Txid, has.LastTxid)
		}
		t.Logf("partition %d: first append %v after recover began; it has %d, known to be committed are %d, acknowledged were %d",
			p, time.Since(began).Round(time.Millisecond), has.LastTxid, has.Committed, writers.newest(p))
		marks[p] = next.Txid
		checkKept(t, drain(t, client, p), writers.all[p], p, has.Committed)
		if newest := writers.newest(p); newest <= has.LastTxid {
			t.Errorf("partition %d: nothing is lost: %d of %d", p, has.LastTxid, newest)
		}
		ahead := readWith(t, client, p, has.Committed+2, oldID)
		if !strings.Contains(string(ahead.Data), `"ahead"`) || !strings.Contains(string(ahead.Data), fmt.Sprintf(`"txid":%d`, has.Committed)) {
			t.Errorf("a consumer that is ahead is answered %v %q", ahead.Header, ahead.Data)
		}
		if level := readWith(t, client, p, has.Committed, oldID); level.Header.Get("Cantus-Txid") != strconv.FormatUint(has.Committed, 10) {
			t.Errorf("a consumer that is not ahead is answered %v %q", level.Header, level.Data)
		}
	}

	for _, n := range c.nodes {
		if err := c.until(t.Context(), "refused", func(context.Context) string {
			if log := n.running().stderr.String(); !strings.Contains(log, "is of a cluster with another name") {
				return log
			}
			return ""
		}); err != nil {
			t.Errorf("%s logs no refusal: %v", n.name, err)
		}
	}
	back := c.dialOnly(lost[0])
	if id := clusterID(t, back); id != oldID {
		t.Errorf("the old nodes are in cluster %s", id)
	}
	c.mustKeep(back, 0, "to the old cluster")
	if info := mustInfo(t, client, 0); info.HighWaterMark != marks[0] || len(info.Replicas) != 1 {
		t.Errorf("the recovered cluster is at %d with %v, and was at %d", info.HighWaterMark, info.Replicas, marks[0])
	}
	for _, n := range lost {
		n.kill()
	}

	// With the new name the old directories are refused at once.
	lost[0].renamed("cantus-2")
	if err := lost[0].start(); err == nil || !strings.Contains(err.Error(), "holds cluster cantus, not cantus-2") {
		t.Errorf("an old directory with the new name: %v", err)
	}
	// New nodes, with the old names and empty directories.
	for _, n := range lost {
		n.dir = t.TempDir()
		n.args = slices.DeleteFunc(slices.Clone(n.args), func(arg string) bool { return arg == "--bootstrap" || arg == "n1,n2,n3" })
		if n != lost[0] {
			n.renamed("cantus-2")
		}
		if err := n.launch(); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range lost {
		mustAdd(t, c, survivor, n)
	}
	for _, n := range lost {
		if err := n.awaitReady(); err != nil {
			t.Fatal(err)
		}
	}
	c.awaitPlaced()
	logs := map[int][]*nats.Msg{}
	for p := range 2 {
		if r := c.mustKeep(client, p, fmt.Sprintf("with three %d", p)); r.Txid != marks[p]+1 {
			t.Errorf("with three nodes the next transaction of partition %d is %d, after %d", p, r.Txid, marks[p])
		}
		logs[p] = drain(t, client, p)
	}
	c.checkSame(t, logs)
}

// checkKept compares a log with what was acknowledged, up to a transaction.
func checkKept(t *testing.T, log []*nats.Msg, acked map[uint64]string, partition int, upTo uint64) {
	t.Helper()
	for txid, payload := range acked {
		if txid <= upTo && (uint64(len(log)) < txid || string(log[txid-1].Data) != payload) {
			t.Fatalf("partition %d: transaction %d was acknowledged as %q", partition, txid, payload)
		}
	}
}

// mustAdd adds a node to the cluster that another one serves.
func mustAdd(t *testing.T, c *cluster, by, n *node) {
	t.Helper()
	err := c.until(t.Context(), "added", func(context.Context) string {
		code, stdout, stderr := cantus(t, "cluster", "add", n.name, "--wait", "1m", "--server", by.url)
		if code == 0 {
			return ""
		}
		return stdout + stderr
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The survivor led, and has transactions that nobody else has. The others have
// acknowledged other transactions under the same txids. Consumers of those are
// told that they are ahead, and are never given the survivor's.
func TestRecoverWithAnUncommittedTail(t *testing.T) {
	c := startCluster(t, 3, "--partitions", "1")
	client := c.dial(c.nodes[0].name)
	oldID := clusterID(t, client)
	for i := range 20 {
		c.mustKeep(client, 0, fmt.Sprintf("both %d", i))
	}
	survivor, err := c.leader(t.Context(), client, 0)
	if err != nil {
		t.Fatal(err)
	}
	others := slices.DeleteFunc(slices.Clone(c.nodes), func(n *node) bool { return n == survivor })
	alone := c.dialOnly(survivor)
	for _, n := range others {
		n.kill()
	}
	if err := alone.Conn.PublishMsg(workload.NewAppend(0, "nobody else has this", "Nats-Msg-Id", "alone")); err != nil {
		t.Fatal(err)
	}
	// Its own log has the entry, which shows in the directory only.
	if err := c.until(t.Context(), "in the survivor's log", func(context.Context) string {
		copied := filepath.Join(t.TempDir(), "copy")
		if err := os.CopyFS(copied, os.DirFS(survivor.dir)); err != nil {
			return err.Error()
		}
		code, stdout, stderr := cantus(t, "salvage", copied)
		if !strings.Contains(stdout, "1-21") {
			return fmt.Sprint(code, stdout, stderr)
		}
		return ""
	}); err != nil {
		t.Fatal(err)
	}
	survivor.kill()
	for _, n := range others {
		if err := n.launch(); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range others {
		if err := n.awaitReady(); err != nil {
			t.Fatal(err)
		}
	}
	other := c.dialOnly(others[0])
	if r := c.mustKeep(other, 0, "acknowledged by the others"); r.Txid != 21 {
		t.Fatalf("the others have appended %d", r.Txid)
	}
	for _, n := range others {
		n.kill()
	}

	said := mustRecover(t, survivor.dir)
	has := said.Partitions[0]
	if has.LastTxid != 21 || has.Committed > 20 || has.Committed < 10 {
		t.Errorf("recover says %+v", has)
	}
	mustRecover(t, survivor.dir, "--new-name", "cantus-2", "--confirm", "cantus")
	survivor.renamed("cantus-2")
	if err := survivor.start(); err != nil {
		t.Fatal(err)
	}
	client = c.dialOnly(survivor)
	if info := mustInfo(t, client, 0); info.HighWaterMark != 21 || info.Digest != has.Digest {
		t.Errorf("it serves %d with the digest %s, recover has said %d and %s", info.HighWaterMark, info.Digest, has.LastTxid, has.Digest)
	}
	if answer := readWith(t, client, 0, 22, oldID); !strings.Contains(string(answer.Data), `"ahead"`) {
		t.Errorf("a consumer that has another transaction 21 is answered %v %q", answer.Header, answer.Data)
	}
}

// Of five nodes with three replicas of each partition one is left. What it
// lacks begins empty and is restored from a backup.
func TestRecoverWithoutSomePartitions(t *testing.T) {
	c := startCluster(t, 5, "--partitions", "5")
	client := c.dial(c.nodes[0].name)
	for p := range 5 {
		for i := range 10 {
			c.mustKeep(client, p, fmt.Sprintf("p%d-%d", p, i))
		}
	}
	from := filepath.Join(t.TempDir(), "backup")
	c.backUp(t, from)
	survivor := c.nodes[0]
	before := map[int]workload.PartitionInfo{}
	for p := range 5 {
		before[p] = mustInfo(t, client, p)
	}
	for _, n := range c.nodes {
		n.kill()
	}
	code, stdout, stderr := cantus(t, "recover", survivor.dir)
	if code != 2 || !strings.Contains(stdout, "has no replica here") || !strings.Contains(stderr, "--empty") {
		t.Fatalf("recover ended with %d: %s%s", code, stdout, stderr)
	}
	said := mustRecover(t, survivor.dir, "--empty")
	mustRecover(t, survivor.dir, "--empty", "--new-name", "cantus-2", "--confirm", "cantus")
	survivor.renamed("cantus-2")
	if err := survivor.start(); err != nil {
		t.Fatal(err)
	}
	client = c.dialOnly(survivor)
	lacked := 0
	for p, has := range said.Partitions {
		if slices.Contains(has.Nodes, "n1") != has.Replica {
			t.Errorf("partition %d is on %v: %+v", p, has.Nodes, has)
		}
		if has.Replica {
			if info := mustInfo(t, client, p); info.Digest != before[p].Digest {
				t.Errorf("partition %d has the digest %s, and had %s", p, info.Digest, before[p].Digest)
			}
			continue
		}
		lacked++
		if info := mustInfo(t, client, p); info.HighWaterMark != 0 {
			t.Errorf("partition %d is at %d", p, info.HighWaterMark)
		}
		code, stdout, stderr := cantus(t, "restore", "--server", survivor.url, "--from", from, "--partition", strconv.Itoa(p), "--quiet")
		if code != 0 {
			t.Fatalf("restore of partition %d ended with %d: %s%s", p, code, stdout, stderr)
		}
		if info := mustInfo(t, client, p); info.Digest != before[p].Digest {
			t.Errorf("partition %d is restored with the digest %s, and had %s", p, info.Digest, before[p].Digest)
		}
	}
	if lacked != 2 {
		t.Errorf("the survivor lacked %d partitions: %+v", lacked, said)
	}
	for p := range 5 {
		if r := c.mustKeep(client, p, fmt.Sprintf("after %d", p)); r.Txid != before[p].HighWaterMark+1 {
			t.Errorf("the next transaction of partition %d is %d, after %d", p, r.Txid, before[p].HighWaterMark)
		}
	}
}

// The commands of docs/recover.md, and the test that runs each: here, or as
// named.
var recoverCommands = map[string]string{
	"cantus status --server n1:4222":                                                   "TestReadOfAReplicaWithoutALeader",
	"cantus cluster status --server n1:4222":                                           "TestReadOfAReplicaWithoutALeader",
	"cantus read 0 --replica n1 --server n1:4222":                                      "TestReadOfAReplicaWithoutALeader",
	"cantus recover DIR":                                                               "TestRecoverWithoutSomePartitions",
	"cantus recover DIR --new-name bank-2":                                             "TestRecoverALostMajority, which types the name",
	"cantus serve --name n1 --data DIR --cluster-name bank-2 …":                        "TestRecoverALostMajority",
	"cantus serve --name n2 --data EMPTY --cluster-name bank-2 --cluster … --routes …": "TestRecoverALostMajority",
	"cantus cluster add n2 --wait 1m":                                                  "TestRecoverALostMajority",
	"cantus cluster add n3 --wait 1m":                                                  "TestRecoverALostMajority",
	"cantus recover DIR --new-name bank-2 --empty":                                     "TestRecoverWithoutSomePartitions",
	"cantus restore --from BACKUP --partition 3":                                       "TestRecoverWithoutSomePartitions",
	"cantus status --server mirror:4222":                                               "TestClusterMirror",
	"cantus mirror promote --server mirror:4222":                                       "TestMirror",
}

// The document has no command that is not run.
func TestRecoverDocument(t *testing.T) {
	text, err := os.ReadFile("../docs/recover.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for line := range strings.Lines(string(text)) {
		command := strings.TrimSpace(line)
		if !strings.HasPrefix(line, "    ") || !strings.HasPrefix(command, "cantus ") {
			continue
		}
		if found++; recoverCommands[command] == "" {
			t.Errorf("%q is tried by no test", command)
		}
	}
	if found != len(recoverCommands) {
		t.Errorf("the document has %d commands, and %d are listed", found, len(recoverCommands))
	}
}

// While nobody leads, each node can be asked for what it has.
func TestReadOfAReplicaWithoutALeader(t *testing.T) {
	c := startCluster(t, 3, "--partitions", "1")
	client := c.dial(c.nodes[0].name)
	for i := range 10 {
		c.mustKeep(client, 0, fmt.Sprintf("v%d", i))
	}
	c.awaitMark(client, 0, 10)
	left := c.nodes[1]
	for _, n := range c.nodes {
		if n != left {
			n.kill()
		}
	}
	err := c.until(t.Context(), "without a leader", func(context.Context) string {
		code, stdout, stderr := cantus(t, "read", "0", "--server", left.url, "--timeout", "1s")
		if code == 4 && strings.Contains(stderr, "--replica NODE") {
			return ""
		}
		return fmt.Sprint(code, stdout, stderr)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, status := range [][]string{{"status"}, {"cluster", "status"}} {
		// The node may not have noticed yet that the others are away.
		if err := c.until(t.Context(), "where to go on", func(context.Context) string {
			_, stdout, stderr := cantus(t, append(status, "--server", left.url)...)
			if strings.Contains(stdout+stderr, "docs/recover.md") {
				return ""
			}
			return fmt.Sprintf("%v says: %s%s", status, stdout, stderr)
		}); err != nil {
			t.Error(err)
		}
	}
	code, stdout, stderr := cantus(t, "read", "0", "--replica", left.name, "--server", left.url, "--json")
	if code != 0 || strings.Count(stdout, "\n") != 10 || !strings.Contains(stderr, "no other node has confirmed it") {
		t.Errorf("read of the replica ended with %d: %s%s", code, stdout, stderr)
	}
	if code, _, stderr = cantus(t, "read", "0", "--replica", "n9", "--server", left.url); code != 4 || !strings.Contains(stderr, "n9") {
		t.Errorf("read of a node that is not there ended with %d: %s", code, stderr)
	}
}
