package broker_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

// load appends many transactions in batch messages, and returns how many. There
// are more if the outcome of a message was unknown, and it was sent again.
func load(t *testing.T, nc *nats.Conn, partition, messages, size int) int {
	t.Helper()
	const each = 5000
	payload := string(make([]byte, size))
	var frame []byte
	for range each {
		frame = append(frame, item(payload)...)
	}
	mark := func() (mark uint64) {
		eventually(t, "the partition is described", func() bool { // a request to a leader that is replaced may be lost
			m, err := nc.Request(subjects.Names{}.PartitionInfo(partition), nil, time.Second)
			var i subjects.PartitionInfo
			if err != nil || m.Header.Get(subjects.HeaderErrorCode) != "" || json.Unmarshal(m.Data, &i) != nil {
				return false
			}
			mark = i.HighWaterMark
			return true
		})
		return mark
	}
	began := mark()
	for range messages {
		eventually(t, "a batch is taken", func() bool {
			m, err := nc.Request(subjects.Names{}.Batch(partition), frame, patience)
			if errors.Is(err, nats.ErrNoResponders) {
				return false
			}
			var r subjects.BatchReply
			if err != nil || json.Unmarshal(m.Data, &r) != nil {
				t.Fatalf("a batch: %v", err)
			}
			switch {
			case r.Error != nil && (r.Error.Reason == subjects.Unavailable || r.Error.Reason == subjects.Busy):
				return false
			case r.Error != nil || len(r.Results) != 1:
				t.Fatalf("a batch: %s", m.Data)
			case r.Results[0].Error != nil && r.Results[0].Error.Reason != subjects.Unavailable && r.Results[0].Error.Reason != subjects.Unknown:
				t.Fatalf("a batch: %s", m.Data)
			}
			return r.Results[0].Error == nil && r.Results[0].Count == each
		})
	}
	return int(mark() - began)
}

func TestTrimRemovesTheSameOnEveryReplicaAndANewOneGetsTheRest(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	c.awaitPlaced("n1")
	nc := c.conn("n1")
	total := load(t, nc, 0, 40, 16)
	keep(t, nc, 0, "last", "last")
	m := ask(t, nc, subjects.Names{}.Admin("trim", "0"), `{"before":150000}`)
	var r subjects.TrimReply
	if err := json.Unmarshal(m.Data, &r); err != nil || r.FirstTxid < 100_000 || r.FirstTxid > 150_000 {
		t.Fatalf("trim answered %s", m.Data)
	}
	for _, name := range c.names {
		eventually(t, name+" has trimmed its log", func() bool { return broker.FirstEntryTxid(c.node(name), 0) == r.FirstTxid })
	}
	if got := collect(t, nc, "cantus.read.0", `{"from":1}`); got.refusal == nil {
		t.Error("what was trimmed is read")
	} else if e := wantRefusal(t, got.refusal, subjects.Trimmed); e.FirstTxid != r.FirstTxid {
		t.Errorf("refused with first_txid %d, not %d", e.FirstTxid, r.FirstTxid)
	}
	if got := collect(t, nc, "cantus.read.0", fmt.Sprintf(`{"from":%d,"max":3}`, r.FirstTxid)); len(got.transactions) != 3 {
		t.Errorf("from the first kept one %d are read", len(got.transactions))
	}

	c.prepare("n4")
	joined := make(chan error)
	go func() { joined <- c.tryStart("n4") }()
	c.addWhenThere("n4", false)
	c.operate("n1", subjects.AdminRequest{Node: "n2"}, "cluster", "remove")
	if err := <-joined; err != nil {
		t.Fatal(err)
	}
	c.awaitPlaced("n4")
	kept := total + 1 - int(r.FirstTxid) + 1
	if got := c.checkSame(0, "n1", "n3", "n4"); len(got) != kept {
		t.Errorf("%d are kept, not %d", len(got), kept)
	}
	c.stop("n4") // what it fetched is enough for a restart
	c.start("n4")
	c.checkSame(0, "n4", "n1")
}

// addWhenThere adds a node once it asks to join.
func (c *nodes) addWhenThere(name string, standby bool) {
	c.t.Helper()
	eventually(c.t, name+" waits to be added", func() bool {
		return slices.ContainsFunc(c.status("n1").Nodes, func(n subjects.NodeStatus) bool { return n.Name == name && n.State == "waiting" })
	})
	c.operate("n1", subjects.AdminRequest{Node: name, Standby: standby}, "cluster", "add")
}

