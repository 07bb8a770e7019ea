//go:build linux && crashpoints

package e2e_test

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	crashEvery = flag.Int("crash-every", 1, "how many durable steps there are between two crashes of TestCrashPoints")
	crashSeed  = flag.Uint64("crash-seed", 1, "the seed of TestCrashPoints' clients and choices")
)

// durableSteps are the system calls by which a process makes something durable,
// or changes which files there are.
const durableSteps = "fsync,fdatasync,msync,rename,renameat,renameat2,unlink,unlinkat,ftruncate,mkdir,mkdirat"

// stepDelay is how long each durable step takes. A process that is to die after
// a step is killed within that time, before the step returns.
const stepDelay = 10 * time.Millisecond

// crashAfter kills a process after some of its durable steps, which strace
// counts.
type crashAfter struct {
	t     *testing.T
	step  int
	fifo  string
	steps atomic.Int64
	pid   chan int // of the process; capacity 1
	last  atomic.Pointer[string]
}

// newCrash prepares a crash after a number of durable steps.
func newCrash(t *testing.T, step int) *crashAfter {
	c := &crashAfter{t: t, step: step, fifo: filepath.Join(t.TempDir(), "steps"), pid: make(chan int, 1)}
	if err := unix.Mkfifo(c.fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(c.fifo, os.O_RDWR, 0) // it ends when it is closed, not when strace ends
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for in := bufio.NewScanner(f); in.Scan(); {
			line := in.Text()
			if strings.Contains(line, "<unfinished ...>") || !strings.Contains(line, "(") && !strings.Contains(line, "resumed>") {
				continue
			}
			if c.steps.Add(1) == int64(step) {
				c.last.Store(&line)
				_ = syscall.Kill(<-c.pid, syscall.SIGKILL)
			}
		}
	}()
	t.Cleanup(func() {
		_ = f.Close()
		<-done
	})
	return c
}

func (c *crashAfter) strace(args ...string) []string {
	return append([]string{
		"strace", "-f", "-qq", "-s", "80", "-o", c.fifo, "-e", "trace=" + durableSteps, "-e", "signal=none",
		"-e", fmt.Sprintf("inject=%s:delay_exit=%d", durableSteps, stepDelay.Microseconds()),
	}, args...)
}

// launch starts a node that is to crash. The tracer is not the node's parent.
func (c *crashAfter) launch(n *node) {
	c.t.Helper()
	n.within = c.strace("-D", "--seccomp-bpf")
	err := n.launch()
	n.within = nil
	if err != nil {
		c.t.Fatal(err)
	}
	c.pid <- n.running().cmd.Process.Pid
}

// attach traces a node that runs, until end is called.
func (c *crashAfter) attach(n *node) (end func()) {
	c.t.Helper()
	pid := n.running().cmd.Process.Pid
	line := c.strace("-p", fmt.Sprint(pid))
	cmd := exec.Command(line[0], slices.DeleteFunc(line[1:], func(arg string) bool { return arg == "-qq" })...)
	out, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		c.t.Fatal(err)
	}
	in := bufio.NewScanner(out)
	if !in.Scan() || !strings.Contains(in.Text(), "attached") {
		c.t.Fatalf("strace: %s", in.Text())
	}
	go func() {
		for in.Scan() { // strace must not wait for a reader
		}
	}()
	c.pid <- pid
	return func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	}
}

// launchAgain starts a node again that has crashed by now, and reports whether
// it has.
func (c *crashAfter) launchAgain(n *node) (crashed bool, err error) {
	if c.steps.Load() < int64(c.step) {
		return false, nil
	}
	select {
	case <-n.running().done:
	case <-time.After(patience):
		return true, fmt.Errorf("%s was not killed", n.name)
	}
	n.unready()
	c.t.Logf("%s died after step %d: %.150s", n.name, c.step, *c.last.Load())
	return true, n.launch()
}

