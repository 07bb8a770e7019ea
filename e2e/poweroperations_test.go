//go:build powercut && linux

package e2e_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/powercut"
	"github.com/cantuslog/cantus/internal/testkit"
)

var (
	powerCuts = flag.Int("power-cuts", 0, "how often TestClusterPowerFailsDuringOperations cuts the power; 0 is once for each operation, at full length 100 times")
	powerSeed = flag.Uint64("power-seed", 0, "the seed of its choices; 0 is a random one")
)

// TestClusterPowerFailsDuringOperations cuts the power of one node, of two, or
// of all while an operation is under way and clients ask for everything. The
// operations take turns: a trim, a transfer of leadership, a node that stops, a
// node that starts, a node that is added, a replica that is moved, a node that
// is removed. A cut counts if the operation had begun and had not ended. The
// test ends in the judge. It needs root and loop devices.
func TestClusterPowerFailsDuringOperations(t *testing.T) {
	seed, cuts := *powerSeed, *powerCuts
	if seed == 0 {
		seed = rand.Uint64N(1 << 32)
	}
	if cuts == 0 {
		cuts = testkit.Sized(len(powerOperations), len(powerOperations), 100)
	}
	t.Logf("again: go test -tags powercut ./e2e -run '^%s$' -v -args -power-cuts %d -power-seed %d", t.Name(), cuts, seed)
	const partitions = 2
	window := 5 * time.Second // a trim passes what is older
	f := &powerless{disks: map[string]*powercut.Disk{}, took: map[string]time.Duration{}}
	c := &cluster{
		tb: t, common: []string{"--partitions", fmt.Sprint(partitions), "--msg-id-window", window.String(), "--locks", "1000"}, routes: map[string]string{},
		disks: func(name string) string {
			f.disks[name] = powercut.New(t, "4G")
			return filepath.Join(f.disks[name].Mount, "data")
		},
	}
	c.found(3)
	c.record(partitions, 3, window, 1000)
	c.startAll()
	c.awaitPlaced()
	m := startMix(c, partitions, seed)
	f.faulty = &faulty{cluster: c, mix: m, t: t, Rand: rand.New(rand.NewPCG(seed, 1<<32)), watcher: c.dial(c.nodes[0].name)}
	for done := 0; done < cuts; {
		for _, op := range powerOperations {
			if f.round(op) {
				done++
			}
		}
	}
	m.End()
	c.awaitPlaced()
	c.judgeAlone(t, partitions)
}

// powerless is a cluster whose nodes each have a disk that can lose its power.
type powerless struct {
	*faulty
	disks  map[string]*powercut.Disk
	fourth *node                    // the node that is added and removed; nil while it is not there
	took   map[string]time.Duration // how long each operation took when nothing was cut
}

// powerOperation is an operation during which the power is cut.
type powerOperation struct {
	name string
	// prepare does what has to be done before, and returns the operation.
	prepare func(*powerless) (run func() error, err error)
	// complete, if not nil, completes the operation after a cut.
	complete func(*powerless) error
}

var powerOperations = []powerOperation{
	{"a trim", (*powerless).trimming, nil},
	{"a transfer", (*powerless).transferring, nil},
	{"a stop", (*powerless).stopping, nil},
	{"a start", (*powerless).starting, nil},
	{"an addition", (*powerless).adding, (*powerless).added},
	{"a move", (*powerless).moving, nil},
	{"a removal", (*powerless).removing, (*powerless).removed},
}

