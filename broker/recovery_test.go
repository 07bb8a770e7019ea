package broker_test

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/ports"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// openRecovery opens a directory that is to be recovered.
func openRecovery(t *testing.T, dir string) *broker.Recovery {
	t.Helper()
	r, err := broker.OpenRecovery(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A recovery that is cut off after any of its durable steps is completed by the
// next one, and no node starts on the directory in between.
func TestARecoveryIsCompletedAfterACrashAtAnyStep(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 2})
	c.awaitPlaced("n1")
	nc := c.conn("n1")
	for p := range 2 {
		for i := range 5 {
			keep(t, nc, p, fmt.Sprintf("p%d-%d", p, i), fmt.Sprintf("p%d-%d", p, i))
		}
	}
	oldID := broker.ClusterID(c.node("n1"))
	before := []subjects.PartitionInfo{info(t, nc, 0), info(t, nc, 1)}
	nc.Close()
	for _, name := range c.names {
		c.stop(name)
	}

	dir := c.dirs["n1"]
	r := openRecovery(t, dir)
	if id := r.Identity; id.ID != oldID || r.Unfinished() || !slices.Equal(r.Members, c.names) {
		t.Errorf("the directory is of %+v with %v", id, r.Members)
	}
	for p, s := range r.Partitions {
		if s.LastTxid != 5 || s.Committed > 5 || s.Digest != before[p].Digest {
			t.Errorf("partition %d: %+v, want %+v", p, s, before[p])
		}
	}
	surviving := r.Partitions
	images := []string{image(t, dir)}
	var steps []string
	broker.AfterRecoverySteps(r, func(step string) error {
		steps, images = append(steps, step), append(images, image(t, dir))
		return nil
	})
	if err := errors.Join(r.Run("again", wal.Recovering{}), r.Close()); err != nil {
		t.Fatal(err)
	}
	images = append(images, image(t, dir))
	if want := []string{"identity", "partition", "partition", "facts", "secret"}; !slices.Equal(steps, want) {
		t.Fatalf("the steps were %v, want %v", steps, want)
	}
	t.Run("after", func(t *testing.T) { // at once: each node waits for the lost ones first
		for i, image := range images {
			begun, done := i > 0, i == len(images)-1
			t.Run(fmt.Sprint(i, " steps"), func(t *testing.T) {
				testkit.Parallel(t)
				o := c.options("n1")
				o.ClusterListen = ports.Free(t)
				if !done {
					completeRecovery(t, o, image, begun)
				}
				checkRecovered(t, o, image, oldID, before, surviving)
			})
		}
	})
}

// In a cluster that is idle each node soon knows by its directory that all its
// transactions are committed, whatever kinds of batches they came in.
func TestAllIsKnownToBeCommittedInAnIdleCluster(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 2})
	nc := c.conn("n1")
	for p := range 2 {
		for i := range 21 {
			keep(t, nc, p, fmt.Sprintf("p%d-%d", p, i), fmt.Sprintf("p%d-%d", p, i))
		}
	}
	for p := range 2 {
		for _, name := range c.names {
			eventually(t, fmt.Sprintf("%s knows that all of partition %d is committed", name, p), func() bool {
				s, err := broker.Survey(c.node(name), p)
				if err != nil || s.Committed > s.LastTxid || s.LastTxid > 21 {
					t.Fatalf("%s has %+v, %v", name, s, err)
				}
				return s.Committed == 21
			})
		}
	}
}

// A name that the cluster had before an earlier recovery is refused, also in
// the directory of a node that has joined since, here as a standby.
func TestANameFromBeforeAnEarlierRecoveryIsRefused(t *testing.T) {
	c := openNodes(t, 2, broker.Options{Partitions: 2})
	c.awaitPlaced("n1")
	setNamespace(t, c.conn("n1"), `{"name":"orders","partitions":[1],"limits":{"kept":1000000}}`)
	askNamespace(t, c.conn("n1"), "cantus.ns.orders.append.0", "x")
	c.stop("n1")
	c.stop("n2")
	r := openRecovery(t, c.dirs["n1"])
	first := r.Identity.Cluster
	if err := errors.Join(r.Run("again", wal.Recovering{}), r.Close()); err != nil {
		t.Fatal(err)
	}
	c.change = func(_ string, o *broker.Options) { o.Cluster = "again" }
	c.start("n1")
	askNamespace(t, c.conn("n1"), "cantus.ns.orders.append.0", "y") // it is kept, with its limits
	if i := info(t, c.conn("n1"), 1); i.HighWaterMark != 2 || i.Limits == nil || i.Limits.Kept != 1000000 {
		t.Errorf("%+v", i)
	}
	c.prepare("n3")
	joined := make(chan error)
	go func() { joined <- c.tryStart("n3") }()
	c.addWhenThere("n3", true)
	if err := <-joined; err != nil {
		t.Fatal(err)
	}
	keep(t, c.conn("n1"), 0, "v", "v")
	c.checkSame(0, "n1", "n3")
	c.checkSame(1, "n1", "n3")
	c.stop("n3")
	c.stop("n1")

	r = openRecovery(t, c.dirs["n3"])
	if s := r.Partitions[0]; !s.Standby || s.LastTxid != 1 {
		t.Errorf("the standby's directory has %+v", s)
	}
	if r.Identity.HasBeen(first) {
		t.Errorf("the directory of a node that has joined is of %+v", r.Identity)
	}
	for _, name := range []string{first, "again"} {
		if err := r.Check(name, wal.Recovering{}); err == nil || !strings.Contains(err.Error(), name+" is the name of the cluster, or was before") {
			t.Errorf("the name %s: %v", name, err)
		}
	}
	if err := errors.Join(r.Run("third", wal.Recovering{}), r.Close()); err != nil {
		t.Fatal(err)
	}
	r = openRecovery(t, c.dirs["n1"]) // as if n3 were lost instead, and n1 recovered
	defer r.Close()
	if r.Partitions[0].Standby {
		t.Errorf("a voter's directory has %+v", r.Partitions[0])
	}
	if err := r.Check(first, wal.Recovering{}); err == nil {
		t.Errorf("the name %s is taken in the directory that had it", first)
	}
}

