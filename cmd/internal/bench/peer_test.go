package bench

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

// newRun returns a run of a command with the defaults that kong would set; its
// servers end with the test.
func newRun(t *testing.T, c *Command) *benchRun {
	t.Helper()
	c.Prefix, c.VsClient, c.Dir = "cantus", "plain", t.TempDir()
	c.Partitions, c.Batch, c.Readers, c.Rounds, c.Kills = max(c.Partitions, 1), 10, 1, 1, max(c.Kills, 1)
	c.ReadMax, c.ReadBytes, c.Fill, c.Size, c.Duration = 10, 1000, -1, 64, time.Second
	w, err := c.workload()
	if err != nil {
		t.Fatal(err)
	}
	s := &benchRun{Command: c, workload: w, names: subjects.Names{Prefix: c.Prefix}, out: io.Discard, errOut: io.Discard}
	t.Cleanup(s.close)
	return s
}

// TestThreeJetstreamServersReplicate appends to streams of three replicas in
// every way that bench does.
func TestThreeJetstreamServersReplicate(t *testing.T) {
	t.Parallel()
	testkit.NotShort(t, "servers are started and measured")
	s := newRun(t, &Command{
		Workload: appendLoad, Nodes: 3, Partitions: 2, Locks: 2, Keys: 50, Conns: 4, InFlight: 4, Count: 100,
	})
	c, err := s.startJetstream(t.Context(), "default")
	if err != nil {
		t.Fatal(err)
	}
	peers, err := s.jetstream(t.Context(), c, "default", newPool("k", s.workload.Keys, 0))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range peers {
		names = append(names, p.name)
		sample, err := measure(t.Context(), task{p.name, 4, s.workload.Levels[0], 64, s.workload.limits}, p, p.clients[0], io.Discard)
		if err != nil {
			t.Fatalf("%s: %v", p.name, err)
		}
		if sample.Done != 100 || len(sample.Nodes) != 3 && sample.RSS > 0 {
			t.Errorf("%s: %d done, use of %d nodes; want 100, 3", p.name, sample.Done, len(sample.Nodes))
		}
	}
	want := "jetstream R3 default plain, jetstream R3 default expected, jetstream R3 default atomic"
	if got := strings.Join(names, ", "); got != want {
		t.Errorf("systems %s, want %s", got, want)
	}
	replicas(t, s, c)
	firstAtTheLeader(t, peers[0])
}

// replicas checks that a transaction of two locks is two messages, each on
// three replicas.
func replicas(t *testing.T, s *benchRun, c *cluster) {
	t.Helper()
	var stored uint64
	for _, name := range []string{"atomic0", "atomic1"} {
		n, err := s.messages(t.Context(), c, name)
		if err != nil {
			t.Fatal(err)
		}
		stored += n
	}
	if stored != 200 {
		t.Errorf("%d messages stored, want 2 for each of 100", stored)
	}
	for _, srv := range c.nodes {
		if srv.url == "" || srv.down() {
			t.Errorf("%s is not up", srv.name)
		}
	}
}

func firstAtTheLeader(t *testing.T, c *system) {
	t.Helper()
	name, err := c.leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.lead(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := nodeName(c.first); got != name || c.url(0) != c.nodes[c.first].url || c.url(1) == c.url(0) || c.url(3) != c.url(0) {
		t.Errorf("first connection to %s at %s, want the leader %s; the next ones elsewhere, and round", got, c.url(0), name)
	}
}

func TestNodesKnowEachOther(t *testing.T) {
	testkit.NotShort(t, "servers are started and measured")
	s := newRun(t, &Command{Workload: appendLoad, Nodes: 3, Keys: 1})
	all, err := s.nodeArgs("dir")
	if err != nil {
		t.Fatal(err)
	}
	flag := func(i int, name string) string {
		for at, a := range all[i] {
			if a == name {
				return all[i][at+1]
			}
		}
		return ""
	}
	seen := map[string]bool{}
	for i := range 3 {
		routes := flag(i, "--routes")
		for j := range 3 {
			if has := strings.Contains(routes, flag(j, "--cluster")); has != (i != j) {
				t.Errorf("node %d has routes %s, node %d is at %s", i, routes, j, flag(j, "--cluster"))
			}
		}
		for _, name := range []string{"--listen", "--cluster", "--raft", "--data", "--name"} {
			if v := flag(i, name); v == "" || seen[v] {
				t.Errorf("node %d: %s is %q; want one of its own", i, name, v)
			} else {
				seen[v] = true
			}
		}
		if flag(i, "--bootstrap") != "n1,n2,n3" || flag(i, "--name") != nodeName(i) {
			t.Errorf("node %d: --bootstrap %s --name %s", i, flag(i, "--bootstrap"), flag(i, "--name"))
		}
	}
}
