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

	"github.com/cantuslog/cantus/internal/judge"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/internal/workload"
)

var (
	faultsFor  = flag.Duration("faults-for", 0, "how long TestMixedFaults goes on; 0 is one short round")
	faultsSeed = flag.Uint64("faults-seed", 0, "the seed of TestMixedFaults' first round; 0 is a random one")
	underTest  = flag.String("binary", "", "the cantus to test; empty builds the one of this source tree")
)

// TestMixedFaults has clients ask three nodes for everything, while faults
// strike at random: killed and paused nodes, nodes and ways between them that
// are cut off, processes without files or memory, rolling restarts, transferred
// leadership, trims, rebuilt replicas, drained nodes, and directories that are
// put back to an older copy. Where it goes on for some time, clocks jump, and
// as root on Linux disks are slow, hang, and become read-only. Each round is a
// new cluster and ends in the judge. Which faults strike, and what the clients
// ask for, comes from a seed that is printed. What happens at which moment does
// not.
func TestMixedFaults(t *testing.T) {
	testkit.NotShort(t, "a cluster of processes runs through faults")
	testkit.Parallel(t)
	seed := *faultsSeed
	if seed == 0 {
		seed = rand.Uint64N(1 << 32)
	}
	faults := 3
	if *faultsFor > 0 {
		faults = 15
	}
	for begin := time.Now(); ; seed++ {
		ok := t.Run(fmt.Sprint(seed), func(t *testing.T) { mixFaults(t, seed, faults) })
		if !ok || time.Since(begin) >= *faultsFor {
			break
		}
	}
}

// sequential is a test whose clusters do not make it a parallel one: one round
// begins when the one before has ended.
type sequential struct{ testing.TB }

func mixFaults(t *testing.T, seed uint64, count int) {
	t.Logf("again: go test ./e2e -run '^TestMixedFaults$' -v -args -faults-seed %d", seed)
	const partitions = 2
	window, ids := 5*time.Second, "1000000" // a trim passes what is older
	flag := window.String()
	if seed%2 == 0 {
		window, flag, ids = judge.WholeLog, "log", "100" // and here what is not among the newest ids
	}
	c := newWiredCluster(sequential{t}, 0, "--partitions", fmt.Sprint(partitions), "--msg-id-window", flag, "--msg-ids", ids, "--locks", "1000")
	strikes := mixedFaults
	f := &faulty{cluster: c, t: t, Rand: rand.New(rand.NewPCG(seed, 1<<32))}
	if *faultsFor > 0 {
		strikes = slices.Concat(strikes, f.giveDisks(), f.giveClocks(t))
	}
	c.found(3)
	c.record(partitions, 3, window, 1000)
	c.startAll()
	c.awaitPlaced()
	m := startMix(c, partitions, seed)
	f.mix, f.watcher = m, c.dial(c.nodes[0].name)
	for i := range count {
		if err := m.reach(t.Context(), 20+f.IntN(400)); err != nil {
			t.Fatal(err)
		}
		strike := strikes[f.IntN(len(strikes))]
		began := time.Now()
		what, err := strike(f)
		if err != nil {
			t.Fatalf("fault %d: %s: %v", i, what, err)
		}
		t.Logf("fault %d: %s, %v", i, what, time.Since(began).Round(time.Millisecond))
		if err := f.awaitReady(t.Context(), f.watcher); err != nil {
			t.Fatalf("fault %d: %s: %v", i, what, err)
		}
	}
	if err := m.reach(t.Context(), 100); err != nil {
		t.Fatal(err)
	}
	m.End()
	c.awaitPlaced()
	c.judgeAlone(t, partitions)
}

// faulty is a cluster that faults strike.
type faulty struct {
	*cluster
	*rand.Rand
	t       *testing.T
	mix     *mix
	watcher *workload.Client
	limited []*node // whose process had a limit
}

// awaitReady waits until the cluster is ready. It starts nodes again that have
// ended because of a limit: what failed under it may end them later, too.
func (f *faulty) awaitReady(ctx context.Context, watcher *workload.Client) error {
	for {
		running, cancel := context.WithCancel(ctx)
		for _, n := range f.limited {
			ended := n.running().done
			go func() {
				select {
				case <-ended:
					cancel()
				case <-running.Done():
				}
			}()
		}
		err := f.cluster.awaitReady(running, watcher)
		ended := running.Err() != nil && ctx.Err() == nil
		cancel()
		if err == nil || !ended {
			return err
		}
		for _, n := range f.limited {
			select {
			case <-n.running().done:
				n.kill() // the next start has another limit
				if err := n.start(); err != nil {
					return err
				}
			default:
			}
		}
	}
}

