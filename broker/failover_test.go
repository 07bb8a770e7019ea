package broker_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/invariant"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

func TestThreeNodesFoundAClusterInAnyOrder(t *testing.T) {
	c := newNodes(t, 3, broker.Options{})
	started := make(chan error)
	go func() { started <- c.tryStart("n3") }()
	go func() { started <- c.tryStart("n1") }()
	select {
	case err := <-started:
		t.Fatalf("two of three founders did not wait for the third: %v", err)
	default:
	}
	go func() { started <- c.tryStart("n2") }()
	for range 3 {
		if err := <-started; err != nil {
			t.Fatal(err)
		}
	}
	s := c.status("n2")
	for _, p := range s.Partitions {
		if len(p.Placement) != 3 {
			t.Errorf("partition %d is placed on %v", p.Partition, p.Placement)
		}
	}
	c.awaitPlaced("n1")
	for i, p := range []int{0, 1} {
		if id := keep(t, c.conn(c.names[i]), p, "hello", "first"); id != 1 {
			t.Errorf("partition %d: the first txid is %d", p, id)
		}
		if got := c.checkSame(p, c.names...); !slices.Equal(got, []string{"hello"}) {
			t.Errorf("partition %d holds %v", p, got)
		}
	}
}

func TestALeaderThatStopsHandsOver(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	c.awaitPlaced("n1")
	leader := c.leader(0, "n3")
	rest := without(c.names, leader)
	nc := c.conn(rest[0])
	for i := range 50 {
		keep(t, nc, 0, fmt.Sprint(i), fmt.Sprint(i))
	}
	c.stop(leader)
	keep(t, nc, 0, "after", "after")
	if got := c.checkSame(0, rest...); len(got) != 51 {
		t.Fatalf("%d transactions", len(got))
	}
	if id := keep(t, nc, 0, "7", "7"); id != 8 {
		t.Errorf("a repeat got txid %d from the new leader", id)
	}
	c.start(leader)
	c.awaitPlaced(rest[0])
	c.checkSame(0, c.names...)
}

func without(names []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == name })
}

// TestNobodyIsRefusedWhileALeaderStops stops a partition's leader while clients
// append that accept no refusal: requests that arrive meanwhile are forwarded
// to the next leader.
func TestNobodyIsRefusedWhileALeaderStops(t *testing.T) {
	// No follower is to stand for election on a busy machine.
	c := openNodes(t, 3, broker.Options{Partitions: 1, ElectionTimeout: 3 * time.Second})
	c.awaitPlaced("n1")
	leader := c.leader(0, "n3")
	rest := without(c.names, leader)
	var clients sync.WaitGroup
	stop := make(chan struct{})
	end := sync.OnceFunc(func() { close(stop); clients.Wait() })
	defer end()
	var done [8]atomic.Int64 // acknowledged, by client
	for i := range done {
		nc := c.conn(rest[0])
		clients.Go(func() { appendUntil(t, nc, i, &done[i], stop) })
	}
	// more returns a function that waits until each client has had n more
	// appends acknowledged.
	more := func(n int64, when string) func() {
		var goal [len(done)]int64
		for i := range done {
			goal[i] = done[i].Load() + n
		}
		return func() {
			t.Helper()
			for i := range done {
				eventually(t, fmt.Sprintf("appends of client %d %s", i, when), func() bool { return t.Failed() || done[i].Load() >= goal[i] })
			}
		}
	}
	more(2, "before the stop")()
	inFlight := more(1, "in flight when the stop began")
	c.stop(leader)
	inFlight()
	more(2, "after the stop")()
	end()
	want := 0
	for i := range done {
		want += int(done[i].Load())
	}
	if got := c.checkSame(0, rest...); len(got) != want {
		t.Errorf("%d transactions, %d were acknowledged", len(got), want)
	}
	t.Logf("%d appends", want)
}

