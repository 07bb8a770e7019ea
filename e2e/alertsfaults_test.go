//go:build alertslive && linux

package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/ports"
	"github.com/cantuslog/cantus/internal/testcert"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/internal/workload"
)

// liveFaults has, for each alert, the faults that must raise it.
var liveFaults = map[string]map[string]func(*live){
	"CantusNoLeader": {
		"two of three nodes are killed":   twoNodesKilled,
		"a partition's only node is away": onlyNodeKilled,
	},
	"CantusNoNode":      {"all nodes are killed": allNodesKilled},
	"CantusStorageFull": {"a disk is filled by others": diskFilled, "a disk is filled by appends": diskFilledByAppends},
	"CantusOneMoreLoss": {"one of three disks is full": oneDiskFull},
	"CantusReplicaDiverged": {
		"memory of one of three changes":     memoryOfOneChanges,
		"memory of one of two that are left": memoryOfOneOfTwoChanges,
	},
	"CantusInvariantViolated": {"memory changes": memoryChanges},
	"CantusDiskSoonFull": {
		"less than a tenth is free":           lessThanATenth,
		"less than twice the reserve is free": lessThanTwiceTheReserve,
		"it fills up":                         diskFillsUp,
	},
	"CantusNodeDown":    {"a node is killed": nodeKilled, "an archiver ends": archiverEnds},
	"CantusReplicaAway": {"a node is stopped": nodeStopped, "a replica is not here yet": replicaNotHere},
	"CantusDamageFound": {
		"a file of one of three is damaged":   damageRepaired,
		"it is found before the first scrape": damageBeforeScrape,
		"a file of a node alone is damaged":   damageLeft,
	},
	"CantusCommitSlow": {"a leader's disk syncs slowly": slowDisk},
	"CantusArchiveBehind": {
		"a backup's directory is away":       backupAway,
		"a policy's cursor is left behind":   archiverStopped,
		"an archive lacks a segment":         archiveWithGap,
		"a backup's directory was exchanged": backupExchanged,
	},
	"CantusMirrorBehind":       {"a source hangs": sourceHangs, "a mirror's nodes are killed": mirrorKilled},
	"CantusCursorBehind":       {"a consumer is stuck": consumerStuck, "a consumer is gone": consumerGone},
	"CantusFalseConflicts":     {"a writer is far behind": writerBehind},
	"CantusCertificateExpires": {"a certificate expires soon": certificateExpires},
}

func twoNodesKilled(l *live) {
	c := l.nodes(3)
	l.raise(`partition="0"`, func() {
		c.node("n2").kill()
		c.node("n3").kill()
	}, func() { l.start("n2", "n3") }, "CantusNodeDown")
}

// start starts nodes again, at once.
func (l *live) start(names ...string) {
	l.Helper()
	for _, name := range names {
		if err := l.cluster.node(name).launch(); err != nil {
			l.Fatal(err)
		}
	}
	for _, name := range names {
		if err := l.cluster.node(name).awaitReady(); err != nil {
			l.Fatal(err)
		}
	}
}

func onlyNodeKilled(l *live) {
	c := l.nodes(3, "--partitions", "3", "--replicas", "1")
	s, err := statusOf(l.Context(), c.dial("n1"))
	if err != nil {
		l.Fatal(err)
	}
	only := s.Partitions[2].Placement[0]
	l.raise(`partition="2"`, c.node(only).kill, func() { l.start(only) }, "CantusNodeDown")
}

func allNodesKilled(l *live) {
	c := l.nodes(3)
	l.raise("", func() {
		for _, n := range c.nodes {
			n.kill()
		}
	}, func() { l.start("n1", "n2", "n3") }, "CantusNodeDown")
}

func diskFilled(l *live) {
	l.nodes(1)
	l.raise(`partition="0"`, func() { l.disks["n1"].fill(10 << 20) }, l.disks["n1"].empty, "CantusDiskSoonFull")
}

