package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/internal/workload"
)

var (
	damageEpisodes = flag.Int("damage-episodes", 0, "how many files TestDamage damages; 0 is a few")
	damageSeed     = flag.Uint64("damage-seed", 0, "the seed of TestDamage's first cluster; 0 is a random one")
)

// damagedFiles are the kinds of files of a data directory, as patterns.
var damagedFiles = []string{
	"cantus.json", "checkpoint.json", "cluster.key", "journal/checkpoint", "journal/*.seg", "store/MANIFEST", "store/KEYREGISTRY",
	"store/DISCARD", "store/*.mem", "store/*.sst", "store/oldest *.vlog", "store/newest *.vlog",
}

// damages are what is done to a file.
var damages = map[string]func(d *damaging, path string) error{
	"flipped":                   (*damaging).flip,
	"truncated":                 (*damaging).truncate,
	"zeroed":                    (*damaging).zero,
	"deleted":                   func(_ *damaging, path string) error { return os.Remove(path) },
	"replaced by an older copy": (*damaging).putBack,
}

// TestDamage damages files of one of three nodes while clients ask for
// everything: every kind of file in every way, while the node runs and while
// it is stopped. Either the node repairs what is damaged, or it says what is
// and is replaced, as its message says. Each cluster ends in the judge.
func TestDamage(t *testing.T) {
	testkit.NotShort(t, "a cluster of processes is damaged")
	testkit.Parallel(t)
	seed, episodes, each := *damageSeed, *damageEpisodes, 8
	if seed == 0 {
		seed = rand.Uint64N(1 << 32)
	}
	if episodes == 0 {
		episodes, each = 2, 2
	}
	var todo []episode
	for _, file := range damagedFiles {
		for _, how := range slices.Sorted(maps.Keys(damages)) {
			todo = append(todo, episode{file, how, true}, episode{file, how, false})
		}
	}
	random := rand.New(rand.NewPCG(seed, 2))
	random.Shuffle(len(todo), func(i, j int) { todo[i], todo[j] = todo[j], todo[i] })
	total, count := map[string]int{}, 0
	for count < episodes {
		var some []episode
		for range min(each, episodes-count) {
			some = append(some, todo[count%len(todo)])
			count++
		}
		if !t.Run(fmt.Sprint(seed), func(t *testing.T) { damageSome(t, seed, some, total) }) {
			break
		}
		seed++
	}
	for _, outcome := range slices.Sorted(maps.Keys(total)) {
		t.Logf("%4d %s", total[outcome], outcome)
	}
}

// episode is one damage.
type episode struct {
	file, how string
	running   bool
}

// damaging is a cluster of which one node's files are damaged.
type damaging struct {
	*faulty
	target *node
	older  string // a copy of the target's directory
}

func damageSome(t *testing.T, seed uint64, episodes []episode, total map[string]int) {
	const partitions = 2
	t.Logf("again: go test ./e2e -run '^TestDamage$' -v -args -damage-seed %d -damage-episodes %d", seed, len(episodes))
	c := newCluster(sequential{t}, 3, "--partitions", fmt.Sprint(partitions), "--msg-id-window", "30m", "--locks", "1000",
		"--scrub-rate", "1GiB", "--scrub-interval", "1s", "--tail-size", "64KiB")
	c.record(partitions, 3, 30*time.Minute, 1000)
	c.startAll()
	c.awaitPlaced()
	m := startMix(c, partitions, seed)
	f := &faulty{cluster: c, mix: m, t: t, Rand: rand.New(rand.NewPCG(seed, 1<<33)), watcher: c.dial(c.nodes[0].name)}
	d := &damaging{faulty: f, target: f.anyNode()}
	for i, e := range episodes {
		if err := d.fill(i, e.how == "replaced by an older copy"); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		outcome, err := d.run(e)
		if err != nil {
			t.Fatalf("episode %d: %+v: %v", i, e, err)
		}
		t.Logf("episode %d: %s: %s %s, %v", i, e, d.target.name, outcome, time.Since(began).Round(100*time.Millisecond))
		total[outcome]++
		if err := c.awaitReady(t.Context(), f.watcher); err != nil {
			t.Fatalf("episode %d: %s: %v", i, e, err)
		}
	}
	m.End()
	c.awaitPlaced()
	c.judgeAlone(t, partitions)
}

func (e episode) String() string {
	when := "stopped"
	if e.running {
		when = "running"
	}
	return fmt.Sprintf("%s %s, %s", e.file, e.how, when)
}