// appendUntil appends continuously, and counts what is acknowledged, until it
// is told to stop. A refusal is an error, but on a machine that is so busy that
// requests wait for too long.
func appendUntil(t *testing.T, nc *nats.Conn, client int, done *atomic.Int64, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		id := fmt.Sprint(client, ".", done.Load())
		m, err := nc.RequestMsg(message("cantus.append.0", id, msgID, id), time.Second)
		switch {
		case errors.Is(err, nats.ErrTimeout): // it went to a server that had just lost its subscriber
			continue
		case err != nil:
			t.Errorf("append %s: %v", id, err)
			return
		case strings.HasPrefix(m.Header.Get(subjects.HeaderError), string(subjects.Busy)):
			continue
		case m.Header.Get(subjects.HeaderError) != "":
			t.Errorf("append %s: %s", id, m.Data)
			return
		}
		done.Add(1)
	}
}

func TestAllNodesRestart(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 2})
	for i := range 20 {
		keep(t, c.conn("n1"), i%2, fmt.Sprint(i), fmt.Sprint(i))
	}
	for _, name := range c.names {
		c.stop(name)
	}
	c.start(c.names...)
	for p := range 2 {
		if got := c.checkSame(p, c.names...); len(got) != 10 {
			t.Errorf("partition %d holds %d", p, len(got))
		}
	}
}

func TestANodeIsReplacedByAnother(t *testing.T) {
	c := newNodes(t, 3, broker.Options{Partitions: 2})
	log := &buffer{}
	c.change = func(name string, o *broker.Options) {
		if name == "n1" {
			o.Logger = slog.New(slog.NewTextHandler(log, nil))
		}
	}
	c.start(c.names...)
	for i := range 40 {
		keep(t, c.conn("n1"), i%2, fmt.Sprint(i), fmt.Sprint(i))
	}
	c.prepare("n4")
	joined := make(chan error)
	go func() { joined <- c.tryStart("n4") }()
	eventually(t, "n4 waits to be added", func() bool {
		return slices.ContainsFunc(c.status("n1").Nodes, func(n subjects.NodeStatus) bool { return n.Name == "n4" && n.State == "waiting" })
	})
	c.operate("n1", subjects.AdminRequest{Node: "n4"}, "cluster", "add")
	if err := <-joined; err != nil {
		t.Fatal(err)
	}
	c.operate("n2", subjects.AdminRequest{Node: "n1"}, "cluster", "remove")
	<-c.node("n1").Done()
	if err := c.node("n1").Err(); !errors.Is(err, broker.ErrRemoved) {
		t.Errorf("the removed node says %v", err)
	}
	if log.count("level=ERROR") > 0 || log.count("this node was removed from the cluster") != 1 {
		t.Errorf("a removal that was asked for is logged as\n%s", log.b.String())
	}
	c.awaitPlaced("n4")
	for p := range 2 {
		if got := c.checkSame(p, "n2", "n3", "n4"); len(got) != 20 {
			t.Errorf("partition %d holds %d", p, len(got))
		}
	}
	eventually(t, "n1 is forgotten", func() bool { return len(c.status("n3").Nodes) == 3 })
}

func TestAReplicaWithAnotherLogIsFencedAndRebuilt(t *testing.T) {
	testkit.NotShort(t, "three nodes start, and one is rebuilt")
	testkit.Violates(t, invariant.DigestsEqual)
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	c.awaitPlaced("n1")
	nc := c.conn("n1")
	keep(t, nc, 0, "a", "a")
	broker.Diverge(c.node("n2"), 0)
	keep(t, nc, 0, "b", "b")
	eventually(t, "n2 is fenced", func() bool { return !c.node("n2").Ready() })
	keep(t, nc, 0, "c", "c")
	for want := range uint64(2) { // the second time it was not fenced before
		r := c.operate("n3", subjects.AdminRequest{Partition: new(int)}, "node", "n2", "rebuild")
		if r.Rebuilds != want+1 {
			t.Errorf("rebuild %d has the number %d", want+1, r.Rebuilds)
		}
		eventually(t, "n2 is rebuilt", func() bool {
			return slices.ContainsFunc(c.status("n3").Partitions[0].Replicas, func(s subjects.ReplicaStatus) bool {
				return s.Name == "n2" && s.Voter && s.Fenced == "" && s.Rebuilds == r.Rebuilds
			})
		})
		eventually(t, "n2 serves again", func() bool { return c.node("n2").Ready() })
		c.awaitPlaced("n1")
		if got := c.checkSame(0, c.names...); !slices.Equal(got, []string{"a", "b", "c"}) {
			t.Errorf("got %v", got)
		}
	}
}

