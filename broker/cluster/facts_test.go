package cluster_test

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/cantuslog/cantus/broker/cluster"
)

func founders(n int) map[string]string {
	all := map[string]string{}
	for i := range n {
		all[fmt.Sprintf("n%d", i+1)] = fmt.Sprintf("id%d", i+1)
	}
	return all
}

// checkFacts is the oracle: what must hold of all facts.
func checkFacts(t interface{ Fatalf(string, ...any) }, f cluster.Facts) {
	for p, names := range f.Placement {
		if len(names) == 0 || len(names) > f.Replicas {
			t.Fatalf("partition %d has the replicas %v, wanted are %d", p, names, f.Replicas)
		}
		for i, n := range names {
			if m, known := f.Nodes[n]; !known || m.Standby || slices.Contains(names[:i], n) {
				t.Fatalf("partition %d is on %v, members are %v", p, names, f.Nodes)
			}
		}
	}
}

func mustApply(t testing.TB, f *cluster.Facts, c cluster.Command, err error) {
	t.Helper()
	if err == nil {
		err = f.Apply(c)
	}
	if err != nil {
		t.Fatal(err)
	}
	checkFacts(t, *f)
}

func spread(counts map[string]int, nodes []string) int {
	low, high := 1<<30, 0
	for _, n := range nodes {
		low, high = min(low, counts[n]), max(high, counts[n])
	}
	return high - low
}

func TestFoundingSpreadsReplicasAndLeaders(t *testing.T) {
	for nodes := 1; nodes <= 7; nodes++ {
		for _, partitions := range []int{1, 4, 16, 17} {
			f := cluster.Bootstrap(founders(nodes), partitions, 3)
			checkFacts(t, f)
			replicas, leads := f.Sizes()
			if a, b := spread(replicas, f.Names()), spread(leads, f.Names()); a > min(3, nodes) || b > 1 {
				t.Errorf("%d nodes, %d partitions: replicas %v, leads %v", nodes, partitions, replicas, leads)
			}
		}
	}
}

func TestReplacingANodeMovesWhatItHad(t *testing.T) {
	f := cluster.Bootstrap(founders(3), 4, 3)
	c, err := f.Add("n4", cluster.Member{ID: "id4"})
	mustApply(t, &f, c, err)
	if replicas, _ := f.Sizes(); replicas["n4"] != 0 {
		t.Fatalf("a node that nobody needs got %d replicas", replicas["n4"])
	}
	c, err = f.Leave("n1")
	mustApply(t, &f, c, err)
	replicas, leads := f.Sizes()
	if replicas["n1"] != 0 || replicas["n4"] != 4 || leads["n1"] != 0 {
		t.Fatalf("replicas %v, leads %v", replicas, leads)
	}
	if spread(leads, []string{"n2", "n3", "n4"}) > 1 {
		t.Errorf("leads %v", leads)
	}
	mustApply(t, &f, f.Remove("n1"), nil)
	if got := f.Names(); !slices.Equal(got, []string{"n2", "n3", "n4"}) {
		t.Errorf("members are %v", got)
	}
}

func TestLeavingShrinksWhereNobodyElseIs(t *testing.T) {
	f := cluster.Bootstrap(founders(3), 4, 3)
	c, err := f.Leave("n2")
	mustApply(t, &f, c, err)
	for p, names := range f.Placement {
		if len(names) != 2 || slices.Contains(names, "n2") {
			t.Errorf("partition %d is on %v", p, names)
		}
	}
	mustApply(t, &f, f.Remove("n2"), nil)
	c, err = f.Add("n5", cluster.Member{ID: "id5"})
	mustApply(t, &f, c, err)
	for p, names := range f.Placement {
		if len(names) != 3 {
			t.Errorf("with three nodes again partition %d is on %v", p, names)
		}
	}
}

func TestTheLastNodeStays(t *testing.T) {
	f := cluster.Bootstrap(founders(1), 2, 3)
	if _, err := f.Leave("n1"); !errors.Is(err, cluster.ErrCommand) {
		t.Errorf("got %v", err)
	}
}

