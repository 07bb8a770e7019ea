package sim_test

import (
	"slices"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/sim"
)

func TestASchedulePrintsAsAScript(t *testing.T) {
	kinds := map[sim.Kind]bool{}
	for seed := range uint64(50) {
		s := sim.NewSchedule(seed, sim.Names(3), 10*time.Second, 500*time.Millisecond, sim.AllWeights)
		if again := sim.NewSchedule(seed, sim.Names(3), 10*time.Second, 500*time.Millisecond, sim.AllWeights); !slices.Equal(again, s) {
			t.Errorf("seed %d: %v, and then %v", seed, s, again)
		}
		parsed, err := sim.ParseSchedule("# a comment\n\n" + s.String())
		if err != nil || !slices.Equal(parsed, s) {
			t.Errorf("%v\n%s\nis read as\n%s", err, s, parsed)
		}
		for _, f := range s {
			kinds[f.Kind] = true
		}
	}
	if len(kinds) != len(sim.AllWeights) {
		t.Errorf("50 schedules have %d kinds of faults: %v", len(kinds), kinds)
	}
	for _, bad := range []string{"1s", "soon kill n1", "1s explode n1", "1s kill n1 for ever"} {
		if s, err := sim.ParseSchedule(bad); err == nil {
			t.Errorf("%q is read as %v", bad, s)
		}
	}
}

// FuzzSchedule reads a script of faults. What is read prints as a script that
// reads the same.
func FuzzSchedule(f *testing.F) {
	f.Add("1.5s block leader n2 for 300ms\n# a comment\n\n2s blackout\n")
	f.Add("1s stall for 1s\n1s stall n1 n2 n3 for\n")
	f.Add("-1s trim n1\n")
	f.Fuzz(func(t *testing.T, script string) {
		s, err := sim.ParseSchedule(script)
		if err != nil {
			return
		}
		again, err := sim.ParseSchedule(s.String())
		if err != nil || again.String() != s.String() {
			t.Fatalf("%q became %q, %v", s, again, err)
		}
	})
}