// mixedFaults are the faults. Each returns when it is healed, with what it was.
var mixedFaults = []func(*faulty) (string, error){
	(*faulty).killOne, (*faulty).killLeader, (*faulty).pauseShortly, (*faulty).pauseLong, (*faulty).killTwo,
	(*faulty).rollingRestart, (*faulty).transferOne, (*faulty).trimOne, (*faulty).trimOne, (*faulty).rebuildOne,
	(*faulty).drainOne, (*faulty).rollBack, (*faulty).cutOffOne, (*faulty).cutOneWay, (*faulty).cutOneLink,
}

func (f *faulty) anyNode() *node { return f.nodes[f.IntN(len(f.nodes))] }

// operate carries out an operation with the program.
func (f *faulty) operate(args ...string) error {
	var urls []string
	for _, n := range f.nodes {
		urls = append(urls, n.url)
	}
	args = append(append([]string{"cluster"}, args...), "--server", strings.Join(urls, ","), "--wait", patience.String())
	if code, stdout, stderr := cantus(f.t, args...); code != 0 {
		return fmt.Errorf("cantus %v: exit %d\n%s%s", args, code, stdout, stderr)
	}
	return nil
}

func (f *faulty) killOne() (string, error) {
	n := f.anyNode()
	n.kill()
	return n.name + " was killed", n.start()
}

func (f *faulty) killLeader() (string, error) {
	n, err := f.leader(f.t.Context(), f.watcher, f.IntN(2))
	if err != nil {
		return "the leader is to be killed", err
	}
	n.kill()
	return n.name + ", a leader, was killed", n.start()
}

// killTwo leaves no majority.
func (f *faulty) killTwo() (string, error) {
	a := f.anyNode()
	b := f.others(a)[f.IntN(2)]
	a.kill()
	b.kill()
	err := errors.Join(a.launch(), b.launch())
	if err == nil {
		err = errors.Join(a.awaitReady(), b.awaitReady())
	}
	return a.name + " and " + b.name + " were killed", err
}

func (f *faulty) pause(from, to time.Duration) (string, error) {
	n, lasts := f.anyNode(), from+time.Duration(f.Int64N(int64(to-from)))
	err := paused.lasting(lasts).strike(f.t.Context(), n, func() {}, func() {})
	return fmt.Sprintf("%s was paused for %v", n.name, lasts.Round(time.Millisecond)), err
}

// pauseShortly is shorter than an election time-out.
func (f *faulty) pauseShortly() (string, error) {
	return f.pause(10*time.Millisecond, 300*time.Millisecond)
}

// pauseLong is longer.
func (f *faulty) pauseLong() (string, error) { return f.pause(1500*time.Millisecond, 4*time.Second) }

// cutFor has ways between nodes cut for a while, which may be shorter or longer
// than an election time-out.
func (f *faulty) cutFor(what string, which func(sender, receiver string) bool) (string, error) {
	lasts := 100*time.Millisecond + time.Duration(f.Int64N(int64(4*time.Second)))
	what = fmt.Sprintf("%s for %v", what, lasts.Round(time.Millisecond))
	f.wires.cutBetween(which)
	defer f.wires.cutBetween(func(string, string) bool { return false })
	select {
	case <-time.After(lasts):
		return what, nil
	case <-f.t.Context().Done():
		return what, f.t.Context().Err()
	}
}

func (f *faulty) cutOffOne() (string, error) {
	n := f.anyNode().name
	return f.cutFor(n+" was cut off", func(from, to string) bool { return from == n || to == n })
}

// cutOneWay leaves a node that hears the others and is not heard, or the other
// way round.
func (f *faulty) cutOneWay() (string, error) {
	n := f.anyNode().name
	if f.IntN(2) == 0 {
		return f.cutFor(n+" was not heard", func(from, _ string) bool { return from == n })
	}
	return f.cutFor(n+" heard nothing", func(_, to string) bool { return to == n })
}

