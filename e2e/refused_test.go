package e2e_test

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/ports"
	"github.com/cantuslog/cantus/internal/workload"
)

// undisturbed starts a cluster with writers, and checks at the end that the
// leaders are those of the beginning, and that no node has ended.
func undisturbed(t *testing.T, c *cluster, during func(*testing.T)) {
	t.Helper()
	l := startLoad(c, 2)
	client := c.dial(c.nodes[0].name)
	before := []workload.PartitionInfo{mustInfo(t, client, 0), mustInfo(t, client, 1)}
	during(t)
	for p, was := range before {
		if is := mustInfo(t, client, p); is.Leader != was.Leader || is.Term != was.Term {
			t.Errorf("partition %d was led by %s in term %d, and is by %s in term %d", p, was.Leader, was.Term, is.Leader, is.Term)
		}
	}
	for _, n := range c.nodes {
		select {
		case <-n.running().done:
			t.Errorf("node %s has ended", n.name)
		default:
		}
	}
	l.stop(t)
	l.check(t)
}

// steady are arguments of clusters in which no node should stand for election
// only because the machine is slow.
var steady = []string{"--partitions", "2", "--election-timeout", "3s", "--msg-id-window", "30m"}

// checkRejected starts a node, which must end with an error that has the words.
func checkRejected(t *testing.T, n *node, words ...string) {
	t.Helper()
	if err := n.launch(); err != nil {
		t.Fatal(err)
	}
	checkEnds(t, n.running(), words...)
}

// TestClusterRefusesForeignNodes starts nodes that can't belong to a cluster,
// while it serves.
func TestClusterRefusesForeignNodes(t *testing.T) {
	c := startCluster(t, 3, steady...)
	undisturbed(t, c, func(t *testing.T) {
		for _, s := range []struct {
			name  string
			start func(*testing.T)
		}{
			{"directory of another cluster", func(t *testing.T) {
				n := c.prepare("n4")
				alone := newNode(t, "n4", n.dir, "--name", "n4", "--cluster", ports.Free(t), "--bootstrap", "n4", "--partitions", "2")
				if err := alone.start(); err != nil {
					t.Fatal(err)
				}
				mustAppend(t, dial(t, alone.url), 0, "elsewhere")
				if err := alone.stop(); err != nil {
					t.Fatal(err)
				}
				checkRejected(t, n, `of the cluster "cantus" with id`, "this one's data directory belongs to one of that name with id")
			}},
			{"directory of a node alone", func(t *testing.T) {
				n := c.prepare("n4")
				alone := newNode(t, "n4", n.dir, "--name", "n4", "--partitions", "2")
				if err := alone.start(); err != nil {
					t.Fatal(err)
				}
				if err := alone.stop(); err != nil {
					t.Fatal(err)
				}
				checkRejected(t, n, "with id")
			}},
			{"name of a node that runs", func(t *testing.T) {
				checkRejected(t, c.sameName("n2"), `node`, `"n2"`)
			}},
			{"name of a node that runs, as a founder", func(t *testing.T) {
				checkRejected(t, c.sameName("n2", "--bootstrap", "n1,n2,n3"), "another", "n2")
			}},
			{"founder of an own cluster", func(t *testing.T) {
				checkRejected(t, c.prepare("n4", "--bootstrap", "n1,n2,n4"), "founded by n1,n2,n3")
			}},
			{"founder among others", func(t *testing.T) {
				checkRejected(t, c.prepare("n4", "--bootstrap", "n4,n5,n6"), "exists already, founded by n1,n2,n3", "without bootstrap")
			}},
			{"another number of partitions", func(t *testing.T) {
				n := c.prepare("n7", "--partitions", "7")
				n.args = without(n.args, "--partitions", "2")
				if err := n.launch(); err != nil {
					t.Fatal(err)
				}
				for _, other := range c.nodes {
					c.awaitHeard(t, "n7", other)
				}
				code, _, stderr := cantus(t, "cluster", "add", "n7", "--server", c.nodes[0].url)
				if code != 0 {
					t.Fatalf("add: exit %d\n%s", code, stderr)
				}
				checkEnds(t, n.running(), "the cluster has 2 partitions, not 7")
				c.operate(t, "remove", "n7")
			}},
			{"another cluster's name", func(t *testing.T) {
				n := c.prepare("n8", "--cluster-name", "other")
				if err := n.launch(); err != nil {
					t.Fatal(err)
				}
				c.awaitLog(t, n, `cluster name "cantus" does not match "other"`)
				n.kill()
			}},
		} {
			t.Run(s.name, s.start)
		}
	})
}

