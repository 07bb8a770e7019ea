package broker_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/ports"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

// nodes is a cluster in one process, over loopback.
type nodes struct {
	t     *testing.T
	opts  broker.Options // that all have in common
	names []string       // the founders
	dirs  map[string]string
	ports map[string]string // route addresses
	// change may change a node's options.
	change func(name string, o *broker.Options)
	asked  int // how often nodes were asked what they have heard: see heardBy

	mu   sync.Mutex
	open map[string]*broker.Node
}

// inShort lists the tests with clusters that run in short mode too.
var inShort = map[string]bool{
	"TestThreeNodesFoundAClusterInAnyOrder":        true,
	"TestAllNodesRestart":                          true,
	"TestAReplicaWithAnotherLogIsFencedAndRebuilt": true,
}

// newNodes prepares a cluster of count founders and starts none.
func newNodes(t *testing.T, count int, opts broker.Options) *nodes {
	t.Helper()
	if !inShort[t.Name()] {
		testkit.NotShort(t, "a cluster waits for elections and time-outs")
	}
	testkit.Parallel(t)
	c := &nodes{t: t, opts: opts, dirs: map[string]string{}, ports: map[string]string{}, open: map[string]*broker.Node{}}
	if c.opts.Partitions == 0 {
		c.opts.Partitions = 2
	}
	if c.opts.ElectionTimeout == 0 {
		c.opts.ElectionTimeout = 400 * time.Millisecond
	}
	for i := range count {
		c.names = append(c.names, fmt.Sprintf("n%d", i+1))
		c.prepare(c.names[i])
	}
	t.Cleanup(c.closeAll)
	return c
}

// openNodes starts a cluster, and returns when it serves.
func openNodes(t *testing.T, count int, opts broker.Options) *nodes {
	t.Helper()
	c := newNodes(t, count, opts)
	c.start(c.names...)
	return c
}

func (c *nodes) prepare(name string) {
	c.dirs[name], c.ports[name] = c.t.TempDir(), ports.Free(c.t)
}

// options returns the options of one node, a founder or one that is added
// later.
func (c *nodes) options(name string) broker.Options {
	o := c.opts
	o.Name, o.ClusterListen, o.Routes = name, c.ports[name], nil
	if file := os.Getenv("CANTUS_TEST_LOG"); file != "" { // for whoever looks into a failure
		f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(func() { _ = f.Close() })
		o.Logger = slog.New(slog.NewTextHandler(f, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", name)
	}
	for _, other := range c.names {
		if other != name {
			o.Routes = append(o.Routes, c.ports[other])
		}
	}
	if slices.Contains(c.names, name) {
		o.Bootstrap = c.names
	}
	if c.change != nil {
		c.change(name, &o)
	}
	return o
}

// start opens nodes concurrently.
func (c *nodes) start(names ...string) {
	c.t.Helper()
	errs := make([]error, len(names))
	var opening sync.WaitGroup
	for i, name := range names {
		opening.Go(func() { errs[i] = c.tryStart(name) })
	}
	opening.Wait()
	for i, err := range errs {
		if err != nil {
			c.t.Errorf("open %s: %v", names[i], err)
		}
	}
	if c.t.Failed() {
		c.t.FailNow()
	}
}

func (c *nodes) tryStart(name string) error {
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	n, err := broker.Open(ctx, c.dirs[name], c.options(name))
	if err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.open[name] = n
	}
	return err
}

func (c *nodes) node(name string) *broker.Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open[name]
}

