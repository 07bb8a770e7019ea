package broker

import (
	"slices"
	"testing"

	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/wal"
)

// A leader counts only on voters that it hears and reaches, and that have
// caught up and have its log.
func TestALeaderCountsOnVotersThatHaveCaughtUp(t *testing.T) {
	t.Parallel()
	report := groupReport{Applied: 1000, behind: maxLag}
	with := func(change func(*groupReport)) groupReport {
		r := report
		change(&r)
		return r
	}
	reports := map[string]groupReport{
		"behind":      with(func(r *groupReport) { r.behind++ }),
		"cut off":     report,
		"empty":       with(func(r *groupReport) { r.Applied = 0 }),
		"fenced":      with(func(r *groupReport) { r.Fenced = "another log" }),
		"halted":      with(func(r *groupReport) { r.Halted = true }),
		"caught up":   report,
		"without one": report,
	}
	var replicas []raftstore.Replica
	for _, name := range []string{"away", "behind", "caught up", "cut off", "empty", "fenced", "halted", "leader", "without one"} {
		replicas = append(replicas, raftstore.Replica{Name: name, Voter: name != "without one"})
	}
	got := votersCaughtUp(replicas, "leader", func(name string) (groupReport, bool) { r, ok := reports[name]; return r, ok },
		func(name string) bool { return name != "cut off" })
	if !slices.Equal(got, []string{"caught up", "leader"}) {
		t.Errorf("it counts on %q", got)
	}
}

// A replica with another log than its leader's has not caught up, even if all
// its entries have the terms of the leader's.
func TestAReplicaHasCaughtUpWithItsOwnLog(t *testing.T) {
	t.Parallel()
	own, leader := groupReport{Applied: 5, Commit: 5, Txid: 2}, groupReport{Commit: 5 + maxLag}
	for name, c := range map[string]struct {
		own, leader groupReport
		compared    comparison
		want        bool
	}{
		"its leader's log":           {own, leader, equal, true},
		"an empty log":               {groupReport{Applied: 5, Commit: 5}, leader, nothing, true},
		"a log of nothing in common": {own, leader, nothing, false},
		"another log":                {own, leader, different, false},
		"behind its leader":          {own, groupReport{Commit: 6 + maxLag}, equal, false},
		"behind what it has":         {groupReport{Applied: 4, Commit: 5}, leader, equal, false},
		"nothing known as committed": {groupReport{}, groupReport{}, nothing, false},
	} {
		if got := hasCaughtUp(c.own, c.leader, c.compared); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// A leader that serves has every committed entry. One that reports less lacks
// what this replica had applied; a single report may be an old one.
func TestALeaderThatLacksCommittedEntries(t *testing.T) {
	t.Parallel()
	report := groupReport{State: "leader", Serves: true, Term: 4, Commit: 15}
	for name, c := range map[string]struct {
		first, second groupReport
		by            string // sends the first
		want          bool
	}{
		"it lacks them":             {report, report, "n2", true},
		"it has them now":           {report, groupReport{State: "leader", Serves: true, Term: 4, Commit: 32}, "n2", false},
		"it does not serve yet":     {report, groupReport{State: "leader", Term: 4, Commit: 15}, "n2", false},
		"the first is of its past":  {groupReport{State: "leader", Serves: true, Term: 3, Commit: 15}, report, "n2", false},
		"the first is from another": {report, report, "n3", false},
	} {
		f := fencing{self: "n1", digests: &digests{}}
		f.digests.begin(wal.Base{Txid: 25}, 32)
		if why := f.contradiction(c.by, c.first); why != "" {
			t.Errorf("%s: one report is enough: %s", name, why)
		}
		if why := f.contradiction("n2", c.second); (why != "") != c.want {
			t.Errorf("%s: %q", name, why)
		}
	}
}