// diskFilledByAppends has a log fill the disk, which a trim frees again.
func diskFilledByAppends(l *live) {
	c := l.nodes(1, "--msg-id-window", "1s")
	l.disks["n1"].fill(800 << 20) // a file of 800 MB is somebody else's
	client := c.dial("n1")
	stop, ended := make(chan struct{}), make(chan struct{})
	fill := func() {
		defer close(ended)
		for payload := bytes.Repeat([]byte("x"), 500_000); ; {
			select {
			case <-stop:
				return
			default:
			}
			if r, err := client.Append(l.Context(), "cantus.append.0", payload); err != nil || r.Error != nil && r.Error.Reason != "storage_full" {
				l.Errorf("append: %v, %v", r, err)
				return
			}
		}
	}
	l.raise(`partition="0"`, func() { go fill() }, func() {
		close(stop)
		<-ended
		l.runbook("cantus trim 0 --age 720h", "720h", "1s")
	}, "CantusDiskSoonFull")
}

func oneDiskFull(l *live) {
	c := l.nodes(3)
	follower := c.without(l.leader())
	l.raise(`partition="0"`, func() { l.disks[follower.name].fill(10 << 20) }, func() {
		l.disks[follower.name].empty()
		l.runbook("cantus upgrade check --wait 10m")
	}, "CantusDiskSoonFull")
}

// leader returns the node that leads partition 0.
func (l *live) leader() *node {
	l.Helper()
	n, err := l.cluster.leader(l.Context(), l.cluster.dial(l.cluster.nodes[0].name), 0)
	if err != nil {
		l.Fatal(err)
	}
	return n
}

// memoryOfOneChanges flips a bit in the memory of one of three: its log's
// digest is another one from then on.
func memoryOfOneChanges(l *live) {
	c := l.nodes(3)
	follower := c.without(l.leader())
	l.may = []string{"CantusDamageFound"} // what is on the disk differs too
	l.raise(fmt.Sprintf("instance=%q", follower.name), func() { l.flipMemory(follower) },
		func() { l.runbook("cantus cluster rebuild 0 --node n3 --wait 10m", "n3", follower.name) }, "CantusInvariantViolated", "CantusOneMoreLoss")
}

// memoryOfOneOfTwoChanges leaves nobody to say which of the two is wrong.
func memoryOfOneOfTwoChanges(l *live) {
	c := l.nodes(3)
	leader := l.leader()
	follower := c.without(leader)
	third := c.nodes[0]
	for third == leader || third == follower {
		third = c.node(fmt.Sprintf("n%d", 1+(int(third.name[1]-'0'))%3))
	}
	l.may = []string{"CantusDamageFound", "CantusOneMoreLoss", "CantusReplicaAway"} // until the leader knows that it has lost the two
	l.raise(fmt.Sprintf("instance=%q", follower.name), func() {
		third.kill()
		l.flipMemory(follower)
	}, func() {
		l.start(third.name)
		l.runbook("cantus cluster rebuild 0 --node n3 --wait 10m", "n3", follower.name)
	}, "CantusInvariantViolated", "CantusNoLeader", "CantusNodeDown")
}

func memoryChanges(l *live) {
	c := l.nodes(3)
	follower := c.without(l.leader())
	l.may = []string{"CantusDamageFound"}
	l.raise(fmt.Sprintf(`instance=%q,invariant="digests-equal"`, follower.name), func() { l.flipMemory(follower) },
		func() { l.command("cantus cluster rebuild 0 --node " + follower.name + " --wait 10m") }, "CantusReplicaDiverged", "CantusOneMoreLoss")
}