func TestAReplicaThatWasAwayWhileOthersTrimmedFetchesTheRest(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	c.awaitPlaced("n1")
	nc := c.conn("n1")
	load(t, nc, 0, 4, 16)
	c.stop("n3")
	load(t, nc, 0, 40, 16)
	m := ask(t, nc, subjects.Names{}.Admin("trim", "0"), `{"before":150000}`)
	var r subjects.TrimReply
	if err := json.Unmarshal(m.Data, &r); err != nil || r.FirstTxid < 100_000 {
		t.Fatalf("trim answered %s", m.Data)
	}
	for _, name := range []string{"n1", "n2"} {
		eventually(t, name+" has trimmed its log", func() bool { return broker.FirstEntryTxid(c.node(name), 0) == r.FirstTxid })
	}
	c.start("n3")
	c.checkSame(0, c.names...)
	c.awaitPlaced("n3")
}

func TestAStandbyFollowsAndIsPromoted(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 2})
	keep(t, c.conn("n1"), 0, "before", "before")
	c.prepare("n4")
	joined := make(chan error)
	go func() { joined <- c.tryStart("n4") }()
	c.addWhenThere("n4", true)
	if err := <-joined; err != nil {
		t.Fatal(err)
	}
	keep(t, c.conn("n4"), 0, "after", "after")
	c.checkSame(0, "n1", "n4")
	c.checkSame(1, "n1", "n4")
	for _, p := range c.status("n1").Partitions {
		for _, r := range p.Replicas {
			if r.Voter == (r.Name == "n4") {
				t.Errorf("partition %d: %+v", p.Partition, r)
			}
		}
	}
	c.operate("n4", subjects.AdminRequest{Node: "n4"}, "cluster", "promote")
	c.operate("n4", subjects.AdminRequest{Node: "n1"}, "cluster", "remove")
	<-c.node("n1").Done()
	c.awaitPlaced("n4")
	for p := range 2 {
		c.checkSame(p, "n2", "n3", "n4")
	}
}

func TestLeadersAreSpreadTransferredAndDrained(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 6})
	c.awaitPlaced("n1")
	eventually(t, "each leads two of six", func() bool {
		return !slices.ContainsFunc(c.status("n2").Nodes, func(n subjects.NodeStatus) bool { return n.Leading != 2 })
	})
	p := 0
	c.operate("n2", subjects.AdminRequest{Partition: &p, To: "n3"}, "cluster", "transfer")
	eventually(t, "n3 leads partition 0", func() bool { return c.leader(0, "n1") == "n3" })
	c.operate("n3", subjects.AdminRequest{Node: "n1"}, "cluster", "drain")
	eventually(t, "n1 leads nothing", func() bool {
		for _, n := range c.status("n3").Nodes {
			if n.Name == "n1" {
				return n.Leading == 0
			}
		}
		return false
	})
	for i := range 6 {
		keep(t, c.conn("n1"), i, "x", "x")
	}
}

// A replica's report is compared with what the leader had when it was sent: the
// more is appended, the more the leader has when it compares.
func TestAReplicaIsLevelHoweverMuchIsAppended(t *testing.T) {
	c := openNodes(t, 2, broker.Options{Partitions: 1}) // both have to store everything
	c.awaitPlaced("n1")
	name, other := c.leader(0, "n1"), "n1"
	if name == "n1" {
		other = "n2"
	}
	leader, nc := c.node(name), c.conn(name)
	old := broker.AnnouncementOf(c.node(other))
	const more = 600 // more than what counts as level
	for i := range more {
		keep(t, nc, 0, "x", fmt.Sprint("first ", i))
	}
	eventually(t, "a replica that has less is behind", func() bool {
		broker.Hear(leader, old)
		level, heard := broker.CaughtUp(leader, other, 0)
		return heard && !level
	})
	eventually(t, "it is level", func() bool {
		broker.Hear(leader, broker.AnnouncementOf(c.node(other)))
		level, heard := broker.CaughtUp(leader, other, 0)
		return heard && level
	})
	for i := range more {
		keep(t, nc, 0, "x", fmt.Sprint("second ", i))
		if level, heard := broker.CaughtUp(leader, other, 0); heard && !level {
			t.Fatalf("after %d appends it is taken to be behind", i+1)
		}
	}
}