// awaitReadyOrCrash waits until a node serves, or has crashed. It starts one
// that has crashed again, and waits until that serves.
func (c *crashAfter) awaitReadyOrCrash(n *node) (crashed bool) {
	c.t.Helper()
	err := n.awaitReady()
	if err != nil {
		var again error
		if crashed, again = c.launchAgain(n); again != nil {
			c.t.Fatal(again)
		}
	}
	if crashed {
		err = n.awaitReady()
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return crashed
}

// crashes runs episodes, each with a crash after a later step, until one ends
// without a crash, or there were most.
func crashes(t *testing.T, most int, episode func(t *testing.T, step int) (crashed bool)) {
	count := 0
	for step := 1; count < most; step += *crashEvery {
		crashed := false
		if !t.Run(fmt.Sprint(step), func(t *testing.T) { crashed = episode(t, step) }) || !crashed {
			break
		}
		count++
	}
	t.Logf("%d crashes", count)
	if count == 0 {
		t.Error("no node crashed")
	}
}

// TestCrashPoints kills a node after each of its durable steps while a cluster
// is founded, a node starts, joins and leaves, and replicas are rebuilt,
// trimmed and moved. Each cluster ends in the judge.
func TestCrashPoints(t *testing.T) {
	const partitions = 2
	args := []string{"--partitions", fmt.Sprint(partitions), "--msg-id-window", "5s", "--locks", "1000"}
	prepare := func(t *testing.T) *cluster {
		c := newCluster(sequential{t}, 3, args...)
		c.record(partitions, 3, 5*time.Second, 1000)
		return c
	}
	// load starts clients on a cluster. end stops them and has the judge decide.
	load := func(t *testing.T, c *cluster) (m *mix, end func()) {
		m = startMix(c, partitions, *crashSeed)
		return m, func() {
			if err := m.reach(t.Context(), 100); err != nil {
				t.Fatal(err)
			}
			m.End()
			c.awaitPlaced()
			c.judgeAlone(t, partitions)
		}
	}

	t.Run("founding", func(t *testing.T) {
		crashes(t, 1000, func(t *testing.T, step int) (crashed bool) {
			c := prepare(t)
			crash, victim := newCrash(t, step), c.nodes[1]
			crash.launch(victim)
			for _, n := range c.others(victim) {
				if err := n.launch(); err != nil {
					t.Fatal(err)
				}
			}
			crashed = crash.awaitReadyOrCrash(victim)
			for _, n := range c.others(victim) {
				if err := n.awaitReady(); err != nil {
					t.Fatal(err)
				}
			}
			c.awaitPlaced()
			_, end := load(t, c)
			end()
			return crashed
		})
	})

	t.Run("starting", func(t *testing.T) {
		c := prepare(t)
		c.startAll()
		m, end := load(t, c)
		crashes(t, 1000, func(t *testing.T, step int) (crashed bool) {
			if err := m.reach(t.Context(), 50); err != nil {
				t.Fatal(err)
			}
			crash, victim := newCrash(t, step), c.nodes[step%3]
			victim.kill()
			crash.launch(victim)
			crashed = crash.awaitReadyOrCrash(victim)
			watcher := c.dial(c.nodes[0].name)
			defer watcher.Conn.Close()
			if err := c.awaitReady(t.Context(), watcher); err != nil {
				t.Fatal(err)
			}
			if !crashed {
				victim.kill() // the tracer goes with it
				if err := victim.start(); err != nil {
					t.Fatal(err)
				}
			}
			return crashed
		})
		end()
	})

	t.Run("joining", func(t *testing.T) {
		c := prepare(t)
		c.startAll()
		m, end := load(t, c)
		f := &faulty{cluster: c, t: t}
		crashes(t, 1000, func(t *testing.T, step int) (crashed bool) {
			if err := m.reach(t.Context(), 50); err != nil {
				t.Fatal(err)
			}
			founders := slices.Clone(c.nodes)
			crash, joining := newCrash(t, step), c.prepare("n4")
			crash.launch(joining)
			ended := make(chan error, 1)
			go func() { // it may crash at any time, or end when it is removed
				<-joining.running().done
				var err error
				crashed, err = crash.launchAgain(joining)
				ended <- err
			}()
			for _, n := range founders {
				c.awaitHeard(t, "n4", n)
			}
			for _, args := range [][]string{{"add", "n4"}, {"move", "0", "--from", founders[step%3].name, "--to", "n4"}, {"remove", "n4"}} {
				if err := f.operate(args...); err != nil {
					t.Fatal(err)
				}
			}
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
			select {
			case <-joining.running().done:
			case <-time.After(patience):
				t.Fatal("n4 was removed and runs on")
			}
			return crashed
		})
		end()
	})

	for _, o := range []struct {
		name string
		args func(c *cluster, leader, victim *node) []string
	}{
		{"rebuilding", func(_ *cluster, _, victim *node) []string {
			return []string{"cluster", "rebuild", "0", "--node", victim.name, "--wait", patience.String()}
		}},
		{"trimming", func(*cluster, *node, *node) []string { return []string{"trim", "0", "--size", "1B"} }},
		{"transferring", func(_ *cluster, _, victim *node) []string {
			return []string{"cluster", "transfer", "0", "--to", victim.name, "--wait", patience.String()}
		}},
	} {
		t.Run(o.name, func(t *testing.T) {
			c := prepare(t)
			c.startAll()
			c.awaitPlaced()
			m, end := load(t, c)
			random := rand.New(rand.NewPCG(*crashSeed, 0))
			crashes(t, 40, func(t *testing.T, step int) bool {
				if err := m.reach(t.Context(), 50+random.IntN(200)); err != nil {
					t.Fatal(err)
				}
				watcher := c.dial(c.nodes[0].name)
				defer watcher.Conn.Close()
				leader, err := c.leader(t.Context(), watcher, 0)
				if err != nil {
					t.Fatal(err)
				}
				victim := c.others(leader)[random.IntN(2)]
				crash := newCrash(t, step)
				detach := crash.attach(victim)
				defer detach()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				asked := make(chan error, 1)
				go func() {
					args := append(o.args(c, leader, victim), "--server", c.others(victim)[0].url)
					out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
					if err != nil {
						err = fmt.Errorf("cantus %v: %w\n%s", args, err, out)
					}
					asked <- err
				}()
				select {
				case <-victim.running().done:
				case <-time.After(patience):
					t.Fatalf("%s made %d durable steps", victim.name, crash.steps.Load())
				}
				if crashed, err := crash.launchAgain(victim); err != nil || !crashed {
					t.Fatalf("%s ended by itself: %v, %v", victim.name, victim.running().err, err)
				}
				if err := victim.awaitReady(); err != nil {
					t.Fatal(err)
				}
				if err := c.awaitReady(t.Context(), watcher); err != nil {
					t.Fatal(err)
				}
				cancel()
				if err := <-asked; err != nil && ctx.Err() == nil {
					t.Log(err)
				}
				return true
			})
			end()
		})
	}
}

// TestRecoverCrashPoints kills cantus recover after each of its durable steps.
// The directory is then as it was, or the command completes what it has begun;
// no node starts in between.
func TestRecoverCrashPoints(t *testing.T) {
	c := startCluster(t, 3, "--partitions", "2")
	client := c.dial(c.nodes[0].name)
	for i := range 20 {
		c.mustKeep(client, i%2, fmt.Sprintf("v%d", i))
	}
	for _, n := range c.nodes {
		n.kill()
	}
	survivor := c.nodes[0]
	original, said := survivor.dir, mustRecover(t, survivor.dir)
	flags := []string{"--new-name", "cantus-2", "--confirm", "cantus"}
	survivor.renamed("cantus-2")
	begun, whole := 0, false
	for step := 1; !whole; step += *crashEvery {
		survivor.dir = filepath.Join(t.TempDir(), "copy")
		if err := os.CopyFS(survivor.dir, os.DirFS(original)); err != nil {
			t.Fatal(err)
		}
		crash := newCrash(t, step)
		line := crash.strace(append([]string{"-D", "--seccomp-bpf", program, "recover", survivor.dir}, flags...)...)
		cmd := exec.Command(line[0], line[1:]...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		crash.pid <- cmd.Process.Pid
		whole = cmd.Wait() == nil
		if identity, err := os.ReadFile(filepath.Join(survivor.dir, "cantus.json")); err == nil && strings.Contains(string(identity), `"recovering"`) {
			begun++
			if err := survivor.start(); err == nil || !strings.Contains(err.Error(), "was begun and not completed") {
				t.Fatalf("after step %d a node starts: %v", step, err)
			}
		}
		if !whole {
			mustRecoverIfNeeded(t, survivor.dir, flags...)
		}
		if err := survivor.start(); err != nil {
			t.Fatalf("after step %d: %v", step, err)
		}
		alone := c.dialOnly(survivor)
		for p, has := range said.Partitions {
			if info := mustInfo(t, alone, p); info.HighWaterMark != has.LastTxid || info.Digest != has.Digest {
				t.Fatalf("after step %d partition %d is at %d with the digest %s, recover has said %+v", step, p, info.HighWaterMark, info.Digest, has)
			}
		}
		alone.Conn.Close()
		if err := survivor.stop(); err != nil {
			t.Fatal(err)
		}
		if code, stdout, stderr := cantus(t, "verify", survivor.dir); code != 0 {
			t.Fatalf("after step %d verify ends with %d: %s%s", step, code, stdout, stderr)
		}
		t.Logf("step %d, begun %d times so far", step, begun)
	}
	if begun == 0 {
		t.Error("no crash has left half a recovery")
	}
}

// mustRecoverIfNeeded runs cantus recover, which may have been done just before
// it was killed.
func mustRecoverIfNeeded(t *testing.T, dir string, flags ...string) {
	t.Helper()
	code, stdout, stderr := cantus(t, append([]string{"recover", dir}, flags...)...)
	if code != 0 && !strings.Contains(stderr, "is the only member of cluster cantus-2") {
		t.Fatalf("recover ends with %d: %s%s", code, stdout, stderr)
	}
}