// flipMemory flips a bit of partition 0's digest wherever a node has it in its
// memory, and appends.
func (l *live) flipMemory(n *node) {
	l.Helper()
	client := l.cluster.dial(l.leader().name)
	mark := l.cluster.mustKeep(client, 0, "before").Txid
	testkit.Until(l, "the node has what there is", func() bool {
		s, err := statusOf(l.Context(), client)
		if err != nil {
			return false
		}
		for _, r := range s.Partitions[0].Replicas {
			if r.Name == n.name && r.HighWaterMark >= mark {
				return true
			}
		}
		return false
	})
	digest, err := hex.DecodeString(mustInfo(l.T, client, 0).Digest)
	if err != nil || len(digest) != 32 {
		l.Fatalf("the digest is %x, %v", digest, err)
	}
	if n := flipInMemory(l.T, n.running().cmd.Process.Pid, digest); n == 0 {
		l.Fatal("the digest is not in the node's memory")
	}
	m := workload.NewAppend(0, "after", "Nats-Msg-Id", "after")
	if err := client.Conn.PublishMsg(m); err != nil { // it may never be committed
		l.Fatal(err)
	}
}

// flipInMemory flips the first bit of a pattern in the memory of a process, and
// returns how often that was there.
func flipInMemory(t *testing.T, pid int, pattern []byte) (flipped int) {
	t.Helper()
	regions, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	memory, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	for line := range strings.Lines(string(regions)) {
		var from, to uint64
		var rights, offset, device string
		var inode int64
		if _, err := fmt.Sscanf(line, "%x-%x %s %s %s %d", &from, &to, &rights, &offset, &device, &inode); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if rights != "rw-p" || inode != 0 {
			continue
		}
		b, _ := io.ReadAll(io.NewSectionReader(memory, int64(from), int64(to-from))) // of what is not there, nothing
		for at := 0; ; at++ {
			i := bytes.Index(b[at:], pattern)
			if i < 0 {
				break
			}
			at += i
			if _, err := memory.WriteAt([]byte{pattern[0] ^ 1}, int64(from)+int64(at)); err != nil {
				t.Fatal(err)
			}
			flipped++
		}
	}
	return flipped
}

func lessThanATenth(l *live) {
	l.nodes(1)
	l.raise(`instance="n1"`, func() { l.disks["n1"].fill(160 << 20) }, l.disks["n1"].empty)
}

func lessThanTwiceTheReserve(l *live) {
	l.nodes(1, "--reserve", "256MiB")
	l.raise(`instance="n1"`, func() { l.disks["n1"].fill(400 << 20) }, l.disks["n1"].empty)
}

// diskFillsUp fills a disk steadily, and stops where there is still room.
func diskFillsUp(l *live) {
	l.nodes(1)
	d := l.disks["n1"]
	l.raise(`instance="n1"`, func() {
		for free := d.free(); free > 700<<20 && len(l.alerts(`alertname="CantusDiskSoonFull",alertstate="firing"`)) == 0; {
			free -= 25 << 20
			d.fill(free)
		}
	}, d.empty)
}

func nodeKilled(l *live) {
	c := l.nodes(3)
	n := c.without(l.leader())
	l.raise(fmt.Sprintf("instance=%q", n.name), n.kill, func() { l.start(n.name) }, "CantusOneMoreLoss", "CantusReplicaAway")
}

func archiverEnds(l *live) {
	l.nodes(1)
	archiver := l.archiver(l.TempDir())
	l.raise(`instance="archiver"`, archiver.kill, func() { l.archiver(l.TempDir()) })
}

// archiver starts an archiver.
func (l *live) archiver(to string, args ...string) *process {
	l.Helper()
	return l.process("archiver", append([]string{"backup", "--server", l.cluster.url(), "--to", to, "--every", "500ms"}, args...)...)
}

func nodeStopped(l *live) {
	c := l.nodes(3)
	n := c.without(l.leader())
	l.raise(`partition="0"`, func() {
		if err := n.pause(); err != nil {
			l.Fatal(err)
		}
	}, func() {
		if err := n.resume(); err != nil {
			l.Fatal(err)
		}
	}, "CantusNodeDown", "CantusOneMoreLoss")
}