// fill appends some large transactions, which go to value logs, and restarts
// the target, so that it has older ones. If copied is true it keeps a copy of
// the directory from before.
func (d *damaging) fill(round int, copied bool) error {
	if copied {
		d.older = filepath.Join(d.t.TempDir(), "older")
		if err := copyLive(d.target.dir, d.older); err != nil {
			return err
		}
	}
	for i := range 40 {
		m := workload.NewAppend(i%2, strings.Repeat(fmt.Sprint(round, " ", i, " "), 800), "Nats-Msg-Id", fmt.Sprintf("large %d %d", round, i))
		if _, err := d.keep(d.t.Context(), d.watcher, m); err != nil {
			return err
		}
	}
	return errors.Join(d.target.stop(), d.target.start(), d.awaitReady(d.t.Context(), d.watcher), d.mix.reach(d.t.Context(), 50))
}

// copyLive copies a directory whose files may change meanwhile.
func copyLive(from, to string) error {
	return filepath.WalkDir(from, func(path string, e os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.MkdirAll(filepath.Join(to, name), 0o700)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil //nolint:nilerr // it is gone
		}
		return sparseWrite(filepath.Join(to, name), b)
	})
}

// sparseWrite writes a file without its blocks of zeros.
func sparseWrite(path string, b []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	zero := make([]byte, blockSize)
	for at := 0; at < len(b) && err == nil; at += blockSize {
		piece := b[at:min(at+blockSize, len(b))]
		if !bytes.Equal(piece, zero[:len(piece)]) {
			_, err = f.WriteAt(piece, int64(at))
		}
	}
	return errors.Join(err, f.Truncate(int64(len(b))), f.Close())
}

// run damages a file and has the node healed. It returns how the damage was
// found and healed.
func (d *damaging) run(e episode) (outcome string, err error) {
	n := d.target
	if !e.running {
		if d.IntN(2) == 0 {
			n.kill()
		} else if err := n.stop(); err != nil {
			return "", err
		}
	}
	before := d.metrics()
	path, err := d.pick(e.file)
	if path == "" || err != nil {
		if !e.running {
			err = errors.Join(err, n.start())
		}
		return "had no such file", err
	}
	if err := damages[e.how](d, path); err != nil {
		return "", err
	}
	if !e.running {
		before = damageMetrics{}
		if err := n.launch(); err != nil {
			return "", err
		}
		if ended := d.ready(); ended != "" {
			return "found at the start, replaced", d.replace(path, ended)
		}
	}
	found, ended := d.awaitScrubs(before)
	switch {
	case ended != "":
		return d.restart("ended", path)
	case found && d.metrics().damaged > 0:
		return "found by the scrub, replaced", d.replace(path, "")
	case found:
		return d.restart("found by the scrub, repaired", path)
	}
	return d.restart("not found", path)
}

// restart restarts the node. A node that does not start is replaced.
func (d *damaging) restart(so, path string) (outcome string, err error) {
	n := d.target
	select {
	case <-n.running().done:
		n.unready()
	default:
		if err := n.stop(); err != nil {
			so += ", failed to stop"
		}
	}
	if err := n.launch(); err != nil {
		return "", err
	}
	ended := d.ready()
	switch {
	case ended != "":
		return so + ", found at the next start, replaced", d.replace(path, ended)
	case so == "not found":
		so = "harmless"
	}
	before := damageMetrics{}
	if found, gone := d.awaitScrubs(before); gone != "" {
		return so + ", ended", d.replace(path, "")
	} else if found {
		so += ", found by the next scrub"
	}
	if d.metrics().damaged > 0 {
		return so + ", replaced", d.replace(path, "")
	}
	return so, nil
}

// ready waits until the node serves. It returns what it says if it ends.
func (d *damaging) ready() (ended string) {
	if err := d.target.awaitReady(); err != nil {
		return err.Error()
	}
	return ""
}

// replace has the cluster replace the node, as its message says. A node that
// does not start must say what is damaged.
func (d *damaging) replace(path, ended string) error {
	n := d.target
	if ended != "" {
		if strings.Contains(ended, "goroutine ") || !strings.Contains(ended, filepath.Base(path)) && !strings.Contains(ended, "older") {
			return fmt.Errorf("the start does not say that %s is damaged:\n%s", path, ended)
		}
	}
	n.kill()
	// What it led needs another leader before it can be removed.
	if err := d.until(d.t.Context(), "led by the others", func(ctx context.Context) string {
		for p := range 2 {
			if info, err := d.watcher.Info(ctx, p); err != nil || info.Leader == n.name {
				return fmt.Sprintf("partition %d: %s leads, %v", p, info.Leader, err)
			}
		}
		return ""
	}); err != nil {
		return err
	}
	if err := d.replaceBySame(n); err != nil {
		return err
	}
	d.target = d.node(n.name)
	return nil
}

