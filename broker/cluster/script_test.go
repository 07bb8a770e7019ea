package cluster_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/cantuslog/cantus/broker/cluster"
)

// TestScripts runs testdata/*.txt; -rewrite writes what is printed into the
// files. The first line of a block is a directive, and so is each other one up
// to ----. The directives:
//
//	found nodes=N partitions=N [replicas=N]  a new cluster of n1, n2, …
//	add NODE [standby]                       and so on: the operations of an
//	drain, undrain, promote NODE             administrator
//	leave NODE                               begin to remove a node
//	gone NODE                                remove a node that has left
//	lead partition=N to=NODE                 choose who is to lead
//	move partition=N from=NODE to=NODE       move a replica
//	balance                                  spread replicas and leaders
//	facts                                    print everything
//
// Each prints the partitions that change, with the node first that is to lead,
// or why it is refused.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		s := &script{t: t}
		datadriven.RunTest(t, path, s.block)
	})
}

type script struct {
	t *testing.T
	f cluster.Facts
}

func (s *script) block(t *testing.T, d *datadriven.TestData) string {
	out := s.run(d)
	for line := range strings.SplitSeq(d.Input, "\n") {
		cmd, args, err := datadriven.ParseLine(line)
		if err != nil {
			d.Fatalf(t, "%v", err)
		}
		if cmd != "" {
			out += s.run(&datadriven.TestData{Pos: d.Pos + ", " + line, Cmd: cmd, CmdArgs: args})
		}
	}
	return out
}

func (s *script) run(d *datadriven.TestData) string {
	switch d.Cmd {
	case "found":
		var nodes, partitions int
		replicas := 3
		d.ScanArgs(s.t, "nodes", &nodes)
		d.ScanArgs(s.t, "partitions", &partitions)
		d.MaybeScanArgs(s.t, "replicas", &replicas)
		s.f = cluster.Bootstrap(founders(nodes), partitions, replicas)
		checkFacts(s.t, s.f)
		return ""
	case "facts":
		return s.facts()
	}
	c, err := s.command(d)
	before := s.f.Clone()
	if err == nil {
		err = s.f.Apply(c)
	}
	if err != nil {
		return fmt.Sprintf("%v\n", err)
	}
	checkFacts(s.t, s.f)
	var b strings.Builder
	for p, names := range s.f.Placement {
		if !slices.Equal(names, before.Placement[p]) {
			fmt.Fprintf(&b, "%d: %s, was %s\n", p, strings.Join(names, " "), strings.Join(before.Placement[p], " "))
		}
	}
	return b.String()
}

// command returns what a directive asks for.
func (s *script) command(d *datadriven.TestData) (cluster.Command, error) {
	var partition int
	var from, to string
	d.MaybeScanArgs(s.t, "partition", &partition)
	d.MaybeScanArgs(s.t, "from", &from)
	d.MaybeScanArgs(s.t, "to", &to)
	switch d.Cmd {
	case "lead":
		return s.f.Lead(partition, to)
	case "move":
		return s.f.Move(partition, from, to)
	case "balance":
		c, _ := s.f.Balance()
		return c, nil
	}
	if len(d.CmdArgs) == 0 {
		d.Fatalf(s.t, "which node?")
	}
	switch node := d.CmdArgs[0].Key; d.Cmd {
	case "add":
		return s.f.Add(node, cluster.Member{ID: "id of " + node, Standby: d.HasArg("standby")})
	case "drain":
		return s.f.Drain(node)
	case "undrain":
		return s.f.Undrain(node)
	case "promote":
		return s.f.Promote(node)
	case "leave":
		return s.f.Leave(node)
	case "gone":
		return s.f.Remove(node), nil
	}
	d.Fatalf(s.t, "no directive %q", d.Cmd)
	return cluster.Command{}, nil
}

// facts returns everything, by node and by partition.
func (s *script) facts() string {
	var b strings.Builder
	replicas, leads := s.f.Sizes()
	for _, name := range s.f.Names() {
		fmt.Fprintf(&b, "%s: %d replicas, leads %d", name, replicas[name], leads[name])
		for _, is := range []struct {
			so   bool
			what string
		}{{s.f.Nodes[name].Standby, ", a standby"}, {s.f.Nodes[name].Draining, ", drains"}, {s.f.Nodes[name].Leaving, ", leaves"}} {
			if is.so {
				b.WriteString(is.what)
			}
		}
		b.WriteByte('\n')
	}
	for p := range s.f.Placement {
		fmt.Fprintf(&b, "%d: %s", p, strings.Join(s.f.Voters(p), " "))
		if followers := s.f.Followers(p); len(followers) > 0 {
			fmt.Fprintf(&b, ", followed by %s", strings.Join(followers, " "))
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "votes on the facts: %s\n", strings.Join(s.f.MetaVoters(), " "))
	return b.String()
}