// replicaNotHere adds a node whose disk has no room for what it has to fetch.
func replicaNotHere(l *live) {
	c := l.nodes(3, "--msg-id-window", "1s")
	client := c.dial("n1")
	payload := strings.Repeat("x", 500_000)
	for range 200 {
		if _, err := c.keep(l.Context(), client, workload.NewAppend(0, payload)); err != nil {
			l.Fatal(err)
		}
	}
	l.command("cantus trim 0 --before 100") // so that a new replica fetches the log
	n4 := c.prepare("n4")
	l.scraped(n4)
	if err := n4.launch(); err != nil {
		l.Fatal(err)
	}
	c.nodes = append(c.nodes, n4)
	testkit.Until(l, "n4 waits", func() bool { return n4.running().stderr.has("waiting") })
	l.raise(`instance="n4"`, func() {
		l.disks["n4"].fill(40 << 20)
		c.nodes[2].kill()
		l.operate("cluster", "add", "n4")
		l.operate("cluster", "remove", "n3")
	}, func() {
		l.disks["n4"].empty()
		if err := n4.awaitReady(); err != nil {
			l.Fatal(err)
		}
		delete(l.instances, "n3") // it was removed
		l.prometheus.scrape(l.T, l.job, maps.Clone(l.instances))
	}, "CantusNodeDown", "CantusOneMoreLoss", "CantusDiskSoonFull")
}

// operate runs an operation on the cluster, and does not wait until it is done.
func (l *live) operate(args ...string) {
	l.Helper()
	if code, stdout, stderr := cantus(l.T, append(args, "--server", l.cluster.url())...); code != 0 {
		l.Fatalf("%q ends with %d: %s%s", args, code, stdout, stderr)
	}
}

var scrubbed = []string{"--scrub-rate", "1GiB", "--scrub-interval", "1s", "--tail-size", "64KiB"}

// damage flips a bit in a payload that a node has on its disk, and not in its
// memory.
func (l *live) damage(n *node, payload string) {
	l.Helper()
	paths, err := filepath.Glob(filepath.Join(n.dir, "store", "*.vlog"))
	if err != nil {
		l.Fatal(err)
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			l.Fatal(err)
		}
		if at := bytes.Index(b, []byte(payload)); at >= 0 {
			if err := overwrite(path, int64(at), []byte{b[at] ^ 1}); err != nil {
				l.Fatal(err)
			}
			return
		}
	}
	l.Fatal("the payload is in no value log")
}

// large appends transactions that go to value logs, and returns the payload of
// one. The nodes are restarted, so that they have them on their disks only.
func (l *live) large() string {
	l.Helper()
	client := l.cluster.dial("n1")
	payload := func(i int) string { return strings.Repeat(fmt.Sprintf("large %03d ", i), 1000) }
	for i := range 20 {
		if _, err := l.cluster.keep(l.Context(), client, workload.NewAppend(0, payload(i))); err != nil {
			l.Fatal(err)
		}
	}
	l.cluster.stopAll()
	l.cluster.startAll()
	return payload(7)
}

func damageRepaired(l *live) {
	c := l.nodes(3, scrubbed...)
	payload := l.large()
	c.awaitPlaced()
	n := c.without(l.leader())
	l.raise(fmt.Sprintf(`instance=%q,partition="0"`, n.name), func() { l.damage(n, payload) }, func() {})
}

// damageLeft follows the runbook: the node is stopped, what is left of its log
// is salvaged and appended to a new one.
func damageLeft(l *live) {
	c := l.nodes(1, scrubbed...)
	payload := l.large()
	n := c.nodes[0]
	l.raise(`instance="n1"`, func() { l.damage(n, payload) }, func() {
		if err := n.stop(); err != nil {
			l.Fatal(err)
		}
		left := filepath.Join(l.TempDir(), "0.jsonl")
		if code, stdout, stderr := cantus(l.T, "salvage", n.dir, "--partition", "0", "--to", left); code > 1 { // the journal may have it all
			l.Fatalf("salvage ends with %d: %s%s", code, stdout, stderr)
		}
		lines, err := os.ReadFile(left)
		if err != nil {
			l.Fatal(err)
		}
		n.dir += "-new"
		l.start("n1")
		l.command("cantus import 0 " + left)
		mark := mustInfo(l.T, c.dial("n1"), 0).HighWaterMark
		if was := bytes.Count(lines, []byte("\n")); mark != uint64(was) || was < 19 {
			l.Errorf("the new node has %d transactions, %d were salvaged", mark, was)
		}
	})
}