// pick returns the path of a file of a kind, "" if there is none.
func (d *damaging) pick(kind string) (string, error) {
	pattern, which := kind, ""
	if dir, rest, ok := strings.Cut(kind, "/"); ok {
		if word, glob, ok := strings.Cut(rest, " "); ok {
			pattern, which = dir+"/"+glob, word
		}
	}
	paths, err := filepath.Glob(filepath.Join(d.target.dir, pattern))
	if err != nil || len(paths) == 0 {
		return "", err
	}
	slices.Sort(paths)
	switch {
	case which == "oldest" && len(paths) < 2:
		return "", nil
	case which == "oldest":
		return paths[0], nil
	case which == "newest":
		return paths[len(paths)-1], nil
	}
	return paths[d.IntN(len(paths))], nil
}

// damageMetrics are what a node's metrics say about damage.
type damageMetrics struct {
	found, damaged, complete float64
}

// metrics returns what the target's metrics say, zero if it does not answer.
func (d *damaging) metrics() (m damageMetrics) {
	d.target.mu.Lock()
	url := d.target.http
	d.target.mu.Unlock()
	r, err := http.Get(url + "/metrics")
	if err != nil {
		return m
	}
	defer r.Body.Close()
	for lines := bufio.NewScanner(r.Body); lines.Scan(); {
		name, value, ok := strings.Cut(lines.Text(), " ")
		v, err := strconv.ParseFloat(value, 64)
		if !ok || err != nil {
			continue
		}
		name, _, _ = strings.Cut(name, "{")
		switch name {
		case "cantus_damage_found_total":
			m.found += v
		case "cantus_damaged":
			m.damaged = v
		case "cantus_scrub_last_complete_timestamp_seconds":
			m.complete = v
		}
	}
	return m
}

// awaitScrubs waits for two complete scrubs, or for damage to be found and
// another one. It returns what the process says if it ends.
func (d *damaging) awaitScrubs(before damageMetrics) (found bool, ended string) {
	last, scrubs, least := before.complete, 0, 2
	p := d.target.running()
	for deadline := time.Now().Add(patience); scrubs < least; {
		select {
		case <-p.done:
			return found, "ended: " + p.stderr.String()
		case <-time.After(20 * time.Millisecond):
		}
		m := d.metrics()
		if !found && m.found > before.found {
			found, scrubs = true, 1
		}
		if m.complete > last {
			last = m.complete
			scrubs++
		}
		if least = 2; m.damaged > 0 {
			least = 6 // others may not have been there to repair it
		}
		if time.Now().After(deadline) {
			break
		}
	}
	return found, ""
}

// flip changes a bit of a byte that is not zero.
func (d *damaging) flip(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if b = bytes.TrimRight(b, "\x00"); len(b) == 0 {
		return nil
	}
	at := d.IntN(len(b))
	for b[at] == 0 {
		at = d.IntN(len(b))
	}
	return overwrite(path, int64(at), []byte{b[at] ^ 1<<d.IntN(8)})
}

func overwrite(path string, at int64, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, at)
	return errors.Join(err, f.Close())
}

// truncate cuts a file somewhere in what is written of it.
func (d *damaging) truncate(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.Truncate(path, int64(d.IntN(len(bytes.TrimRight(b, "\x00"))+1)))
}

// zero overwrites with zeros what is written of a file.
func (d *damaging) zero(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	b, zero := make([]byte, 1<<16), make([]byte, 1<<16)
	for at := int64(0); ; {
		n, err := f.ReadAt(b, at)
		if n > 0 && !bytes.Equal(b[:n], zero[:n]) {
			if _, err := f.WriteAt(zero[:n], at); err != nil {
				return errors.Join(err, f.Close())
			}
		}
		at += int64(n)
		if errors.Is(err, io.EOF) {
			return f.Close()
		}
		if err != nil {
			return errors.Join(err, f.Close())
		}
	}
}

// putBack replaces a file by an older copy, or flips a bit if there is none.
func (d *damaging) putBack(path string) error {
	name, err := filepath.Rel(d.target.dir, path)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(d.older, name))
	if err != nil {
		return d.flip(path)
	}
	if err := sparseWrite(path+".older", b); err != nil {
		return err
	}
	return os.Rename(path+".older", path)
}