// A leader that is cut off can't know what is past the end of the log: the
// others may have committed more.
func TestALeaderWithoutAMajorityDoesNotSayWhereTheLogEnds(t *testing.T) {
	c := newNodes(t, 3, broker.Options{Partitions: 1})
	cut := c.cableTo("n1")
	c.start(c.names...)
	c.awaitPlaced("n1")
	nc := c.conn("n1")
	keep(t, nc, 0, "committed", "committed")
	requests := map[string]*nats.Msg{
		"append": message("cantus.append.0", "x", subjects.HeaderHighWaterMark, "100"),
		"last":   message("cantus.append.0", "x", subjects.HeaderExpectedLast, "100"),
		"read":   message("cantus.read.0", `{"from":100}`),
		"get":    message("cantus.get.0", `{"txid":100}`),
		"cursor": message("cantus.cursor.0.c", `{"txid":100}`),
	}
	for what, r := range requests {
		m, err := nc.RequestMsg(r, patience)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		wantOneOf(t, m, subjects.Ahead, subjects.WrongLast)
	}
	cut(true) // replication only: requests still reach it
	answers := map[string]*nats.Subscription{}
	for what, r := range requests { // all before it notices
		inbox := nc.NewInbox()
		sub, err := nc.SubscribeSync(inbox)
		if err == nil {
			r.Reply, answers[what] = inbox, sub
			err = nc.PublishMsg(r)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for what, sub := range answers {
		m, err := sub.NextMsg(patience)
		switch {
		case errors.Is(err, nats.ErrNoResponders): // it had noticed
		case err != nil:
			t.Fatalf("%s: %v", what, err)
		default:
			wantOneOf(t, m, subjects.Unavailable)
		}
	}
}

func TestALeaderWithoutAMajorityRefusesAndNothingOfItIsSeen(t *testing.T) {
	c := newNodes(t, 3, broker.Options{Partitions: 1})
	cut := c.cableTo("n1")
	c.start(c.names...)
	c.awaitPlaced("n1")
	nc := c.conn("n1")
	keep(t, nc, 0, "committed", "committed")
	feed, err := nc.SubscribeSync("cantus.feed.0.>")
	if err != nil {
		t.Fatal(err)
	}
	cut(true) // replication only: requests still reach it
	m, err := nc.RequestMsg(message("cantus.append.0", "lost"), patience)
	switch {
	case errors.Is(err, nats.ErrNoResponders): // it had noticed
	case err != nil:
		t.Fatal(err)
	default:
		wantOneOf(t, m, subjects.Unknown, subjects.Unavailable)
	}
	if id := keep(t, c.conn("n2"), 0, "goes on", "goes on"); id != 2 {
		t.Errorf("the majority gave txid %d", id)
	}
	cut(false)
	if got := c.checkSame(0, c.names...); !slices.Equal(got, []string{"committed", "goes on"}) {
		t.Errorf("the log holds %v", got)
	}
	for {
		m, err := feed.NextMsg(50 * time.Millisecond)
		if err != nil {
			break
		}
		if string(m.Data) == "lost" {
			t.Error("the feed had what was never committed")
		}
	}
}

// wantOneOf checks that an answer is a refusal for one of some reasons.
func wantOneOf(t *testing.T, m *nats.Msg, reasons ...subjects.Reason) {
	t.Helper()
	var r subjects.Reply
	if err := json.Unmarshal(m.Data, &r); err != nil || r.Error == nil || !slices.Contains(reasons, r.Error.Reason) {
		t.Fatalf("answered %s, wanted one of %v", m.Data, reasons)
	}
}

func TestReplicaReadsWaitForWhatIsNotThereYet(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 1})
	nc := c.conn("n3")
	wait := begin(t, nc, "cantus.replica.read.0", `{"from":1,"wait":"30s"}`)
	keep(t, c.conn("n2"), 0, "x", "x")
	if got := wait(t); len(got.transactions) != 1 || string(got.transactions[0].Data) != "x" {
		t.Errorf("got %d transactions", len(got.transactions))
	}
	if got := collect(t, nc, "cantus.replica.read.0", `{"from":9}`); got.end == nil || got.next != 9 {
		t.Errorf("from beyond the end it goes on at %d", got.next)
	}
}

func TestAppendByKeyReachesTheLeaderFromAnyNode(t *testing.T) {
	c := openNodes(t, 3, broker.Options{Partitions: 4})
	c.awaitPlaced("n1")
	want := map[string]int{}
	for _, name := range c.names {
		nc := c.conn(name)
		for _, key := range []string{"alice", "bob", "carol"} {
			var r subjects.Reply
			eventually(t, "an answer", func() bool {
				m, err := nc.Request("cantus.append.key."+key, []byte("x"), time.Second)
				return err == nil && json.Unmarshal(m.Data, &r) == nil && r.Error == nil && r.Txid > 0
			})
			if p, seen := want[key]; seen && p != r.Partition {
				t.Errorf("%s goes to %d through %s, and to %d", key, r.Partition, name, p)
			}
			want[key] = r.Partition
		}
	}
	if want["alice"] != 3 { // as the protocol's description says
		t.Errorf("alice goes to %d", want["alice"])
	}
}
