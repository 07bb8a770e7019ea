package raftstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/relay"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/wal"
	"github.com/cantuslog/cantus/wal/journal"
)

// cluster is a set of nodes in this process, connected over the loopback
// interface. Each has a store, a network and a replica of theGroup.
type cluster struct {
	t         testing.TB
	names     []string
	nodes     map[string]*node
	heartbeat time.Duration // the groups' timeout

	mu        sync.Mutex
	addresses map[string]string    // of nodes that are reached without a proxy
	away      map[string]bool      // nodes that are disconnected
	reroutes  map[[2]string]string // the address that one node has for another, if it differs from the others'
}

// node is one node of a cluster. Fields that are nil are not open.
type node struct {
	c       *cluster
	name    string
	dir     string
	opts    raftstore.NetworkOptions
	store   *wal.Store
	network *raftstore.Network
	proxy   *relay.Relay
	group   *raftstore.Group
	fsm     *machine
	fs      journal.FS // nil means the operating system's
	fails   bool       // closing the store may fail
	free    func(dir string) (int64, error)
}

// theGroup is the id of the group in tests.
const theGroup = 7

// theKey is the key of the clusters in tests.
var theKey = bytes.Repeat([]byte("k"), 32)

// inShort lists the tests with clusters that also run in short mode.
var inShort = map[string]bool{
	"TestThreeReplicasApplyTheSame":                            true,
	"TestANewLeaderHasAllAcknowledgedEntries":                  true,
	"TestCommittedEntriesAreNotRemovedForALeaderThatLacksThem": true,
	"TestAReplicaThatIsBehindFetchesAndCatchesUp":              true,
	"TestReplicasComeAndGo":                                    true,
}

// newCluster opens the stores and networks of nodes, but no group.
func newCluster(t testing.TB, names ...string) *cluster {
	t.Helper()
	if !inShort[t.Name()] {
		testkit.NotShort(t, "a cluster waits for elections and time-outs")
	}
	c := &cluster{t: t, names: names, heartbeat: 600 * time.Millisecond, nodes: map[string]*node{}, addresses: map[string]string{}, away: map[string]bool{}}
	for _, name := range names {
		n := &node{c: c, name: name, dir: t.TempDir(), opts: raftstore.NetworkOptions{Cluster: "c", Key: theKey}}
		c.nodes[name] = n
		n.openStore()
		n.openNetwork()
	}
	t.Cleanup(func() {
		for _, n := range c.nodes {
			n.close()
		}
	})
	return c
}

// startCluster bootstraps a group of all the nodes and returns its leader.
func startCluster(t testing.TB, names ...string) (*cluster, *node) {
	t.Helper()
	c := newCluster(t, names...)
	c.openAll()
	return c, c.leader()
}

// startSlowCluster bootstraps a group with another heartbeat timeout than that
// of startCluster. It does not wait for a leader.
func startSlowCluster(t testing.TB, heartbeat time.Duration, names ...string) *cluster {
	t.Helper()
	c := newCluster(t, names...)
	c.heartbeat = heartbeat
	c.openAll()
	return c
}

// openAll opens the group on every node. All of them bootstrap it.
func (c *cluster) openAll() {
	c.t.Helper()
	for _, n := range c.nodes {
		n.open(c.names...)
	}
}

func (c *cluster) resolve(from, to string) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.away[from] || c.away[to] {
		return "", fmt.Errorf("%s is disconnected from %s", to, from)
	}
	if a, ok := c.reroutes[[2]string{from, to}]; ok {
		return a, nil
	}
	if a, ok := c.addresses[to]; ok {
		return a, nil
	}
	if n := c.nodes[to]; n != nil {
		return n.proxy.Entry(from)
	}
	return "", fmt.Errorf("node %s is not known", to)
}

// disconnect disconnects a node from the others; reconnect undoes that.
func (c *cluster) disconnect(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.away[name] = true
	c.updateProxiesLocked()
}

func (c *cluster) reconnect(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.away, name)
	c.updateProxiesLocked()
}

// updateProxiesLocked makes each proxy refuse the nodes that are disconnected.
func (c *cluster) updateProxiesLocked() {
	for _, n := range c.nodes {
		n.proxy.Refuse(func(from string) bool { return c.away[from] || c.away[n.name] })
	}
}

func (n *node) openStore() {
	n.c.t.Helper()
	s, err := wal.Open(n.dir, wal.Options{Identity: wal.Identity{Cluster: "c", Node: n.name, Partitions: 8}, SegmentSize: 16 << 20, FS: n.fs, FreeSpace: n.free})
	if err != nil {
		n.c.t.Fatal(err)
	}
	n.store = s
}

func (n *node) log() *wal.Log { return n.store.Log(theGroup) }