// sameName prepares a node with another's name, an empty directory and ports
// of its own.
func (c *cluster) sameName(name string, args ...string) *node {
	routes := c.routes[name]
	delete(c.routes, name)
	n := c.prepare(name, args...)
	c.routes[name] = routes
	return n
}

// without drops a flag and its value.
func without(args []string, flag, value string) (rest []string) {
	return strings.Split(strings.Replace("\x00"+strings.Join(args, "\x00")+"\x00", "\x00"+flag+"\x00"+value+"\x00", "\x00", 1), "\x00")[1 : len(args)-1]
}

// awaitLog waits until a node has logged a text.
func (c *cluster) awaitLog(t *testing.T, n *node, text string) {
	t.Helper()
	if err := c.until(t.Context(), fmt.Sprintf("logged %q", text), func(context.Context) string {
		if log := n.running().stderr.String(); !strings.Contains(log, text) {
			return log
		}
		return ""
	}); err != nil {
		t.Error(err)
	}
}

// TestClusterFounding starts founders that don't agree: nothing is founded
// until the wrong one is corrected.
func TestClusterFounding(t *testing.T) {
	for _, wrong := range []struct {
		name  string
		args  []string
		words string
	}{
		{"other founders", []string{"--bootstrap", "n2,n3", "--partitions", "2"}, "n2 has the founders n1,n2,n3, this node n2,n3"},
		{"other partitions", []string{"--bootstrap", "n1,n2,n3", "--partitions", "3"}, "n1 has 2 partitions, this node 3"},
		{"other replicas", []string{"--bootstrap", "n1,n2,n3", "--partitions", "2", "--replicas", "1"}, "n1 has 3 replicas, this node 1"},
	} {
		t.Run(wrong.name, func(t *testing.T) {
			c := newCluster(t, 3, "--partitions", "2")
			right := c.nodes[2]
			for _, n := range c.nodes[:2] {
				if err := n.launch(); err != nil {
					t.Fatal(err)
				}
			}
			bad := newNode(t, "n3", right.dir, append(onlyAddresses(right.args), wrong.args...)...)
			checkRejected(t, bad, "this node can't found the cluster", wrong.words)
			if err := right.launch(); err != nil {
				t.Fatal(err)
			}
			for _, n := range c.nodes {
				if err := n.awaitReady(); err != nil {
					t.Fatal(err)
				}
			}
			c.awaitPlaced()
			c.mustKeep(c.dial("n1"), 0, "founded")
		})
	}
}

// onlyAddresses drops the arguments for founding.
func onlyAddresses(args []string) (kept []string) {
	for i := 0; i < len(args); i += 2 {
		if args[i] != "--bootstrap" && args[i] != "--partitions" {
			kept = append(kept, args[i], args[i+1])
		}
	}
	return kept
}

// TestClusterFoundedOnce starts founders of a cluster once more: the same
// bootstrap list is ignored, another one is an error, and a founder that has
// lost its directory is not accepted as the node that it was.
func TestClusterFoundedOnce(t *testing.T) {
	c := startCluster(t, 3, "--partitions", "2", "--msg-id-window", "30m")
	client := c.dial("n1")
	c.mustKeep(client, 0, "first")
	c.stopAll()
	c.startAll()
	c.awaitPlaced()
	again := c.mustKeep(client, 0, "first")
	if again.Txid != 1 || !again.Duplicate {
		t.Errorf("founded once more, the first transaction is %v", again)
	}

	n := c.node("n3")
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	other := newNode(t, "n3", n.dir, append(onlyAddresses(n.args), "--bootstrap", "n3,n4,n5")...)
	checkRejected(t, other, "founded by n1,n2,n3, not by n3,n4,n5")
	empty := newNode(t, "n3", t.TempDir(), n.args...)
	checkRejected(t, empty, "whose data directory was another", "remove that node and add this one")
	joins := newNode(t, "n3", t.TempDir(), append(onlyAddresses(n.args), "--partitions", "2")...)
	checkRejected(t, joins, `a node "n3" with another data directory is a member of the cluster`)
	if err := n.start(); err != nil {
		t.Fatal(err)
	}
	c.awaitPlaced()
	c.mustKeep(client, 0, "second")
	log := drain(t, c.dial("n1"), 0)
	c.checkSame(t, map[int][]*nats.Msg{0: log})
}

var peakMemory = regexp.MustCompile(`VmHWM:\s+(\d+) kB`)

// peak returns the most memory that a process has had, in bytes; 0 where the
// system does not report it.
func (p *process) peak(t *testing.T) uint64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	found := peakMemory.FindSubmatch(status)
	if found == nil {
		t.Fatalf("no peak in %s", status)
	}
	kb, err := strconv.ParseUint(string(found[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kb << 10
}