func TestDrainingTakesLeadershipAndWhatOthersCanTake(t *testing.T) {
	f := cluster.Bootstrap(founders(3), 3, 3)
	c, err := f.Drain("n1")
	mustApply(t, &f, c, err)
	replicas, leads := f.Sizes()
	if replicas["n1"] != 3 || leads["n1"] != 0 {
		t.Errorf("where nobody else is: replicas %v, leads %v", replicas, leads)
	}
	g := cluster.Bootstrap(founders(4), 4, 3)
	c, err = g.Drain("n1")
	mustApply(t, &g, c, err)
	if replicas, _ := g.Sizes(); replicas["n1"] != 0 {
		t.Errorf("where others are: replicas %v", replicas)
	}
	c, err = g.Undrain("n1")
	mustApply(t, &g, c, err)
	if c, uneven := g.Balance(); uneven {
		mustApply(t, &g, c, nil)
	}
	replicas, leads = g.Sizes()
	if spread(replicas, g.Names()) > 1 || spread(leads, g.Names()) > 1 {
		t.Errorf("balanced: replicas %v, leads %v", replicas, leads)
	}
}

func TestStandbysFollowEverythingAndVoteOnNothing(t *testing.T) {
	f := cluster.Bootstrap(founders(3), 4, 3)
	c, err := f.Add("n4", cluster.Member{ID: "id4", Standby: true})
	mustApply(t, &f, c, err)
	for p := range f.Placement {
		if !f.Hosts("n4", p) || !slices.Equal(f.Followers(p), []string{"n4"}) || slices.Contains(f.Voters(p), "n4") {
			t.Errorf("partition %d: voters %v, followers %v", p, f.Voters(p), f.Followers(p))
		}
	}
	if slices.Contains(f.MetaVoters(), "n4") {
		t.Errorf("%v vote on the facts", f.MetaVoters())
	}
	c, err = f.Promote("n4")
	mustApply(t, &f, c, err)
	if f.Hosts("n4", 0) {
		t.Error("an ordinary node that has no replica is said to host one")
	}
}

