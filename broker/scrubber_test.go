package broker_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// scrubOften are options of nodes that scrub all the time.
func scrubOften(partitions int) broker.Options {
	return broker.Options{Partitions: partitions, ScrubRate: 1 << 30, ScrubInterval: time.Second, CacheBytes: 1 << 16}
}

// overwrite damages what a value log holds of a text, in the first of a node's
// value logs that has it.
func overwrite(t *testing.T, dir, text string) (path string) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "store", "*.vlog"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		at := strings.Index(string(b), text)
		if at < 0 {
			continue
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt([]byte("damaged"), int64(at))
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Fatalf("no value log has %q", text)
	return ""
}

// damagedAdvisory is one that says that something is damaged.
type damagedAdvisory struct {
	Type, Node string
	Partition  *int
	Because    string
	Repaired   bool
}

func nextDamaged(t *testing.T, sub *nats.Subscription) (a damagedAdvisory) {
	t.Helper()
	m, err := sub.NextMsg(patience)
	if err == nil {
		err = json.Unmarshal(m.Data, &a)
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// text is a payload that only its number has, large enough for a value log.
func text(i int) string { return fmt.Sprintf("payload %06d %s", i, strings.Repeat("x", 3000)) }

// A damaged entry on one of three nodes is found without a read or a restart,
// and written again from another node's replica, whether the node leads or not.
func TestADamagedEntryIsRepairedFromAnotherReplica(t *testing.T) {
	c := openNodes(t, 3, scrubOften(1))
	c.awaitPlaced("n1")
	nc := c.conn("n1")
	for i := range 100 {
		keep(t, nc, 0, text(i), fmt.Sprint(i))
	}
	sub, err := nc.SubscribeSync("cantus.advisory.damaged")
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range c.names {
		eventually(t, "it is in a value log", func() bool {
			paths, _ := filepath.Glob(filepath.Join(c.dirs[name], "store", "*.vlog"))
			for _, p := range paths {
				if b, err := os.ReadFile(p); err == nil && strings.Contains(string(b), fmt.Sprintf("payload %06d", 10+i)) {
					return true
				}
			}
			return false
		})
		path := overwrite(t, c.dirs[name], fmt.Sprintf("payload %06d", 10+i))
		// On a busy machine no other node may answer in time: the next scrub
		// tries again.
		for repaired := false; !repaired; {
			a := nextDamaged(t, sub)
			if a.Type != "damaged" || a.Node != name || a.Partition == nil || *a.Partition != 0 || !strings.Contains(a.Because, path) {
				t.Fatalf("advisory %+v", a)
			}
			repaired = a.Repaired
		}
		if v := broker.Metric(t, c.node(name), "cantus_damage_repaired_total"); v < 1 {
			t.Errorf("%v damages were repaired, says the metric", v)
		}
	}
	if got := c.checkSame(0, c.names...); len(got) != 100 {
		t.Errorf("%d transactions", len(got))
	}
	for _, name := range c.names {
		if v := broker.Metric(t, c.node(name), "cantus_scrub_last_complete_timestamp_seconds"); v == 0 {
			t.Errorf("%s has not completed a scrub, says the metric", name)
		}
		c.stop(name)
		if err := wal.Verify(c.dirs[name], func(r wal.PartitionReport) {
			if r.Err != nil {
				t.Errorf("%s: %v", name, r.Err)
			}
		}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// After a scrub that has written entries again a second one follows at once,
// and no third: the file may have had more damage.
func TestAScrubThatRepairsIsRepeated(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1, ScrubRate: -1, ScrubInterval: time.Hour, CacheBytes: 1 << 16})
	c.awaitPlaced("n1")
	nc := c.conn("n1")
	for i := range 100 {
		keep(t, nc, 0, text(i), fmt.Sprint(i))
	}
	c.checkSame(0, c.names...)
	overwrite(t, c.dirs["n1"], fmt.Sprintf("payload %06d", 10))
	isSecond := false
	scrub := func() time.Duration {
		t.Helper()
		pause, err := broker.Scrub(t.Context(), c.node("n1"), &isSecond)
		if err != nil {
			t.Fatal(err)
		}
		return pause
	}
	eventually(t, "what is damaged is in a value log for the scrub, too, and is repaired", func() bool { return scrub() == 0 })
	if pause := scrub(); pause < 59*time.Minute {
		t.Errorf("after the second scrub it waits for %v", pause)
	}
	if v := broker.Metric(t, c.node("n1"), "cantus_damage_repaired_total"); v < 1 {
		t.Errorf("%v damages were repaired, says the metric", v)
	}
}

// A node alone serves what it can, and says what is damaged.
func TestADamagedEntryOfANodeAloneIsReported(t *testing.T) {
	dir := t.TempDir()
	opts := scrubOften(1)
	n, nc := openNode(t, dir, opts)
	for i := range 50 {
		keep(t, nc, 0, text(i), fmt.Sprint(i))
	}
	sub, err := nc.SubscribeSync("cantus.advisory.damaged")
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	path := overwrite(t, dir, "payload 000010")
	if a := nextDamaged(t, sub); a.Repaired || !strings.Contains(a.Because, path) {
		t.Errorf("advisory %+v", a)
	}
	var s subjects.ClusterStatus
	eventually(t, "the status says so", func() bool {
		s = subjects.ClusterStatus{}
		return json.Unmarshal(ask(t, nc, "cantus.admin.status", "").Data, &s) == nil && strings.Contains(s.Nodes[0].Damaged, path)
	})
	if v := broker.Metric(t, n, "cantus_damaged"); v != 1 {
		t.Errorf("%v are damaged, says the metric", v)
	}
	if txid := keep(t, nc, 0, "more", "more"); txid != 51 {
		t.Errorf("txid %d", txid)
	}
	wantRefusal(t, ask(t, nc, "cantus.get.0", `{"txid":11}`), subjects.Internal)
	if m := ask(t, nc, "cantus.get.0", `{"txid":49}`); string(m.Data) != text(48) {
		t.Errorf("txid 49 is %.30q", m.Data)
	}
	if n.Err() != nil {
		t.Errorf("the node has failed: %v", n.Err())
	}
}

// A replica whose log is damaged when its node starts is repaired before it
// takes part, wherever in the log the damage is.
// TestADamagedLastEntryIsRepairedAtTheStart: a node that closes takes a
// snapshot at its last entry. Raft reads that entry when it starts, although it
// applies only those after the snapshot.
func TestADamagedLastEntryIsRepairedAtTheStart(t *testing.T) {
	c := openNodes(t, 3, scrubOften(1))
	c.awaitPlaced("n1")
	nc := c.conn("n1")
	const count = 3
	for i := range count {
		keep(t, nc, 0, text(i), fmt.Sprint(i))
	}
	eventually(t, "n3 has it all", func() bool { return broker.Mark(c.node("n3"), 0) == broker.Mark(c.node("n1"), 0) })
	c.stop("n3")
	overwrite(t, c.dirs["n3"], fmt.Sprintf("payload %06d", count-1))
	c.start("n3")
	if got := c.checkSame(0, c.names...); len(got) != count {
		t.Errorf("%d transactions", len(got))
	}
}

func TestADamagedReplicaIsRepairedAtTheStart(t *testing.T) {
	c := openNodes(t, 3, scrubOften(1))
	c.awaitPlaced("n1")
	nc := c.conn("n1")
	const count = 60
	for i := range count {
		keep(t, nc, 0, text(i), fmt.Sprint(i))
	}
	for _, where := range [][]int{{5, 30}, {count - 1}, {0, count - 2}} {
		eventually(t, "n3 has it all", func() bool { return broker.Mark(c.node("n3"), 0) == broker.Mark(c.node("n1"), 0) })
		c.stop("n3")
		for _, i := range where {
			overwrite(t, c.dirs["n3"], fmt.Sprintf("payload %06d", i))
		}
		c.start("n3")
		if got := c.checkSame(0, c.names...); len(got) != count {
			t.Errorf("%d transactions", len(got))
		}
	}
	for _, name := range c.names {
		c.stop(name)
		if err := wal.Verify(c.dirs[name], func(r wal.PartitionReport) {
			if r.Err != nil {
				t.Errorf("%s: %v", name, r.Err)
			}
		}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What was damaged in a replica's log is there no longer once the replica was
// fetched anew, and until then nothing says that its log differs.
func TestARebuiltReplicaIsNotDamaged(t *testing.T) {
	testkit.NotShort(t, "three nodes start, and one is rebuilt")
	const noScrub = -1 // which would not find the damage, since there is none
	c := openNodes(t, 3, broker.Options{Partitions: 2, ScrubRate: noScrub})
	c.awaitPlaced("n1")
	follower := "n3"
	if c.leader(0, "n1") == follower {
		follower = "n2"
	}
	n := c.node(follower)
	broker.Damage(n, 0)
	broker.Damage(n, 1)
	stop, diverged := make(chan struct{}), make(chan bool)
	go func() {
		seen := false
		for {
			select {
			case <-stop:
				diverged <- seen
				return
			default:
				seen = seen || broker.Metric(t, n, "cantus_replica_diverged") > 0
			}
		}
	}()
	r := c.operate("n1", subjects.AdminRequest{Partition: new(int)}, "node", follower, "rebuild")
	eventually(t, "the replica is rebuilt", func() bool {
		return slices.ContainsFunc(c.status("n1").Partitions[0].Replicas, func(s subjects.ReplicaStatus) bool {
			return s.Name == follower && s.Voter && s.Rebuilds == r.Rebuilds
		})
	})
	close(stop)
	if <-diverged {
		t.Error("the replica counts as one with another log")
	}
	if left := broker.Metric(t, n, "cantus_damaged"); left != 1 {
		t.Errorf("%v are damaged, and not only partition 1", left)
	}
}
