package broker_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

// disks are the nodes' free bytes, as reported to them.
type disks map[string]*atomic.Int64

func (d disks) fill(t *testing.T, c *nodes, full bool, name string) {
	t.Helper()
	d[name].Store(map[bool]int64{true: 0, false: 1 << 40}[full])
	eventually(t, fmt.Sprintf("%s full is %v", name, full), func() bool { return broker.Full(c.node(name)) == full })
}

// TestFullReplicas fills the disks of one, two and three of three nodes. The
// partition accepts appends while a majority has space, a full replica accepts
// and leads nothing, and all have the same log when there is space again.
func TestFullReplicas(t *testing.T) {
	c := newNodes(t, 3, broker.Options{Partitions: 1})
	d := disks{}
	for _, name := range c.names {
		d[name] = &atomic.Int64{}
		d[name].Store(1 << 40)
	}
	c.change = func(name string, o *broker.Options) {
		broker.FreeSpace(o, d[name].Load)
	}
	c.start(c.names...)
	c.awaitPlaced("n1")
	leader := c.leader(0, "n1")
	var followers []string
	for _, name := range c.names {
		if name != leader {
			followers = append(followers, name)
		}
	}
	nc := c.conn(leader)
	id := 0
	more := func() uint64 {
		t.Helper()
		id++
		return keep(t, nc, 0, "x", fmt.Sprint("id", id))
	}
	refused := func() {
		t.Helper()
		var m *nats.Msg
		eventually(t, "storage_full", func() bool {
			var err error
			m, err = nc.Request("cantus.append.0", []byte("refused"), patience)
			return err == nil && m.Header.Get("Nats-Service-Error-Code") == "507"
		})
		wantRefusal(t, m, subjects.StorageFull)
	}
	first, second := followers[0], followers[1]
	last := more()
	eventually(t, "the first follower has it", func() bool { return broker.Mark(c.node(first), 0) >= last })
	d.fill(t, c, true, first)
	last = more()
	eventually(t, "the other follower has it", func() bool { return broker.Mark(c.node(second), 0) >= last })
	had := broker.LastIndex(c.node(first), 0)
	for range 50 {
		last = more()
	}
	eventually(t, "the other follower has all", func() bool { return broker.Mark(c.node(second), 0) >= last })
	if now := broker.LastIndex(c.node(first), 0); now != had {
		t.Errorf("a full follower's log went from %d to %d", had, now)
	}

	d.fill(t, c, true, second)
	refused()
	eventually(t, "the status and the partition's info say that it is full", func() bool {
		s := c.status(leader)
		var info subjects.PartitionInfo
		m, err := nc.Request("cantus.info.0", nil, patience)
		if err != nil || json.Unmarshal(m.Data, &info) != nil {
			return false
		}
		full := 0
		for _, n := range s.Nodes {
			if n.StorageFull {
				full++
			}
		}
		const why = "too few of the partition's nodes have room"
		return full == 2 && strings.Contains(s.Partitions[0].StorageFull, why) && strings.Contains(info.StorageFull, why)
	})
	if m, err := nc.Request("cantus.get.0", []byte(`{"txid":1}`), patience); err != nil || string(m.Data) != "x" {
		t.Errorf("a read while too many are full: %v, %v", m, err)
	}
	d.fill(t, c, true, leader)
	refused()

	// Only the followers have space: one of them leads.
	d.fill(t, c, false, first)
	d.fill(t, c, false, second)
	last = more()
	eventually(t, "a node with room leads", func() bool { return c.leader(0, leader) != leader })
	last = more()
	d.fill(t, c, false, leader)
	for _, name := range c.names {
		eventually(t, name+" has all", func() bool { return broker.Mark(c.node(name), 0) >= last })
	}
	c.awaitPlaced("n1")
	c.checkSame(0, c.names...)
	eventually(t, "nothing is said to be full", func() bool {
		s := c.status(leader)
		return s.Partitions[0].StorageFull == "" && !slices.ContainsFunc(s.Nodes, func(n subjects.NodeStatus) bool { return n.StorageFull })
	})
}
