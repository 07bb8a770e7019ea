package e2e_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/cantuslog/cantus/internal/ports"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/internal/workload"
)

// cluster is several nodes that know each other. Their client and route ports
// stay the same across restarts.
type cluster struct {
	tb     testing.TB
	common []string // arguments of every node
	nodes  []*node
	routes map[string]string              // by node
	wires  *wires                         // nil if nodes speak to each other directly
	spaces place                          // nil if nodes have the machine's network
	disks  func(node string) (dir string) // nil if data is where temporary files are

	skew     time.Duration      // by how much clocks differ at most
	recorder *workload.Recorder // of the clients; nil if they are not recorded
	dialed   atomic.Int64       // how many clients

	writerLimit time.Duration // how long writers wait for an answer; 0 for the default
}

// place is where nodes run, each in a network of its own.
type place interface {
	host(node string) string
	enter(node string) (command []string)
}

// newCluster prepares a cluster of founders and starts none.
func newCluster(tb testing.TB, founders int, common ...string) *cluster {
	c := &cluster{tb: tb, common: common, routes: map[string]string{}}
	c.found(founders)
	return c
}

// newWiredCluster is newCluster with nodes that can be cut off from each other.
func newWiredCluster(tb testing.TB, founders int, common ...string) *cluster {
	tb.Helper()
	// The route ports that nodes tell each other must not lead past the wires.
	config := filepath.Join(tb.TempDir(), "nats.conf")
	if err := os.WriteFile(config, []byte("cluster { advertise: \"127.0.0.1:1\" }\n"), 0o600); err != nil {
		tb.Fatal(err)
	}
	c := &cluster{tb: tb, common: append(common, "--nats-config", config), routes: map[string]string{}, wires: newWires(tb)}
	c.found(founders)
	return c
}

func (c *cluster) found(count int) {
	testkit.NotShort(c.tb, "a cluster of processes waits for elections and time-outs") // TestReadmeThreeNodes has one
	if t, ok := c.tb.(*testing.T); ok {
		testkit.Parallel(t)
	}
	var names []string
	for i := range count {
		names = append(names, fmt.Sprintf("n%d", i+1))
		c.routes[names[i]] = c.address(names[i])
	}
	for _, name := range names {
		c.nodes = append(c.nodes, c.prepare(name, "--bootstrap", strings.Join(names, ",")))
	}
}

// prepare makes a node that knows the addresses of the existing ones.
func (c *cluster) prepare(name string, args ...string) *node {
	if c.routes[name] == "" {
		c.routes[name] = c.address(name)
	}
	var others []string
	for other, route := range c.routes {
		switch {
		case other == name:
		case c.wires == nil:
			others = append(others, route)
		default:
			others = append(others, c.wires.lay(name, other, route))
		}
	}
	if c.wires != nil {
		raft := ports.Free(c.tb)
		args = append(args, "--raft", raft, "--raft-advertise", c.wires.lay("", name, raft))
	}
	args = append(args, "--name", name, "--listen", c.address(name), "--cluster", c.routes[name], "--routes", strings.Join(others, ","))
	if c.spaces != nil { // addresses that are not loopback's
		args = append(args, "--insecure")
	}
	dir := c.tb.TempDir()
	if c.disks != nil {
		dir = c.disks(name)
	}
	n := newNode(c.tb, name, dir, append(args, c.common...)...)
	if c.spaces != nil {
		n.within = c.spaces.enter(name)
	}
	return n
}

// address returns one that a node can listen on, and that no other uses.
func (c *cluster) address(name string) string {
	address := ports.Free(c.tb)
	if c.spaces != nil {
		_, port, _ := strings.Cut(address, ":")
		return c.spaces.host(name) + ":" + port
	}
	return address
}

// startCluster starts a cluster, and returns when every node serves and leads
// the partitions that it should lead.
func startCluster(tb testing.TB, founders int, common ...string) *cluster {
	tb.Helper()
	c := newCluster(tb, founders, common...)
	c.startAll()
	c.awaitPlaced()
	return c
}

// startClusters starts the nodes of several clusters at once.
func startClusters(all ...*cluster) {
	all[0].tb.Helper()
	var starting errgroup.Group
	for _, c := range all {
		for _, n := range c.nodes {
			starting.Go(n.start)
		}
	}
	if err := starting.Wait(); err != nil {
		all[0].tb.Fatal(err)
	}
	for _, c := range all {
		c.awaitPlaced()
	}
}