// round carries out an operation and cuts the power meanwhile. It reports
// whether the operation was under way then. The first round of an operation
// cuts nothing, and measures how long it takes.
func (f *powerless) round(op powerOperation) bool {
	f.t.Helper()
	fail := func(err error) {
		if err != nil {
			f.t.Helper()
			f.t.Fatalf("%s: %v", op.name, err)
		}
	}
	fail(f.mix.reach(f.t.Context(), 20+f.IntN(200)))
	run, err := op.prepare(f)
	fail(err)
	usual, measured := f.took[op.name]
	began, done := time.Now(), make(chan error, 1)
	go func() { done <- run() }()
	if !measured {
		fail(<-done)
		f.took[op.name] = time.Since(began)
		fail(f.startEnded())
		f.await(op)
		return false
	}
	after := time.Duration(f.Int64N(int64(usual)))
	victims := slices.Clone(f.nodes)
	f.Shuffle(len(victims), func(i, k int) { victims[i], victims[k] = victims[k], victims[i] })
	victims = victims[:[]int{1, 2, len(victims)}[f.IntN(3)]]
	underWay := true
	select {
	case err := <-done:
		underWay = false
		done <- err
	case <-time.After(after):
	}
	var names []string
	for _, n := range victims {
		names = append(names, n.name)
		// A sync during the cut returns nil here, and the node would acknowledge
		// what it then loses. When the power really fails, no node is left to do
		// that.
		if err := f.pauseThreads(n); !errors.Is(err, os.ErrProcessDone) {
			fail(err)
		}
		f.disks[n.name].Cut()
	}
	for _, n := range victims {
		n.kill()
		f.disks[n.name].Return()
	}
	err = f.startEnded()
	what := <-done // an operation may fail when the power does
	fail(errors.Join(err, f.startEnded()))
	f.t.Logf("%s: the power of %s failed after %v, under way: %t, %v", op.name, strings.Join(names, ", "), time.Since(began).Round(time.Millisecond), underWay, what)
	f.await(op)
	return underWay
}

// startEnded starts the nodes that have ended. A node that was removed ends by
// itself, soon or at once.
func (f *powerless) startEnded() error {
	var err error
	for _, n := range f.nodes {
		select {
		case <-n.running().done:
			n.unready()
			err = errors.Join(err, n.launch())
		default:
		}
	}
	return err
}

// await waits until the cluster has carried out what it has decided.
func (f *powerless) await(op powerOperation) {
	f.t.Helper()
	for _, n := range f.nodes {
		if n != f.fourth { // op.complete waits for that one
			f.awaitServing(op, n)
		}
	}
	if op.complete != nil {
		if err := op.complete(f); err != nil {
			f.t.Fatalf("%s: %v", op.name, err)
		}
	}
	if f.fourth != nil {
		f.awaitServing(op, f.fourth)
	}
	if err := f.until(f.t.Context(), "placed", func(ctx context.Context) string {
		s, err := statusOf(ctx, f.watcher)
		if err != nil {
			return err.Error()
		}
		return s.unplaced()
	}); err != nil {
		f.t.Fatalf("%s: %v", op.name, err)
	}
}

// awaitServing waits until a node serves, unless it does.
func (f *powerless) awaitServing(op powerOperation, n *node) {
	f.t.Helper()
	select {
	case <-n.serving():
	default:
		if err := n.awaitReady(); err != nil {
			s, statusErr := statusOf(f.t.Context(), f.watcher)
			f.t.Fatalf("%s: %v\n%+v %v", op.name, err, s, statusErr)
		}
	}
}

// unplaced describes what is not in its place yet, "" if all is. It does not
// mind replicas that lag.
func (s clusterStatus) unplaced() string {
	for _, n := range s.Nodes {
		if !n.Alive || !n.Ready {
			return n.Name + ": " + n.Unready
		}
	}
	for _, p := range s.Partitions {
		for _, r := range p.Replicas {
			if r.Fenced != "" || r.State == "away" || !r.Voter || !slices.Contains(p.Placement, r.Name) {
				return fmt.Sprintf("partition %d: %+v", p.Partition, r)
			}
		}
		if len(p.Replicas) != len(p.Placement) || p.Leader != p.Placement[0] {
			return fmt.Sprintf("partition %d: %+v", p.Partition, p)
		}
	}
	return ""
}

func (f *powerless) trimming() (func() error, error) {
	client := f.dial(f.anyNode().name)
	p := f.IntN(2)
	before := 1 + f.Uint64N(f.mix.Mark(p)+1)
	return func() error {
		defer client.Conn.Close()
		_, err := client.Trim(f.t.Context(), p, before)
		return err
	}, nil
}