func TestCommandsThatMakeNoSense(t *testing.T) {
	f := cluster.Bootstrap(founders(4), 2, 3)
	away := ""
	for _, n := range f.Names() {
		if !slices.Contains(f.Voters(0), n) {
			away = n
		}
	}
	at := f.Voters(0)[0]
	for name, try := range map[string]func() (cluster.Command, error){
		"add a member":             func() (cluster.Command, error) { return f.Add("n1", cluster.Member{ID: "id1"}) },
		"add a name that is taken": func() (cluster.Command, error) { return f.Add("n1", cluster.Member{ID: "other"}) },
		"drain an unknown node":    func() (cluster.Command, error) { return f.Drain("n9") },
		"promote what is none":     func() (cluster.Command, error) { return f.Promote("n1") },
		"lead from outside":        func() (cluster.Command, error) { return f.Lead(0, away) },
		"lead nothing":             func() (cluster.Command, error) { return f.Lead(7, at) },
		"move from outside":        func() (cluster.Command, error) { return f.Move(0, away, at) },
		"move to where it is":      func() (cluster.Command, error) { return f.Move(0, at, f.Voters(0)[1]) },
		"move to an unknown node":  func() (cluster.Command, error) { return f.Move(0, at, "n9") },
		"place on an unknown node": func() (cluster.Command, error) {
			c := cluster.Command{Kind: cluster.Place, Placement: map[int][]string{0: {"n9"}}}
			return c, f.Apply(c)
		},
		"place nowhere": func() (cluster.Command, error) {
			c := cluster.Command{Kind: cluster.Place, Placement: map[int][]string{0: {}}}
			return c, f.Apply(c)
		},
		"remove what holds replicas": func() (cluster.Command, error) { c := f.Remove(at); return c, f.Apply(c) },
		"an unknown kind":            func() (cluster.Command, error) { c := cluster.Command{Kind: "x"}; return c, f.Apply(c) },
	} {
		if _, err := try(); !errors.Is(err, cluster.ErrCommand) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c, err := f.Lead(0, f.Voters(0)[1])
	mustApply(t, &f, c, err)
	if err := f.Apply(c); !errors.Is(err, cluster.ErrStale) {
		t.Errorf("a command for older facts: %v", err)
	}
}

// TestAnyOperationsKeepTheFactsWhole does random operations: the facts stay
// whole, two copies stay the same, an operation that fails changes nothing,
// and balance makes them even.
func TestAnyOperationsKeepTheFactsWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 6).Draw(t, "nodes")
		f := cluster.Bootstrap(founders(n), rapid.IntRange(1, 12).Draw(t, "partitions"), 3)
		g := f.Clone()
		for range rapid.IntRange(1, 20).Draw(t, "operations") {
			node := fmt.Sprintf("n%d", rapid.IntRange(1, 8).Draw(t, "node"))
			p := rapid.IntRange(0, len(f.Placement)-1).Draw(t, "partition")
			var c cluster.Command
			var err error
			switch rapid.SampledFrom([]string{"add", "standby", "drain", "undrain", "promote", "leave", "gone", "lead", "move", "balance"}).Draw(t, "operation") {
			case "add":
				c, err = f.Add(node, cluster.Member{ID: "id"})
			case "standby":
				c, err = f.Add(node, cluster.Member{ID: "id", Standby: true})
			case "drain":
				c, err = f.Drain(node)
			case "undrain":
				c, err = f.Undrain(node)
			case "promote":
				c, err = f.Promote(node)
			case "leave":
				c, err = f.Leave(node)
			case "gone":
				c = f.Remove(node)
			case "lead":
				c, err = f.Lead(p, node)
			case "move":
				c, err = f.Move(p, f.Placement[p][0], node)
			case "balance":
				c, _ = f.Balance()
			}
			before := f.Clone()
			if err == nil {
				err = f.Apply(c)
			}
			if err != nil && !reflect.DeepEqual(before, f) {
				t.Fatalf("%v has changed the facts", err)
			}
			if err == nil {
				if err := g.Apply(c); err != nil {
					t.Fatal(err)
				}
			}
			checkFacts(t, f)
			if !reflect.DeepEqual(f, g) {
				t.Fatalf("copies differ: %+v, %+v", f, g)
			}
		}
		if c, uneven := f.Balance(); uneven {
			if err := f.Apply(c); err != nil {
				t.Fatal(err)
			}
		}
		if _, uneven := f.Balance(); uneven {
			t.Fatal("balanced facts are said to be uneven")
		}
		var able []string
		for _, name := range slices.Sorted(maps.Keys(f.Nodes)) {
			if m := f.Nodes[name]; !m.Standby && !m.Draining && !m.Leaving {
				able = append(able, name)
			}
		}
		replicas, leads := f.Sizes()
		if len(able) > 0 && (spread(replicas, able) > 1 || spread(leads, able) > 1) {
			t.Fatalf("of %v: replicas %v, leads %v", able, replicas, leads)
		}
	})
}

func TestRecoverLeavesOneMemberWithAllPartitions(t *testing.T) {
	f := cluster.Bootstrap(founders(5), 4, 3)
	c, err := f.Drain("n4")
	mustApply(t, &f, c, err)
	mustApply(t, &f, cluster.Command{Kind: cluster.NoteStart, Node: "n2", Member: cluster.Member{ID: "id2"}, Start: cluster.Start{Number: 1}}, nil)
	was := f.Version
	past := []string{"bank", "bank-2"}
	mustApply(t, &f, cluster.Command{Kind: cluster.Recover, Node: "n4", Member: cluster.Member{ID: "other"}, PastNames: past}, nil)
	if want := map[string]cluster.Member{"n4": {ID: "other"}}; !maps.Equal(f.Nodes, want) || f.Version != was+1 || f.Replicas != 3 || len(f.Starts) != 0 ||
		!slices.Equal(f.PastNames, past) {
		t.Errorf("the facts are %+v", f)
	}
	for p, names := range f.Placement {
		if !slices.Equal(names, []string{"n4"}) {
			t.Errorf("partition %d is on %v", p, names)
		}
	}
}
