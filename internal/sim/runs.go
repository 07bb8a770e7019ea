package sim

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// The environment variables that choose what a simulation runs.
const (
	envSeed   = "CANTUS_SIM_SEED"   // runs this seed
	envRuns   = "CANTUS_SIM_RUNS"   // runs this many seeds, from CANTUS_SIM_SEED or 1 on
	envScript = "CANTUS_SIM_SCRIPT" // a file with a schedule that replaces the seed's
	envTrace  = "CANTUS_SIM_TRACE"  // if not empty, every event is printed
)

// Simulation is one run of a test.
type Simulation interface {
	// Run starts the cluster, injects the faults of a schedule, and judges. It
	// returns when everything has stopped.
	Run(context.Context, Schedule)
	Cluster() *Cluster
	// Summary says what the run has done.
	Summary() string
}

// Config says what a test simulates.
type Config struct {
	Runs    uint64                // seeds to run, unless the environment says otherwise
	Nodes   func(seed uint64) int // how many nodes a run has
	Length  time.Duration         // of the faults, in virtual time
	Spacing time.Duration         // the average time between two faults
	Weights Weights               // of the kinds of faults
	Package string                // of the test, to say how it is run again
	New     func(Options) Simulation
}

// Run runs a test's simulations, a subtest for each seed and each in a bubble
// of its own.
func Run(t *testing.T, c Config) {
	number := func(name string) uint64 {
		v := os.Getenv(name)
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil && v != "" {
			t.Fatalf("%s: %v", name, err)
		}
		return n
	}
	first, runs := number(envSeed), number(envRuns)
	if runs == 0 {
		if runs = c.Runs; first > 0 {
			runs = 1
		}
	}
	first = max(1, first)
	for seed := first; seed < first+runs; seed++ {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { c.run(t, seed) })
	}
}

// Bubble runs f in a bubble of package testing/synctest. Timers of one bubble
// must not be used in another or outside, and nats.go keeps some in a
// sync.Pool: Bubble empties it, before and after.
func Bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	empty := func() {
		runtime.GC()
		runtime.GC() // a pool keeps what the first collection finds for the second
	}
	empty()
	defer empty()
	synctest.Test(t, f)
}

func (c *Config) run(t *testing.T, seed uint64) {
	nodes := c.Nodes(seed)
	schedule := NewSchedule(seed, Names(nodes), c.Length, c.Spacing, c.Weights)
	if path := os.Getenv(envScript); path != "" {
		script, err := os.ReadFile(path)
		if err == nil {
			schedule, err = ParseSchedule(string(script))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	opts := Options{Seed: seed, Copies: slices.ContainsFunc(schedule, func(f Fault) bool { return f.Kind == Rollback })}
	for range nodes {
		opts.Dirs = append(opts.Dirs, t.TempDir())
	}
	if os.Getenv(envTrace) != "" {
		opts.Trace = func(line string) { fmt.Println(line) }
	}
	name := t.Name()
	// A panic on one of raft's goroutines ends the process: say before it in
	// which run.
	fmt.Println(name)
	Bubble(t, func(t *testing.T) {
		s := c.New(opts)
		began := time.Now()
		s.Run(t.Context(), schedule)
		for _, f := range s.Cluster().Failures() {
			t.Error(f)
		}
		t.Logf("%s; %v of virtual time", s.Summary(), time.Since(began))
		if t.Failed() {
			t.Logf("to run it again: %s=%d go test -run '^%s$' ./%s\nthe schedule:\n%s\nwhat happened:\n%s",
				envSeed, seed, strings.Split(name, "/")[0], c.Package, schedule, s.Cluster().Events())
		}
	})
}
