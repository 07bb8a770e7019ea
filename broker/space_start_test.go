package broker_test

import (
	"sync/atomic"
	"testing"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

// TestAFullFollowerStarts restarts a follower whose disk is full. It is ready
// if it has almost all that is committed. If it has to fetch what it lacks, it
// says that its disk is full, and is ready once there is room.
func TestAFullFollowerStarts(t *testing.T) {
	c := newNodes(t, 3, broker.Options{Partitions: 1})
	d := disks{}
	for _, name := range c.names {
		d[name] = &atomic.Int64{}
		d[name].Store(1 << 40)
	}
	c.change = func(name string, o *broker.Options) {
		broker.FreeSpace(o, d[name].Load)
		broker.PointEvery(o, 16)
	}
	c.start(c.names...)
	c.awaitPlaced("n1")
	leader := c.leader(0, "n1")
	nc := c.conn(leader)
	if leader != "n1" {
		t.Fatalf("%s leads, the first founder is to", leader)
	}
	name := "n2"
	fillTo(t, nc, 50)
	eventually(t, "it has what is committed", func() bool { return broker.Mark(c.node(name), 0) == 50 })

	d.fill(t, c, true, name)
	fillTo(t, nc, 60)
	had := broker.LastIndex(c.node(name), 0)
	c.stop(name)
	c.start(name) // which returns when it is ready
	if now := broker.LastIndex(c.node(name), 0); now != had {
		t.Errorf("a full follower's log went from %d to %d", had, now)
	}

	d.fill(t, c, false, name)
	eventually(t, "it has all", func() bool { return broker.Mark(c.node(name), 0) == 60 })
	c.stop(name)
	d[name].Store(0)
	fillTo(t, nc, 200)
	// A new leader has no request on its way that still has the entries.
	other, partition := "n3", 0
	c.operate(leader, subjects.AdminRequest{Partition: &partition, To: other}, "cluster", "transfer")
	eventually(t, other+" leads", func() bool { return c.leader(0, leader) == other })
	if r := trim(t, nc, `{"before":150}`); r.FirstTxid < 100 {
		t.Fatalf("the trim leaves %+v", r)
	}
	started := make(chan error, 1)
	go func() { started <- c.tryStart(name) }()
	eventually(t, "the status says why it is not ready", func() bool { return unready(c.status(leader), name) == noRoomToFetch })
	if i := info(t, nc, 0); i.StorageFull != "" {
		t.Errorf("the others have room: %q", i.StorageFull)
	}
	select {
	case err := <-started:
		t.Fatalf("it has started: %v", err)
	default:
	}
	d[name].Store(1 << 40)
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	c.checkSame(0, c.names...)
}

// TestAFullNodeJoins adds a node whose disk is full, and gives it a replica. It
// says that it has no room, and fetches the log once there is some.
func TestAFullNodeJoins(t *testing.T) {
	c := newNodes(t, 3, broker.Options{Partitions: 1})
	d := disks{}
	for _, name := range append([]string{"n4"}, c.names...) {
		d[name] = &atomic.Int64{}
		d[name].Store(1 << 40)
	}
	c.change = func(name string, o *broker.Options) { broker.FreeSpace(o, d[name].Load) }
	c.start(c.names...)
	c.awaitPlaced("n1")
	fillTo(t, c.conn("n1"), 50)
	c.prepare("n4")
	d["n4"].Store(0)
	joined := make(chan error, 1)
	go func() { joined <- c.tryStart("n4") }()
	c.addWhenThere("n4", false)
	if err := <-joined; err != nil {
		t.Fatal(err)
	}
	c.operate("n1", subjects.AdminRequest{Partition: new(int), Node: "n3", To: "n4"}, "cluster", "move")
	eventually(t, "the status says that it has no room", func() bool { return unready(c.status("n1"), "n4") == noRoomToFetch })
	if broker.LastIndex(c.node("n4"), 0) != 0 {
		t.Error("it has fetched entries")
	}
	d["n4"].Store(1 << 40)
	c.awaitPlaced("n4")
	eventually(t, "it is ready", func() bool { return unready(c.status("n1"), "n4") == "" })
	c.checkSame(0, "n1", "n2", "n4")
}

const noRoomToFetch = "partition 0 is to be fetched: this node's disk is full"

// unready returns why a node is not ready, "" if it is.
func unready(s subjects.ClusterStatus, name string) string {
	for _, n := range s.Nodes {
		if n.Name == name && !n.Ready {
			return n.Unready
		}
	}
	return ""
}
