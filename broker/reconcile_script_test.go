package broker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/cantuslog/cantus/raftstore"
)

// TestReconcileScripts runs testdata/reconcile/*.txt; -rewrite writes what is
// printed into the files. The first line of a block is a directive, and so is
// each other one up to ----. The directives:
//
//	group leader=NODE voters=(…) [learners=(…)]  the members that the group has
//	want voters=(…) [learners=(…)]               those that it is to have; the first is to lead
//	node NAME [behind=N] [empty] [fenced] [ordered] [fresh]  NAME is up and reports its replica
//	down NAME                                    NAME is not up
//	silent NAME                                  NAME was up a moment ago, and does not reply to its leader
//	early, late                                  whether a transfer for balance is too early
//	fail                                         the next change is not carried out
//	step                                         take one step
//	run                                          take steps until there is none
//
// A replica that is empty has applied nothing; for one that is ordered an
// operator has asked for a rebuild; a node that is fresh has not
// been up for long. Steps print what they do, and at last the members: voters,
// then learners in brackets, and the leader with a star.
func TestReconcileScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/reconcile", func(t *testing.T, path string) {
		s := &reconcileScript{t: t}
		datadriven.RunTest(t, path, scriptBlock(&s.out, s.run))
	})
}

type reconcileScript struct {
	t    *testing.T
	want desiredGroup
	// members are those of the group, and whether they vote.
	members map[string]bool
	reports map[string]groupReport
	fresh   map[string]bool
	silent  map[string]bool
	early   bool
	fail    bool // the next change
	out     strings.Builder
}

// scriptBlock returns what runs a block of a script: run is called with the
// first line's directive, and with each of the input. It returns what they
// wrote to out.
func scriptBlock(out *strings.Builder, run func(*datadriven.TestData)) func(*testing.T, *datadriven.TestData) string {
	return func(t *testing.T, d *datadriven.TestData) string {
		out.Reset()
		run(d)
		for line := range strings.SplitSeq(d.Input, "\n") {
			cmd, args, err := datadriven.ParseLine(line)
			if err != nil {
				d.Fatalf(t, "%v", err)
			}
			if cmd != "" {
				run(&datadriven.TestData{Pos: d.Pos + ", " + line, Cmd: cmd, CmdArgs: args})
			}
		}
		return out.String()
	}
}

func (s *reconcileScript) run(d *datadriven.TestData) {
	switch d.Cmd {
	case "group":
		*s = reconcileScript{t: s.t, members: s.votes(d), reports: map[string]groupReport{}, fresh: map[string]bool{}, silent: map[string]bool{}}
		d.ScanArgs(s.t, "leader", &s.want.self)
	case "want":
		var voters []string
		d.ScanArgs(s.t, "voters", &voters)
		s.want.voters, s.want.preferred = s.votes(d), voters[0]
	case "node":
		name, r := d.CmdArgs[0].Key, groupReport{Applied: 1}
		d.MaybeScanArgs(s.t, "behind", &r.behind)
		if d.HasArg("empty") {
			r.Applied = 0
		}
		if d.HasArg("fenced") {
			r.Fenced = "another log"
		}
		if d.HasArg("ordered") {
			r.Fenced = toBeRebuilt
		}
		s.reports[name], s.fresh[name], s.silent[name] = r, d.HasArg("fresh"), false
	case "down":
		delete(s.reports, d.CmdArgs[0].Key)
	case "silent":
		s.silent[d.CmdArgs[0].Key] = true
	case "early", "late":
		s.early = d.Cmd == "early"
	case "fail":
		s.fail = true
	case "step":
		s.step()
		s.print()
	case "run":
		for n := 0; !s.step(); n++ {
			if n == 20 {
				d.Fatalf(s.t, "it does not come to an end:\n%s", s.out.String())
			}
		}
		s.print()
	default:
		d.Fatalf(s.t, "no directive %q", d.Cmd)
	}
}

// votes returns the members that arguments name, and whether they vote.
func (s *reconcileScript) votes(d *datadriven.TestData) map[string]bool {
	var voters, learners []string
	d.ScanArgs(s.t, "voters", &voters)
	d.MaybeScanArgs(s.t, "learners", &learners)
	all := map[string]bool{}
	for _, name := range voters {
		all[name] = true
	}
	for _, name := range learners {
		all[name] = false
	}
	return all
}

func (s *reconcileScript) step() (done bool) {
	w := s.want
	w.group = s
	w.report = func(name string) (groupReport, bool) { r, up := s.reports[name]; return r, up }
	w.steady = func(name string) bool { return !s.fresh[name] }
	w.mayTransfer = func() bool { return !s.early }
	w.transfer = func(_ context.Context, to string) error {
		return s.change("transfer to", to, func() { s.want.self = to })
	}
	done, err := w.step(s.t.Context())
	if err != nil {
		fmt.Fprintf(&s.out, "%v\n", err)
	}
	return done || err != nil
}

func (s *reconcileScript) print() {
	var voters, learners []string
	for _, name := range slices.Sorted(maps.Keys(s.members)) {
		switch {
		case name == s.want.self && s.members[name]:
			voters = append(voters, name+"*")
		case s.members[name]:
			voters = append(voters, name)
		default:
			learners = append(learners, name)
		}
	}
	fmt.Fprintf(&s.out, "%s", strings.Join(voters, " "))
	if len(learners) > 0 {
		fmt.Fprintf(&s.out, " (%s)", strings.Join(learners, " "))
	}
	s.out.WriteByte('\n')
}

// change carries out a change of the group.
func (s *reconcileScript) change(what, name string, do func()) error {
	fmt.Fprintf(&s.out, "%s %s\n", what, name)
	if s.fail {
		s.fail = false
		return errors.New("it failed")
	}
	do()
	return nil
}

// The methods below are those of a group that desiredGroup uses.

func (s *reconcileScript) Status() raftstore.Status {
	status := raftstore.Status{State: "leader"}
	for name, vote := range s.members {
		status.Replicas = append(status.Replicas, raftstore.Replica{Name: name, Voter: vote})
	}
	return status
}

func (s *reconcileScript) AddReplica(_ context.Context, name string) error {
	return s.change("add", name, func() { s.members[name] = false })
}

func (s *reconcileScript) Promote(_ context.Context, name string) error {
	return s.change("promote", name, func() { s.members[name] = true })
}

func (s *reconcileScript) Demote(_ context.Context, name string) error {
	return s.change("demote", name, func() { s.members[name] = false })
}

func (s *reconcileScript) Remove(_ context.Context, name string) error {
	return s.change("remove", name, func() { delete(s.members, name) })
}

func (s *reconcileScript) Reachable(name string) bool { return !s.silent[name] }