// cutOneLink leaves two nodes that hear the third one only.
func (f *faulty) cutOneLink() (string, error) {
	a := f.anyNode()
	n, m := a.name, f.others(a)[f.IntN(2)].name
	return f.cutFor(n+" and "+m+" were cut off from each other", func(from, to string) bool {
		return from == n && to == m || from == m && to == n
	})
}

func (f *faulty) rollingRestart() (string, error) {
	const what = "a rolling restart"
	for _, n := range f.nodes {
		if err := errors.Join(n.stop(), n.start()); err != nil {
			return what, err
		}
		if err := f.awaitReady(f.t.Context(), f.watcher); err != nil {
			return what, err
		}
	}
	return what, nil
}

func (f *faulty) transferOne() (string, error) {
	p, n := f.IntN(2), f.anyNode()
	return fmt.Sprintf("partition %d was transferred to %s", p, n.name), f.operate("transfer", fmt.Sprint(p), "--to", n.name)
}

// trimOne trims a partition, which may be refused while it has no leader.
func (f *faulty) trimOne() (string, error) {
	p := f.IntN(2)
	mark := f.mix.Mark(p)
	how, err := f.watcher.Trim(f.t.Context(), p, 1+f.Uint64N(mark+1))
	if err != nil {
		how = "and was refused: " + err.Error()
	}
	return fmt.Sprintf("partition %d was trimmed %s", p, how), nil
}

// rebuildOne rebuilds a follower.
func (f *faulty) rebuildOne() (string, error) {
	p, i := f.IntN(2), f.IntN(2)
	leader, err := f.leader(f.t.Context(), f.watcher, p)
	if err != nil {
		return "a replica is to be rebuilt", err
	}
	n := f.others(leader)[i]
	what := fmt.Sprintf("%s rebuilt its replica of partition %d", n.name, p)
	if err = f.operate("rebuild", fmt.Sprint(p), "--node", n.name); err != nil && strings.Contains(err.Error(), "leads") {
		return what + ", and was refused: it leads by now", nil
	}
	return what, err
}

func (f *faulty) drainOne() (string, error) {
	n := f.anyNode()
	// Three replicas need three nodes: only leadership can move.
	args := []string{"cluster", "drain", n.name, "--server", f.others(n)[0].url}
	if code, stdout, stderr := cantus(f.t, args...); code != 0 {
		return n.name + " is to be drained", fmt.Errorf("exit %d\n%s%s", code, stdout, stderr)
	}
	if err := f.mix.reach(f.t.Context(), 100); err != nil {
		return n.name + " is drained", err
	}
	return n.name + " was drained for a while", f.operate("undrain", n.name)
}

// rollBack puts a node's directory back to an older copy. The others refuse the
// node, and it ends. It is then replaced by one with an empty directory.
func (f *faulty) rollBack() (string, error) {
	n := f.anyNode()
	what := n.name + "'s directory was put back"
	if err := n.stop(); err != nil {
		return what, err
	}
	older := filepath.Join(f.t.TempDir(), "older")
	if err := errors.Join(os.CopyFS(older, os.DirFS(n.dir)), n.start(), f.awaitReady(f.t.Context(), f.watcher)); err != nil {
		return what, err
	}
	if err := f.mix.reach(f.t.Context(), 200); err != nil {
		return what, err
	}
	n.kill()
	if err := errors.Join(os.RemoveAll(n.dir), os.CopyFS(n.dir, os.DirFS(older)), n.launch()); err != nil {
		return what, err
	}
	select {
	case <-n.running().done:
	case <-n.running().lines:
		return what, fmt.Errorf("%s serves from an older copy of its directory", n.name)
	case <-time.After(patience):
		return what, fmt.Errorf("%s runs on an older copy of its directory, %v after its start", n.name, patience)
	}
	return what, f.replaceBySame(n)
}

// replaceBySame removes a node that has ended, and adds it again with an empty
// directory.
func (f *faulty) replaceBySame(n *node) error {
	rest := f.others(n)
	f.nodes = rest
	f.limited = slices.DeleteFunc(f.limited, func(other *node) bool { return other == n })
	if err := f.operate("remove", n.name); err != nil {
		return err
	}
	fresh := f.prepare(n.name)
	if err := fresh.launch(); err != nil {
		return err
	}
	for _, other := range rest {
		f.awaitHeard(f.t, n.name, other)
	}
	if err := f.operate("add", n.name); err != nil {
		return err
	}
	f.nodes = append(slices.Clone(rest), fresh)
	return fresh.awaitReady()
}