// A node whose power fails when a rebuild has begun goes on with it: a replica
// keeps its vote until its leader has taken it, and is then fetched again. One
// that is fenced because of its log waits for the order.
func TestARebuildGoesOnAfterARestart(t *testing.T) {
	testkit.NotShort(t, "three nodes start, and one again and again")
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	c.awaitPlaced("n1")
	nc := c.conn("n1")
	keep(t, nc, 0, "a", "a")
	write := func(meta wal.Meta) {
		s, err := wal.Open(c.dirs["n2"], wal.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(s.Log(0).SetMeta(meta), s.Close()); err != nil {
			t.Fatal(err)
		}
	}
	becomes := func(what string, is func(subjects.ReplicaStatus) bool) {
		t.Helper()
		eventually(t, "n2 is "+what, func() bool {
			return slices.ContainsFunc(c.status("n3").Partitions[0].Replicas, func(s subjects.ReplicaStatus) bool {
				return s.Name == "n2" && is(s)
			})
		})
	}
	rebuilt := func(s subjects.ReplicaStatus) bool { return s.Voter && s.Fenced == "" && s.Rebuilds == 1 }
	fence := wal.Meta{Name: "fenced", Value: []byte("its log differs")}
	order := wal.Meta{Name: "fenced/rebuild", Value: []byte("an operator has it rebuilt")} // what the request writes first

	c.stop("n2")
	write(order)
	c.start("n2")
	becomes("rebuilt", rebuilt)

	c.stop("n2")
	write(fence)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	opened := make(chan error)
	go func() {
		_, err := broker.Open(ctx, c.dirs["n2"], c.options("n2"))
		opened <- err
	}()
	becomes("without a vote", func(s subjects.ReplicaStatus) bool { return !s.Voter && s.Fenced == "its log differs" })
	stop()
	if err := <-opened; err == nil {
		t.Fatal("n2 is ready without an order")
	}
	write(order)
	c.start("n2")
	becomes("rebuilt", rebuilt)

	c.stop("n2")
	c.start("n2")
	becomes("as it was", func(s subjects.ReplicaStatus) bool { return s.Voter && s.Fenced == "" && s.Rebuilds == 0 })
	keep(t, nc, 0, "b", "b")
	if got := c.checkSame(0, c.names...); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("got %v", got)
	}
}

// While a replica is rebuilt it has no vote. The others must be a majority
// without it.
func TestARebuildThatLeavesNoMajorityIsRefused(t *testing.T) {
	testkit.NotShort(t, "three nodes start, and one again")
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	c.awaitPlaced("n1")
	nc := c.conn("n1")
	c.stop("n3")
	var m *nats.Msg
	eventually(t, "n1 knows that n3 is gone", func() bool {
		m = ask(t, nc, "cantus.admin.node.n2.rebuild", `{"partition":0}`)
		return m.Header.Get(subjects.HeaderError) != ""
	})
	const want = "partition 0 would have no majority while its replica on n2 is rebuilt: of its other voters n1, n3, its leader n1 counts on n1 only; start the others and let them catch up first"
	if e := wantRefusal(t, m, subjects.Unavailable); e.Message != want {
		t.Errorf("refused with %q, want %q", e.Message, want)
	}
	c.start("n3")
	c.operate("n3", subjects.AdminRequest{Partition: new(int)}, "node", "n2", "rebuild")
	keep(t, nc, 0, "a", "a")
	c.awaitPlaced("n1")
	c.checkSame(0, c.names...)
}