// startAll starts all nodes concurrently, since they wait for each other.
func (c *cluster) startAll() {
	c.tb.Helper()
	var starting errgroup.Group
	for _, n := range c.nodes {
		starting.Go(n.start)
	}
	if err := starting.Wait(); err != nil {
		c.tb.Fatal(err)
	}
}

// stopAll stops all nodes concurrently.
func (c *cluster) stopAll() {
	c.tb.Helper()
	var stopping errgroup.Group
	for _, n := range c.nodes {
		stopping.Go(n.stop)
	}
	if err := stopping.Wait(); err != nil {
		c.tb.Fatal(err)
	}
}

func (c *cluster) node(name string) *node {
	i := slices.IndexFunc(c.nodes, func(n *node) bool { return n.name == name })
	if i < 0 {
		c.tb.Fatalf("no node is named %q", name)
	}
	return c.nodes[i]
}

// dial returns a client that knows all nodes and is connected to the named one.
// It leaves a node that hangs.
func (c *cluster) dial(name string) *workload.Client {
	c.tb.Helper()
	urls := []string{c.node(name).url}
	for _, n := range c.nodes {
		if n.name != name {
			urls = append(urls, n.url)
		}
	}
	client := dial(c.tb, strings.Join(urls, ","), nats.DontRandomize(), nats.PingInterval(time.Second), nats.MaxPingsOutstanding(2))
	return c.recorded(client)
}

// url returns the addresses of all nodes, for --server.
func (c *cluster) url() string {
	var urls []string
	for _, n := range c.nodes {
		urls = append(urls, n.url)
	}
	return strings.Join(urls, ",")
}

// dialOnly returns a client that stays with one node.
func (c *cluster) dialOnly(n *node) *workload.Client {
	c.tb.Helper()
	client := dial(c.tb, n.url, nats.IgnoreDiscoveredServers())
	return c.recorded(client)
}

// recorded returns a client that does not wait for a leader that hangs, and
// that is recorded if clients are.
func (c *cluster) recorded(client *workload.Client) *workload.Client {
	client.Limit, client.Overdue = workload.DefaultLimit, workload.ErrNoAnswer
	client.Recorder, client.Name = c.recorder, fmt.Sprintf("c%d", c.dialed.Add(1))
	return client
}

// keep appends until it succeeds, like a client that is told to try again.
func (c *cluster) keep(ctx context.Context, client *workload.Client, m *nats.Msg) (workload.Reply, error) {
	r, _, err := workload.Retry(ctx, workload.Backoff{}, client, func() (workload.Reply, error) { return client.AppendMsg(ctx, m) })
	if err == nil && r.Error != nil {
		err = errors.New(r.String())
	}
	return r, err
}

// mustKeep is keep, but any failure fails the test.
func (c *cluster) mustKeep(client *workload.Client, partition int, payload string) workload.Reply {
	c.tb.Helper()
	r, err := c.keep(c.tb.Context(), client, workload.NewAppend(partition, payload, "Nats-Msg-Id", payload))
	if err != nil {
		c.tb.Fatalf("append %s: %v", payload, err)
	}
	return r
}

// clusterStatus is the answer of cantus.admin.status, as far as it is needed.
type clusterStatus struct {
	ID         string            `json:"id"`
	MetaLeader string            `json:"meta_leader"`
	Error      *workload.Refusal `json:"error"`
	Nodes      []struct {
		Name    string `json:"name"`
		State   string `json:"state"`
		Alive   bool   `json:"alive"`
		Ready   bool   `json:"ready"`
		Unready string `json:"unready"`
		Raft    string `json:"raft"`
	} `json:"nodes"`
	Partitions []struct {
		Partition int      `json:"partition"`
		Leader    string   `json:"leader"`
		Placement []string `json:"placement"`
		Replicas  []struct {
			Name          string `json:"name"`
			State         string `json:"state"`
			Voter         bool   `json:"voter"`
			HighWaterMark uint64 `json:"high_water_mark"`
			Fenced        string `json:"fenced"`
		} `json:"replicas"`
	} `json:"partitions"`
}

// statusOf asks for the cluster's status.
func statusOf(ctx context.Context, c *workload.Client) (clusterStatus, error) {
	var s clusterStatus
	answer, err := c.Request(ctx, nats.NewMsg("cantus.admin.status"))
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(answer.Data, &s); err != nil {
		return s, fmt.Errorf("status %q: %w", answer.Data, err)
	}
	if s.Error != nil {
		return s, fmt.Errorf("status: %s", answer.Data)
	}
	return s, nil
}