// damageBeforeScrape damages a file of a stopped node, which has repaired it
// before Prometheus asks for the first time.
func damageBeforeScrape(l *live) {
	c := l.nodes(3, scrubbed...)
	payload := l.large()
	c.awaitPlaced()
	n := c.without(l.leader())
	if err := n.stop(); err != nil {
		l.Fatal(err)
	}
	address := l.instances[n.name]
	delete(l.instances, n.name)
	l.damage(n, payload)
	if err := n.start(); err != nil {
		l.Fatal(err)
	}
	testkit.Until(l, "the damage is repaired", func() bool {
		r, err := http.Get("http://" + address + "/metrics")
		if err != nil {
			return false
		}
		defer r.Body.Close()
		text, err := io.ReadAll(r.Body)
		found := !bytes.Contains(text, []byte(`cantus_damage_found_total{partition="0"} 0`))
		return err == nil && found && bytes.Contains(text, []byte("\ncantus_damaged 0\n")) && bytes.Contains(text, []byte("\ncantus_ready 1\n"))
	})
	l.raise(fmt.Sprintf(`instance=%q,partition="0"`, n.name), func() {
		l.instances[n.name] = address
		l.prometheus.scrape(l.T, l.job, maps.Clone(l.instances))
	}, func() {})
}

// slowDisk has each sync of the leader take a second and a half.
func slowDisk(l *live) {
	c := l.nodes(3)
	leader := l.leader()
	l.load(20)
	l.may = []string{"CantusOneMoreLoss"} // it is behind once it does not lead
	var fast func()
	l.raise(`partition="0"`, func() { fast = l.slow(leader) }, func() {
		l.runbook("cantus cluster transfer 0 --to n2", "n2", c.without(leader).name)
		testkit.Until(l, "another leads", func() bool { return l.leader() != leader })
		fast()
	})
}

// slow delays a process's syncs until end is called.
func (l *live) slow(n *node) (end func()) {
	l.Helper()
	cmd := exec.Command("strace", "-f", "-o", "/dev/null", "-e", "trace=fsync,fdatasync,msync", "-e", "inject=fsync,fdatasync,msync:delay_enter=1500000",
		"-p", fmt.Sprint(n.running().cmd.Process.Pid))
	out, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		l.Fatal(err)
	}
	in := bufio.NewScanner(out)
	if !in.Scan() || !strings.Contains(in.Text(), "attached") {
		l.Fatalf("strace: %s", in.Text())
	}
	go func() {
		for in.Scan() { // strace must not wait for a reader
		}
	}()
	end = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	})
	l.Cleanup(end)
	return end
}

// load appends a number of transactions a second until the test ends.
func (l *live) load(rate int, headers ...string) {
	l.Helper()
	clients := []*workload.Client{l.cluster.dial("n1")}
	ctx, stop := context.WithCancel(l.Context())
	ended := make(chan struct{})
	l.Cleanup(func() {
		stop()
		<-ended
	})
	go func() {
		defer close(ended)
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			for _, client := range clients {
				_ = client.Conn.PublishMsg(workload.NewAppend(0, "load", headers...)) // nobody waits for answers
			}
		}
	}()
}

func backupAway(l *live) {
	l.nodes(1)
	to := filepath.Join(l.TempDir(), "backup")
	l.archiver(to)
	l.load(2)
	l.raise(`instance="archiver"`, func() { l.rename(to, to+"-away") }, func() { l.rename(to+"-away", to) })
}

func (l *live) rename(from, to string) {
	l.Helper()
	if err := os.Rename(from, to); err != nil {
		l.Fatal(err)
	}
}

