package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/subjects"
)

// The progress of a replica that is away is not known: no position is shown.
func TestReplicaList(t *testing.T) {
	t.Parallel()
	got := replicaList([]subjects.ReplicaStatus{
		{Name: "n1", State: "leader", Voter: true, HighWaterMark: 7},
		{Name: "n2", State: "follower", HighWaterMark: 5},
		{Name: "n3", State: "away", Voter: true},
		{Name: "n4", State: "follower", Voter: true, HighWaterMark: 6, Fenced: "its log differs"},
	})
	if want := "n1:7+ n2:5 n3+ (away) n4:6+ (fenced)"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// Operators look up what a column means.
func TestColumnsAreExplained(t *testing.T) {
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := printCluster(&b, subjects.ClusterStatus{}); err != nil {
		t.Fatal(err)
	}
	columns := regexp.MustCompile(`[A-Z]+( [A-Z]+)*`).FindAllString(regexp.MustCompile(`(?m)^(NODE|PARTITION) .*$`).FindString(b.String())+"  "+
		regexp.MustCompile(`(?m)^PARTITION .*$`).FindString(b.String()), -1)
	if len(columns) != 13 {
		t.Fatalf("%q", columns)
	}
	for _, c := range columns {
		if !regexp.MustCompile("(?m)^\\| (`[A-Z ]+`, )?`" + c + "`").Match(page) {
			t.Errorf("docs/operations.md does not explain the column %s", c)
		}
	}
}

// Both the node and the partition show what is full.
func TestStatusSaysWhatIsFull(t *testing.T) {
	t.Parallel()
	const why = "less than 256 MiB are free on the node's disk: nothing is appended until there is room"
	var b strings.Builder
	if err := printCluster(&b, subjects.ClusterStatus{
		Nodes:      []subjects.NodeStatus{{Name: "n1", State: "member", Alive: true, Ready: true, StorageFull: true}, {Name: "n2", State: "member", Alive: true, Ready: true}},
		Partitions: []subjects.PartitionStatus{{Partition: 0, Leader: "n1", StorageFull: why}, {Partition: 1, Leader: "n2"}},
	}); err != nil {
		t.Fatal(err)
	}
	one := status{Partitions: []subjects.PartitionInfo{{Partition: 0, Leader: "n1", StorageFull: why}, {Partition: 1, Leader: "n2"}}}
	if err := one.print(&b); err != nil {
		t.Fatal(err)
	}
	if text := b.String(); strings.Count(text, "partition 0 refuses appends: "+why) != 2 || strings.Contains(text, "partition 1 refuses") || strings.Count(text, "disk full") != 1 {
		t.Error(text)
	}
}

// A cluster of fewer nodes than replicas lacks nodes, not replicas.
func TestReplicasOf(t *testing.T) {
	t.Parallel()
	member := func(n int) []subjects.NodeStatus { return make([]subjects.NodeStatus, n) }
	for want, s := range map[string]subjects.ClusterStatus{
		"1 replica per partition":                                {Replicas: 1, Nodes: member(1), Partitions: []subjects.PartitionStatus{{Replicas: make([]subjects.ReplicaStatus, 1)}}},
		"1 replica per partition (3 once 3 nodes can hold them)": {Replicas: 3, Nodes: member(1), Partitions: []subjects.PartitionStatus{{Replicas: make([]subjects.ReplicaStatus, 1)}}},
		"2 of 3 replicas per partition":                          {Replicas: 3, Nodes: member(3), Partitions: []subjects.PartitionStatus{{Replicas: make([]subjects.ReplicaStatus, 3)}, {Replicas: make([]subjects.ReplicaStatus, 2)}}},
		"3 replicas per partition":                               {Replicas: 3, Nodes: member(4), Partitions: []subjects.PartitionStatus{{Replicas: make([]subjects.ReplicaStatus, 3)}}},
	} {
		for i := range s.Nodes {
			s.Nodes[i].State = "member"
		}
		if got := replicasOf(s); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// A node that is away can't lead the partitions that prefer it. Otherwise a
// command with --wait that adds a node in its place would never end.
func TestPlacedWithANodeAway(t *testing.T) {
	t.Parallel()
	cluster := func(leader string, n3 bool) subjects.ClusterStatus {
		return subjects.ClusterStatus{
			Nodes: []subjects.NodeStatus{{Name: "n1", Alive: true}, {Name: "n2", Alive: true}, {Name: "n3", Alive: n3}, {Name: "n4", Alive: true}},
			Partitions: []subjects.PartitionStatus{{
				Leader: leader, Placement: []string{"n3", "n1", "n2"},
				Replicas: []subjects.ReplicaStatus{{Name: "n1", Voter: true}, {Name: "n2", Voter: true}, {Name: "n3", Voter: true}},
			}},
		}
	}
	for _, c := range []struct {
		leader string
		alive  bool
		want   bool
	}{{"n1", false, true}, {"", false, false}, {"n1", true, false}, {"n3", true, true}} {
		if got := placed(cluster(c.leader, c.alive)); got != c.want {
			t.Errorf("led by %q, n3 alive %v: %v, want %v", c.leader, c.alive, got, c.want)
		}
	}
}