func (f *powerless) transferring() (func() error, error) {
	p := f.IntN(2)
	leader, err := f.leader(f.t.Context(), f.watcher, p)
	if err != nil {
		return nil, err
	}
	to := f.others(leader)[f.IntN(2)].name
	return func() error { return f.operate("transfer", fmt.Sprint(p), "--to", to) }, nil
}

func (f *powerless) stopping() (func() error, error) { return f.anyNode().stop, nil }

func (f *powerless) starting() (func() error, error) {
	n := f.anyNode()
	if err := n.stop(); err != nil {
		return nil, err
	}
	return n.awaitReady, n.launch()
}

func (f *powerless) adding() (func() error, error) {
	fresh := f.prepare("n4")
	if err := fresh.launch(); err != nil {
		return nil, err
	}
	for _, n := range f.nodes {
		f.awaitHeard(f.t, "n4", n)
	}
	f.nodes, f.fourth = append(slices.Clone(f.nodes), fresh), fresh
	return func() error { return f.operate("add", "n4") }, nil
}

func (f *powerless) added() error {
	if member, err := f.isMember("n4"); err != nil || member {
		return err
	}
	return f.operate("add", "n4")
}

func (f *powerless) moving() (func() error, error) {
	s, err := statusOf(f.t.Context(), f.watcher)
	if err != nil {
		return nil, err
	}
	p := s.Partitions[f.IntN(2)]
	i := slices.IndexFunc(f.nodes, func(n *node) bool { return !slices.Contains(p.Placement, n.name) })
	if i < 0 {
		return nil, fmt.Errorf("no node is without a replica of partition %d: %v", p.Partition, p.Placement)
	}
	to, from := f.nodes[i].name, p.Placement[f.IntN(len(p.Placement))]
	return func() error { return f.operate("move", fmt.Sprint(p.Partition), "--from", from, "--to", to) }, nil
}

func (f *powerless) removing() (func() error, error) {
	return func() error { return f.operate("remove", "n4") }, nil
}

func (f *powerless) removed() error {
	member, err := f.isMember("n4")
	if err == nil && member {
		err = f.operate("remove", "n4")
	}
	if err != nil && strings.Contains(err.Error(), "is not a member") {
		err = nil // the status was older than the removal
	}
	n := f.fourth
	f.nodes, f.fourth = f.others(n), nil
	n.kill()
	return err
}

// isMember reports whether a node is in the cluster, once the status can be
// had.
func (f *powerless) isMember(name string) (member bool, err error) {
	err = f.until(f.t.Context(), "asked for members", func(ctx context.Context) string {
		s, err := statusOf(ctx, f.watcher)
		if err != nil {
			return err.Error()
		}
		member = false
		for _, n := range s.Nodes {
			member = member || n.Name == name && n.State != "waiting"
		}
		return ""
	})
	return member, err
}

// pauseThreads pauses a node, and returns when none of its process's threads
// runs any more: each is stopped, or in a system call that it does not return
// from.
func (f *powerless) pauseThreads(n *node) error {
	if err := n.pause(); err != nil {
		return err
	}
	pattern := fmt.Sprintf("/proc/%d/task/*/stat", n.running().cmd.Process.Pid)
	return f.until(f.t.Context(), n.name+" stopped", func(context.Context) string {
		threads, err := filepath.Glob(pattern)
		if err != nil {
			return err.Error()
		}
		for _, path := range threads {
			// The state is behind the name, which is in parentheses.
			if stat, err := os.ReadFile(path); err == nil && !strings.Contains("TtDZX", state(string(stat))) {
				return "a thread in state " + state(string(stat))
			}
		}
		return ""
	})
}

// state returns the letter of a thread's state in its stat file.
func state(stat string) string {
	_, rest, _ := strings.Cut(stat, ") ")
	return rest[:min(1, len(rest))]
}