// backupExchanged puts another backup in the place of the archiver's, which has
// to be started again.
func backupExchanged(l *live) {
	l.nodes(1)
	to := filepath.Join(l.TempDir(), "backup")
	archiver := l.archiver(to)
	l.load(2)
	l.raise(`instance="archiver"`, func() {
		l.command("cantus backup --quiet --to " + to + "-other")
		l.rename(to, to+"-before")
		l.rename(to+"-other", to)
	}, func() {
		archiver.kill()
		l.archiver(to)
		l.runbook("cantus backup verify /mnt/backup", "/mnt/backup", to)
	})
}

// archiverStopped stops the archiver whose cursor a policy waits for.
func archiverStopped(l *live) {
	l.nodes(1, "--retention-interval", "500ms")
	to := filepath.Join(l.TempDir(), "backup")
	l.command("cantus retention set all --count 1 --archive archive --archive-lag 1m")
	archiver := func() *process {
		p, err := run("backup", "--server", l.cluster.url(), "--to", to, "--every", "500ms", "--cursor", "archive", "--quiet")
		if err != nil {
			l.Fatal(err)
		}
		l.Cleanup(p.kill)
		return p
	}
	stuck := archiver()
	l.load(2)
	l.raise(`cursor="archive",partition="0"`, stuck.kill, func() {
		if out := l.runbook("cantus status"); !strings.Contains(out, "retention waits for the cursor archive") {
			l.Errorf("status does not say what retention waits for:\n%s", out)
		}
		l.runbook("cantus retention show")
		archiver()
	}, "CantusCursorBehind")
}

// archiveWithGap takes a segment from the archive of a trimmed log.
func archiveWithGap(l *live) {
	to := filepath.Join(l.TempDir(), "backup")
	c := l.nodes(1, "--msg-id-window", "1s", "--archive", to)
	client := c.dial("n1")
	for range 10 {
		mustAppend(l.T, client, 0, "x")
	}
	l.command("cantus backup --quiet --to " + to)
	testkit.Until(l, "a trim", func() bool {
		l.command("cantus trim 0 --before 8")
		return mustInfo(l.T, client, 0).FirstTxid > 1
	})
	testkit.Until(l, "the archive is whole", func() bool { return archivedFrom(l.T, client) == 1 })
	first := mustInfo(l.T, client, 0).FirstTxid
	segment, away := "", filepath.Join(l.TempDir(), "segment")
	walk(l, to, func(path string, info os.FileInfo) { // one that the newest manifest names
		if info.IsDir() || segment != "" {
			return
		}
		l.rename(path, away)
		if code, _, _ := cantus(l.T, "backup", "verify", to); code == 1 {
			segment = path
		}
		l.rename(away, path)
	})
	l.raise(`instance="n1",partition="0"`, func() {
		l.rename(segment, away)
		testkit.Until(l, "another trim, after which the node looks for the segments", func() bool {
			l.command("cantus trim 0 --before 10")
			return mustInfo(l.T, client, 0).FirstTxid > first
		})
	}, func() {
		code, stdout, stderr := cantus(l.T, "backup", "verify", to)
		if code != 1 || !strings.Contains(stdout+stderr, filepath.Base(segment)) {
			l.Errorf("verify ends with %d: %s%s", code, stdout, stderr)
		}
		l.rename(away, segment)
	})
}

// mirror starts a mirror of a source cluster, whose node is not scraped.
func (l *live) mirror(nodes int) (source *node) {
	l.Helper()
	source = startNode(l.T, newDisk(l.T, "tmpfs", "2G").path+"/data", "--partitions", "1", "--listen", ports.Free(l.T), "--reserve", "64MiB")
	l.nodes(nodes)
	l.process("mirror", "mirror", "--from", source.url, "--to", l.cluster.url())
	to := l.cluster
	l.cluster = &cluster{tb: sequential{l.T}, nodes: []*node{source}}
	source.name = "n1"
	l.load(2)
	l.cluster = to
	return source
}

func sourceHangs(l *live) {
	source := l.mirror(1)
	l.raise(`partition="0"`, func() {
		if err := source.pause(); err != nil {
			l.Fatal(err)
		}
	}, func() {
		if err := source.resume(); err != nil {
			l.Fatal(err)
		}
	})
}