// image returns a copy of a directory as a crash would leave it.
func image(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "image")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// completeRecovery completes a recovery, and checks that no node starts before.
func completeRecovery(t *testing.T, o broker.Options, dir string, begun bool) {
	t.Helper()
	if begun {
		for _, name := range []string{"", "again"} {
			o.Cluster = name
			n, err := broker.Open(t.Context(), dir, o)
			if !errors.Is(err, broker.ErrIdentity) || !strings.Contains(err.Error(), "recover") {
				t.Fatalf("a node on a directory with half a recovery: %v, %v", n, err)
			}
		}
	}
	r := openRecovery(t, dir)
	if r.Unfinished() != begun {
		t.Errorf("unfinished is %v", r.Unfinished())
	}
	if begun {
		if err := r.Check("other", wal.Recovering{}); err == nil {
			t.Error("it is completed with another name")
		}
	}
	if err := errors.Join(r.Run("again", wal.Recovering{}), r.Close()); err != nil {
		t.Fatal(err)
	}
}

// checkRecovered starts a node on a directory that was recovered, alone.
func checkRecovered(t *testing.T, o broker.Options, dir, oldID string, before []subjects.PartitionInfo, surviving []broker.Surviving) {
	t.Helper()
	if _, err := broker.Open(t.Context(), dir, o); !errors.Is(err, broker.ErrIdentity) || !strings.Contains(err.Error(), "belongs to again now") {
		t.Errorf("with the old name: %v", err)
	}
	o.Cluster = "again"
	n, err := broker.Open(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if broker.ClusterID(n) == oldID {
		t.Error("the cluster's id is the old one")
	}
	nc, err := n.Conn()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	for p, was := range before {
		is := info(t, nc, p)
		if is.HighWaterMark != was.HighWaterMark || is.Digest != was.Digest || len(is.Replicas) != 1 {
			t.Errorf("partition %d is %+v, and was %+v", p, is, was)
		}
		if want := []subjects.PastCluster{{Cluster: oldID, LastTxid: surviving[p].Committed}}; !slices.Equal(is.History, want) {
			t.Errorf("the history of partition %d is %+v, want %+v", p, is.History, want)
		}
		if txid := keep(t, nc, p, "next", "next"); txid != was.HighWaterMark+1 {
			t.Errorf("the next transaction of partition %d is %d", p, txid)
		}
	}
}

// What can't be recovered is refused, and nothing is changed.
func TestRecoveriesThatAreRefused(t *testing.T) {
	dir := t.TempDir()
	if _, err := broker.OpenRecovery(filepath.Join(dir, "none"), nil); err == nil {
		t.Error("a directory that is not there is opened")
	}
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	c.awaitPlaced("n1")
	keep(t, c.conn("n1"), 0, "v", "v")
	if _, err := broker.OpenRecovery(c.dirs["n1"], nil); !errors.Is(err, broker.ErrInUse) {
		t.Errorf("a directory that is in use: %v", err)
	}
	for _, name := range c.names {
		c.stop(name)
	}
	r := openRecovery(t, c.dirs["n1"])
	defer r.Close()
	for _, name := range []string{"", r.Identity.Cluster} {
		if err := r.Run(name, wal.Recovering{}); err == nil {
			t.Errorf("recovered to the name %q", name)
		}
	}
	if r.Unfinished() {
		t.Error("a recovery was begun")
	}
	recoverFenced(t, c)
}

// recoverFenced recovers a directory with a replica that was fenced.
func recoverFenced(t *testing.T, c *nodes) {
	t.Helper()
	dir := c.dirs["n2"]
	s, err := wal.Open(dir, wal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	fence := wal.Meta{Name: "fenced", Value: []byte("it is another log")}
	order := wal.Meta{Name: "fenced/rebuild", Value: []byte("an operator has it rebuilt")}
	if err := errors.Join(s.Log(0).SetMeta(fence, order), s.Close()); err != nil {
		t.Fatal(err)
	}
	r := openRecovery(t, dir)
	if err := r.Run("again", wal.Recovering{Empty: true}); err == nil || !strings.Contains(err.Error(), "was fenced here, because it is another log") {
		t.Errorf("a fenced replica: %v", err)
	}
	if err := errors.Join(r.Run("again", wal.Recovering{Fenced: true}), r.Close()); err != nil {
		t.Fatal(err)
	}
	o := c.options("n2")
	o.Cluster = "again"
	n, err := broker.Open(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	nc, err := n.Conn()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if txid := keep(t, nc, 0, "next", "next"); txid != 2 {
		t.Errorf("the next transaction is %d", txid)
	}
}

// A node with the name of a founder and another directory is no founder.
func TestAFounderIsKnownByItsDirectory(t *testing.T) {
	id := wal.Identity{Node: "n1", NodeID: "a", Founders: map[string]string{"n1": "a", "n2": "b"}}
	if got := broker.BootstrapVoters(id, []string{"n1", "n2"}); len(got) != 2 {
		t.Errorf("a founder bootstraps with %v", got)
	}
	id.NodeID = "c"
	if got := broker.BootstrapVoters(id, []string{"n1", "n2"}); got != nil {
		t.Errorf("another node of that name bootstraps with %v", got)
	}
}