func (n *node) openNetwork() {
	n.c.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		n.c.t.Fatal(err)
	}
	opts := n.opts
	opts.Node, opts.Listener, opts.Logger = n.name, listener, logger(n.name)
	opts.Resolve = func(to string) (string, error) { return n.c.resolve(n.name, to) }
	if n.network, err = raftstore.NewNetwork(opts); err != nil {
		n.c.t.Fatal(err)
	}
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	n.proxy = relay.New(n.c.t, listener.Addr().String())
}

// logger logs to standard error if RAFTSTORE_LOG is set, to debug a test.
func logger(name string) *slog.Logger {
	if os.Getenv("RAFTSTORE_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("at", name)
}

func (n *node) options(voters ...string) raftstore.Options {
	n.fsm = &machine{}
	return raftstore.Options{
		Node: n.name, Voters: voters, Log: n.log(), FSM: n.fsm, Network: n.network, ID: theGroup,
		HeartbeatTimeout: n.c.heartbeat, Logger: logger(n.name),
	}
}

func (n *node) open(voters ...string) {
	n.c.t.Helper()
	g, err := raftstore.Open(n.options(voters...))
	if err != nil {
		n.c.t.Fatalf("open %s: %v", n.name, err)
	}
	n.group = g
}

func (n *node) closeGroup() {
	n.c.t.Helper()
	if n.group != nil {
		if err := n.group.Close(); err != nil {
			n.c.t.Errorf("close group of %s: %v", n.name, err)
		}
		n.group = nil
	}
}

func (n *node) closeNetwork() {
	n.c.t.Helper()
	n.proxy.Close()
	for range 2 {
		if err := n.network.Close(); err != nil {
			n.c.t.Errorf("close network of %s: %v", n.name, err)
		}
	}
}

func (n *node) closeStore() {
	n.c.t.Helper()
	if err := n.store.Close(); err != nil && !n.fails {
		n.c.t.Errorf("close store of %s: %v", n.name, err)
	}
}

func (n *node) close() {
	n.closeGroup()
	n.closeNetwork()
	n.closeStore()
}

// until polls until a condition holds.
var until = testkit.Until

// leader waits for a node that leads and has a majority.
func (c *cluster) leader() (found *node) {
	c.t.Helper()
	until(c.t, "a leader", func() bool {
		for _, n := range c.nodes {
			if n.group == nil || c.isAway(n.name) || !n.group.Leading() {
				continue
			}
			if n.group.Barrier(c.t.Context()) == nil {
				found = n
				return true
			}
		}
		return false
	})
	return found
}

func (c *cluster) isAway(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.away[name]
}

func (c *cluster) others(n *node) (all []*node) {
	for _, name := range c.names {
		if name != n.name {
			all = append(all, c.nodes[name])
		}
	}
	return all
}

// put proposes an entry to the leader until that succeeds. If leaders change,
// as they do on a busy machine, the entry may be in the log twice.
func (c *cluster) put(data string) {
	c.t.Helper()
	until(c.t, "proposal "+data[:min(len(data), 20)], func() bool {
		_, err := c.leader().group.Propose([]byte(data)).Wait()
		c.mayFail(err)
		return err == nil
	})
}

// mayFail fails the test for an error that a change of leaders does not
// explain.
func (c *cluster) mayFail(err error) {
	c.t.Helper()
	if err != nil && !errors.Is(err, raftstore.ErrNotLeader) && !errors.Is(err, raftstore.ErrUnknown) {
		c.t.Fatal(err)
	}
}

// applied waits until nodes have applied the wanted entries, in order. It
// ignores repetitions of an entry.
func applied(t testing.TB, want []string, nodes ...*node) {
	t.Helper()
	for _, n := range nodes {
		until(t, fmt.Sprintf("%s has %d entries applied", n.name, len(want)), func() bool { return len(n.distinct()) >= len(want) })
		if got := n.distinct(); !slices.Equal(got, want) {
			t.Fatalf("%s applied %.200q, want %.200q", n.name, got, want)
		}
	}
}

// ends waits until the last entries that nodes have applied are the wanted
// ones.
func ends(t testing.TB, want []string, nodes ...*node) {
	t.Helper()
	for _, n := range nodes {
		until(t, fmt.Sprintf("the last entry of %s is %.20q", n.name, want[len(want)-1]), func() bool {
			all := n.distinct()
			return len(all) >= len(want) && slices.Equal(all[len(all)-len(want):], want)
		})
	}
}

// distinct returns the entries that a node has applied, without repetitions.
// The entries before its snapshot are all returned, as "".
func (n *node) distinct() (all []string) {
	seen := map[string]bool{}
	for _, data := range n.fsm.all() {
		if data == "" || !seen[data] {
			all = append(all, data)
		}
		seen[data] = true
	}
	return all
}

func timeout(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}