func mirrorKilled(l *live) {
	l.mirror(1)
	l.raise(`partition="0"`, l.cluster.nodes[0].kill, func() { l.start("n1") }, "CantusNoNode", "CantusNodeDown")
}

// stuck sets a cursor that does not move any more.
func (l *live) stuck() *workload.Client {
	l.Helper()
	client := l.nodes(1).dial("n1")
	for range 5 {
		mustAppend(l.T, client, 0, "x")
	}
	return client
}

func consumerStuck(l *live) {
	client := l.stuck()
	l.raise(`cursor="billing",partition="0"`, func() { mustSetCursor(l.T, client, 0, "billing", 3) }, func() {
		if out := l.runbook("cantus get 0 812", "812", "4"); !strings.Contains(out, "4") {
			l.Errorf("the transaction is %s", out)
		}
		mustSetCursor(l.T, client, 0, "billing", 5)
	})
}

func consumerGone(l *live) {
	client := l.stuck()
	l.raise(`cursor="billing",partition="0"`, func() { mustSetCursor(l.T, client, 0, "billing", 3) },
		func() { mustSetCursor(l.T, client, 0, "billing", 0) })
}

// writerBehind has a writer append with a high-water mark of before a trim.
func writerBehind(l *live) {
	client := l.nodes(1, "--locks", "10").dial("n1")
	for i := range 20 {
		mustAppend(l.T, client, 0, "x", "Cantus-Append-Lock", fmt.Sprint("account.", i))
	}
	if _, err := client.Request(l.Context(), &nats.Msg{Subject: "cantus.admin.trim.0", Data: []byte(`{"before":15}`)}); err != nil {
		l.Fatal(err)
	}
	ctx, stop := context.WithCancel(l.Context())
	ended := make(chan struct{})
	l.raise(`partition="0"`, func() {
		go func() {
			defer close(ended)
			for ctx.Err() == nil {
				_, _ = client.Append(ctx, "cantus.append.0", []byte("x"), "Cantus-Write-Lock", "other", "Cantus-High-Water-Mark", "5")
				select {
				case <-ctx.Done():
				case <-time.After(100 * time.Millisecond):
				}
			}
		}()
	}, func() {
		stop()
		<-ended
	})
}

func certificateExpires(l *live) {
	authority := testcert.NewAuthority(l)
	valid := 24 * time.Hour // two weeks are 28 minutes in the shortened rule
	cert, key := authority.Files("n1", time.Now().Add(valid))
	config := filepath.Join(l.TempDir(), "nats.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, "allow_non_tls: true\ntls { cert_file: %q, key_file: %q }", cert, key), 0o600); err != nil {
		l.Fatal(err)
	}
	n := l.nodes(1, "--nats-config", config).nodes[0]
	renew := func(valid time.Duration) {
		authority.Files("n1", time.Now().Add(valid))
		if err := n.running().cmd.Process.Signal(syscall.SIGHUP); err != nil {
			l.Fatal(err)
		}
	}
	l.raise(`instance="n1",port="client"`, func() { renew(10 * time.Minute) }, func() { renew(valid) })
}

// quiet does what operators do without a fault. No alert fires.
func (l *live) quiet() {
	c := l.nodes(3)
	l.load(5)
	l.watch()
	follower := c.without(l.leader()).name
	for _, line := range []string{
		"cantus cluster rebuild 0 --node " + follower + " --wait 10m", "cantus cluster transfer 0 --to " + follower + " --wait 1m",
		"cantus cluster drain " + follower, "cantus cluster undrain " + follower, "cantus trim 0 --before 2", "cantus upgrade check --wait 10m",
	} {
		l.command(line)
	}
	since := time.Now() // what has begun by now is seen by then
	l.prometheus.until(l.T, "the next scrapes", func() string {
		if up := l.prometheus.query(l.T, fmt.Sprintf("min_over_time(up{job=%q}[5s])", l.job)); len(up) != 3 || up[0].Value.at.Before(since.Add(shortest)) {
			return "not yet"
		}
		return ""
	})
	l.checkOthers(nil)
}