// stop closes a node cleanly.
func (c *nodes) stop(name string) {
	c.t.Helper()
	n := c.node(name)
	if err := n.Close(); err != nil {
		c.t.Fatalf("close %s: %v", name, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, name)
}

func (c *nodes) closeAll() {
	var closing sync.WaitGroup
	for _, n := range c.open {
		closing.Go(func() { _ = n.Close() })
	}
	closing.Wait()
}

func (c *nodes) conn(name string) *nats.Conn {
	c.t.Helper()
	nc, err := c.node(name).Conn()
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(nc.Close)
	return nc
}

// eventually polls until a condition holds.
var eventually = testkit.Until

// keep appends until it succeeds, like any client that is told to try again,
// and returns the txid.
func keep(t *testing.T, nc *nats.Conn, partition int, payload, id string) uint64 {
	t.Helper()
	var r subjects.Reply
	eventually(t, fmt.Sprintf("append %s to %d", id, partition), func() bool {
		m, err := nc.RequestMsg(message(subjects.Names{}.Append(partition), payload, subjects.HeaderMsgID, id), time.Second)
		r = subjects.Reply{}
		return err == nil && len(m.Data) > 0 && json.Unmarshal(m.Data, &r) == nil && r.Error == nil
	})
	return r.Txid
}

// leader returns the node that leads a partition, once there is one.
func (c *nodes) leader(partition int, by string) string {
	c.t.Helper()
	nc := c.conn(by)
	defer nc.Close()
	var i subjects.PartitionInfo
	eventually(c.t, "a leader", func() bool {
		i = subjects.PartitionInfo{}
		m, err := nc.Request(subjects.Names{}.PartitionInfo(partition), nil, time.Second)
		return err == nil && json.Unmarshal(m.Data, &i) == nil && i.Error == nil && i.Leader != ""
	})
	return i.Leader
}

// status asks a node about the cluster.
func (c *nodes) status(by string) subjects.ClusterStatus {
	c.t.Helper()
	var s subjects.ClusterStatus
	nc := c.conn(by)
	defer nc.Close()
	eventually(c.t, "a status", func() bool {
		s = subjects.ClusterStatus{}
		m, err := nc.Request(subjects.Names{}.Admin("status"), nil, time.Second)
		return err == nil && json.Unmarshal(m.Data, &s) == nil && s.Error == nil
	})
	return s
}

// operate requests an operation until it is accepted.
func (c *nodes) operate(by string, r subjects.AdminRequest, subject ...string) (reply subjects.AdminReply) {
	c.t.Helper()
	body, err := json.Marshal(r)
	if err != nil {
		c.t.Fatal(err)
	}
	nc := c.conn(by)
	defer nc.Close()
	var last string
	eventually(c.t, strings.Join(subject, " ")+" "+string(body), func() bool {
		m, err := nc.Request(subjects.Names{}.Admin(subject...), body, 5*time.Second) // it may wait for a node that is away
		if err != nil {
			return false
		}
		reply = subjects.AdminReply{}
		last = string(m.Data)
		if json.Unmarshal(m.Data, &reply) == nil && reply.Error != nil && reply.Error.Code < 500 {
			c.t.Fatalf("%v %s: %s", subject, body, last)
		}
		return reply.Done != ""
	})
	return reply
}

// placed reports whether every replica and leader is where the placement wants
// it, as a node sees it.
func placed(s subjects.ClusterStatus) bool {
	for _, p := range s.Partitions {
		voters := 0
		for _, r := range p.Replicas {
			if r.Voter {
				voters++
			}
			if r.Voter && !slices.Contains(p.Placement, r.Name) {
				return false
			}
		}
		if voters != len(p.Placement) || p.Leader != p.Placement[0] {
			return false
		}
	}
	return true
}

// awaitPlaced waits until a node sees everything in its place.
func (c *nodes) awaitPlaced(by string) {
	c.t.Helper()
	eventually(c.t, "everything is in its place", func() bool { return placed(c.status(by)) })
}

// checkSame is the oracle of a cluster: every node that holds a partition has
// the same log, complete up to the leader's high-water mark, and the same
// digest. It returns the payloads.
func (c *nodes) checkSame(partition int, by ...string) []string {
	c.t.Helper()
	nc := c.conn(by[0])
	defer nc.Close()
	var i subjects.PartitionInfo
	eventually(c.t, "a leader", func() bool { // it may be changing
		i = subjects.PartitionInfo{}
		m, err := nc.Request(subjects.Names{}.PartitionInfo(partition), nil, time.Second)
		return err == nil && json.Unmarshal(m.Data, &i) == nil && i.Error == nil
	})
	var first []string
	for n, name := range by {
		eventually(c.t, name+" has it all", func() bool {
			return broker.Holds(c.node(name), partition) && broker.Mark(c.node(name), partition) >= i.HighWaterMark
		})
		payloads, digest, err := broker.Contents(c.node(name), partition)
		switch {
		case err != nil:
			c.t.Fatalf("partition %d on %s: %v", partition, name, err)
		case digest != i.Digest:
			c.t.Fatalf("partition %d on %s: digest %s, info says %s", partition, name, digest, i.Digest)
		case n == 0:
			first = payloads
		case !slices.Equal(payloads, first):
			c.t.Fatalf("partition %d: %d transactions on %s, %d others on %s", partition, len(first), by[0], len(payloads), name)
		}
	}
	return first
}