// misplaced describes what is not in its place yet, "" if all is: every member
// serves, every replica votes and has everything, and every partition is led by
// its preferred node.
func (s clusterStatus) misplaced() string {
	for _, n := range s.Nodes {
		if n.State == "member" && !(n.Alive && n.Ready) {
			return fmt.Sprintf("node %s is not ready: %s", n.Name, cmp.Or(n.Unready, "away"))
		}
	}
	for _, p := range s.Partitions {
		voters, marks := 0, map[uint64]bool{}
		for _, r := range p.Replicas {
			marks[r.HighWaterMark] = true
			if r.Voter {
				voters++
			}
			if r.Fenced != "" || r.State == "away" || !slices.Contains(p.Placement, r.Name) {
				return fmt.Sprintf("partition %d: %+v", p.Partition, r)
			}
		}
		if voters != len(p.Placement) || p.Leader != p.Placement[0] || len(marks) != 1 {
			return fmt.Sprintf("partition %d: %+v", p.Partition, p)
		}
	}
	return ""
}

// awaitPlaced waits until everything is in its place.
func (c *cluster) awaitPlaced() {
	c.tb.Helper()
	client := c.dial(c.nodes[0].name)
	defer client.Conn.Close()
	if err := c.until(c.tb.Context(), "placed", func(ctx context.Context) string {
		s, err := statusOf(ctx, client)
		if err != nil {
			return err.Error()
		}
		return s.misplaced()
	}); err != nil {
		c.tb.Fatal(err)
	}
}

// awaitOther waits until a node other than n leads partition 0.
func (c *cluster) awaitOther(ctx context.Context, client *workload.Client, n *node) error {
	return c.until(ctx, "led by another than "+n.name, func(ctx context.Context) string {
		info, err := client.Info(ctx, 0)
		if err != nil || info.Leader == n.name {
			return fmt.Sprintf("%s leads, %v", info.Leader, err)
		}
		return ""
	})
}

// awaitReady waits until every node serves. Under load not everything gets into
// its place.
func (c *cluster) awaitReady(ctx context.Context, client *workload.Client) error {
	return c.until(ctx, "ready", func(ctx context.Context) string {
		s, err := statusOf(ctx, client)
		if err != nil {
			return err.Error()
		}
		for _, n := range s.Nodes {
			if !n.Alive || !n.Ready {
				return n.Name + ": " + n.Unready
			}
		}
		return ""
	})
}

// awaitMark waits until every replica of a partition knows that everything is
// committed up to a transaction.
func (c *cluster) awaitMark(client *workload.Client, partition int, mark uint64) {
	c.tb.Helper()
	if err := c.until(c.tb.Context(), fmt.Sprintf("at %d", mark), func(ctx context.Context) string {
		s, err := statusOf(ctx, client)
		if err != nil {
			return err.Error()
		}
		for _, r := range s.Partitions[partition].Replicas {
			if r.HighWaterMark < mark {
				return fmt.Sprintf("%+v", r)
			}
		}
		return ""
	}); err != nil {
		c.tb.Fatal(err)
	}
}