// dashboard checks that each query of the dashboard finds something in a
// cluster that does all that the panels show.
func (l *live) dashboard() {
	to := filepath.Join(l.TempDir(), "backup")
	c := l.nodes(3, append([]string{
		"--archive", to, "--msg-id-window", "1s", "--retention-interval", "500ms", "--nats-config", l.certificate(), "--locks", "10",
	}, scrubbed...)...)
	l.command("cantus retention set all --count 20 --cursor billing --archive archive")
	l.archiver(to, "--cursor", "archive")
	client := c.dial("n1")
	ctx, stop := context.WithCancel(l.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for i := uint64(1); ctx.Err() == nil; i++ {
			_, _ = client.Append(ctx, "cantus.append.0", []byte("x"), "Cantus-Append-Lock", fmt.Sprint("a.", i))
			_, _ = client.Append(ctx, "cantus.append.0", []byte("x"), "Cantus-Write-Lock", fmt.Sprint("a.", i), "Cantus-High-Water-Mark", fmt.Sprint(i-1))
			_, _ = client.Append(ctx, "cantus.append.0", []byte("x"), "Cantus-Write-Lock", "other", "Cantus-High-Water-Mark", "0")
			_, _, _, _ = client.Read(ctx, 0, map[string]any{"from": 1, "max": 10})
			_, _ = client.Request(ctx, &nats.Msg{Subject: "cantus.cursor.0.billing", Data: fmt.Appendf(nil, `{"txid":%d}`, i)})
		}
	}()
	defer func() {
		stop()
		<-ended
	}()
	l.prometheus.scrape(l.T, l.job, l.instances)
	for name, query := range dashboardQueries(l.T) {
		query.expression = strings.NewReplacer("$job", l.job, "$instance", ".*", "$partition", ".*", "$__rate_interval", "10s").Replace(query.expression)
		l.prometheus.until(l.T, name+" shows something", func() string {
			found := l.prometheus.query(l.T, query.expression)
			for _, s := range found {
				missing := slicesOf(query.labels, s.Metric)
				if s.Value.value == s.Value.value && missing == "" { // not NaN
					return ""
				}
			}
			return fmt.Sprintf("%s: %v", query.expression, found)
		})
	}
}

func (l *live) certificate() string {
	l.Helper()
	cert, key := testcert.NewAuthority(l).Files("n1", time.Now().Add(23*time.Hour))
	config := filepath.Join(l.TempDir(), "nats.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, "allow_non_tls: true\ntls { cert_file: %q, key_file: %q }", cert, key), 0o600); err != nil {
		l.Fatal(err)
	}
	return config
}

// slicesOf returns a label that is not there, "" if all are.
func slicesOf(labels []string, there map[string]string) string {
	for _, l := range labels {
		if there[l] == "" {
			return l
		}
	}
	return ""
}

// dashboardQuery is a query of the dashboard, with the labels that its legend
// shows.
type dashboardQuery struct {
	expression string
	labels     []string
}

func dashboardQueries(t *testing.T) map[string]dashboardQuery {
	t.Helper()
	text, err := os.ReadFile("../deploy/grafana/cantus.json")
	var d struct {
		Panels []struct {
			Title   string
			Targets []struct{ RefID, Expr, LegendFormat string }
		}
	}
	if err = errors.Join(err, json.Unmarshal(text, &d)); err != nil {
		t.Fatal(err)
	}
	all := map[string]dashboardQuery{}
	for _, p := range d.Panels {
		for i, q := range p.Targets {
			var labels []string
			for _, m := range regexp.MustCompile(`{{\s*(\w+)\s*}}`).FindAllStringSubmatch(q.LegendFormat, -1) {
				labels = append(labels, m[1])
			}
			all[fmt.Sprint(p.Title, " ", i)] = dashboardQuery{q.Expr, labels}
		}
	}
	if len(all) < 40 {
		t.Errorf("the dashboard has %d queries", len(all))
	}
	return all
}
