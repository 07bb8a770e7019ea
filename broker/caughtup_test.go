package broker

import (
	"slices"
	"testing"

	"github.com/cantuslog/cantus/raftstore"
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