// until calls missing until it returns "", at most for patience.
func (c *cluster) until(ctx context.Context, what string, missing func(context.Context) string) error {
	for deadline := time.Now().Add(patience); ; {
		why := missing(ctx)
		switch {
		case why == "":
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("not %s after %v: %s", what, patience, why)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// leader returns the node that leads a partition, once there is one and it
// answers.
func (c *cluster) leader(ctx context.Context, client *workload.Client, partition int) (*node, error) {
	var info workload.PartitionInfo
	err := c.until(ctx, fmt.Sprintf("partition %d led", partition), func(ctx context.Context) string {
		var err error
		if info, err = client.Info(ctx, partition); err != nil {
			return err.Error()
		}
		return ""
	})
	if err != nil {
		return nil, err
	}
	return c.node(info.Leader), nil
}

// checkSame stops all nodes, verifies their directories and compares them: all
// must have the last txids and digests that info returned. Then it starts each
// node alone, without a majority, and reads partitions from it: the node must
// have exactly what logs has. If the clients were recorded, the judge decides.
func (c *cluster) checkSame(t *testing.T, logs map[int][]*nats.Msg) {
	t.Helper()
	c.awaitPlaced()
	client := c.dial(c.nodes[0].name)
	digests := map[int]string{}
	var want strings.Builder // of each report
	for _, partition := range slices.Sorted(maps.Keys(logs)) {
		info := mustInfo(t, client, partition)
		c.awaitMark(client, partition, info.HighWaterMark)
		if int(info.HighWaterMark) != len(logs[partition]) {
			t.Errorf("info has the high-water mark %d, there are %d transactions", info.HighWaterMark, len(logs[partition]))
		}
		digests[partition] = info.Digest
		fmt.Fprintf(&want, "%d: %d %.12s whole\n", partition, info.HighWaterMark, info.Digest)
	}
	client.Conn.Close()
	c.stopAll()
	first := ""
	for _, n := range c.nodes {
		code, stdout, stderr := cantus(t, "verify", n.dir)
		if code != 0 {
			t.Fatalf("verify node %s: exit %d\n%s%s", n.name, code, stdout, stderr)
		}
		report := verifiedOf(t, stdout)
		if first == "" {
			first = report
		}
		if report != first {
			t.Errorf("node %s holds\n%snode %s holds\n%s", n.name, report, c.nodes[0].name, first)
		}
		for line := range strings.Lines(want.String()) {
			if !strings.Contains(report, line) {
				t.Errorf("info said\n%snode %s holds\n%s", line, n.name, report)
			}
		}
	}
	c.checkAlone(t, logs, digests)
	if c.recorder != nil {
		c.judge(t)
	}
}

// verifiedOf reduces the output of verify to what replicas have in common: the
// last txid and the digest of each partition.
func verifiedOf(t *testing.T, stdout string) string {
	t.Helper()
	var report strings.Builder
	for _, row := range strings.Split(strings.TrimSpace(stdout), "\n")[1:] {
		var partition, first, last, transactions, entries int
		var size, unit, digest, state string
		if _, err := fmt.Sscan(row, &partition, &first, &last, &transactions, &entries, &size, &unit, &digest, &state); err != nil {
			t.Fatalf("verify says %q: %v", row, err)
		}
		fmt.Fprintf(&report, "%d: %d %.12s %s\n", partition, last, digest, state)
	}
	return report.String()
}

// checkAlone reads the replicas of each node while it reaches no other. The
// nodes run at once, if they can be kept from each other by their addresses:
// each waits for others at first.
func (c *cluster) checkAlone(t *testing.T, logs map[int][]*nats.Msg, digests map[int]string) {
	t.Helper()
	if c.wires == nil && c.spaces == nil {
		for _, n := range c.nodes {
			defer func(args []string) { n.args = args }(n.args)
			n.args = replaceFlag(replaceFlag(n.args, "--cluster", ports.Free(t)), "--routes", ports.Free(t))
			if err := n.launch(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, n := range c.nodes {
		if c.wires != nil || c.spaces != nil {
			if err := n.launch(); err != nil {
				t.Fatal(err)
			}
		}
		alone := dial(t, n.url, nats.RetryOnFailedConnect(true))
		for partition, want := range logs {
			got := c.drainAlone(t, n, alone, partition, want)
			if c.recorder != nil {
				c.recorder.Drained(n.name, partition, 1, digests[partition], got)
			}
		}
		alone.Conn.Close()
		n.kill()
	}
}

// replaceFlag returns arguments with another value of a flag, which must be
// among them once.
func replaceFlag(args []string, flag, value string) []string {
	i := slices.Index(args, flag)
	return slices.Concat(args[:i+1], []string{value}, args[i+2:])
}

// drainAlone reads a replica of a node that runs alone. It must have exactly
// what want has.
func (c *cluster) drainAlone(t *testing.T, n *node, alone *workload.Client, partition int, want []*nats.Msg) (got []*nats.Msg) {
	t.Helper()
	if err := c.until(t.Context(), "drained", func(ctx context.Context) string {
		msgs, end, refused, err := alone.ReadFrom(ctx, "replica.read", partition, map[string]any{"from": len(got) + 1, "max_bytes": 8 << 20, "max": 65536})
		if err != nil || refused != nil {
			return fmt.Sprintf("%v %v", refused, err)
		}
		got = append(got, msgs...)
		if len(got) < len(want) {
			return fmt.Sprintf("%d of %d there, high-water mark %d", len(got), len(want), end.HighWaterMark)
		}
		return ""
	}); err != nil {
		t.Fatalf("node %s: %v", n.name, err)
	}
	for i, m := range got {
		if i >= len(want) || string(m.Data) != string(want[i].Data) || fmt.Sprint(m.Header) != fmt.Sprint(want[i].Header) {
			t.Fatalf("node %s, txid %d: %v %s differs from the leader's", n.name, i+1, m.Header, m.Data)
		}
	}
	return got
}
