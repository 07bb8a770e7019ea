//go:build encryption && linux

package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/powercut"
	"github.com/cantuslog/cantus/internal/testkit"
)

// What the tests write, and look for in the raw image of a disk.
const (
	secretPayload = "the payload that nobody may read on the disk"
	secretLock    = "lock-that-nobody-may-read"
)

// rawDisk is a disk without a file system: a loop device on a file.
type rawDisk struct{ image, device string }

func newRawDisk(t *testing.T, size int64) rawDisk {
	t.Helper()
	d := rawDisk{image: filepath.Join(t.TempDir(), "image")}
	if err := errors.Join(os.WriteFile(d.image, nil, 0o600), os.Truncate(d.image, size)); err != nil {
		t.Fatal(err)
	}
	d.device = strings.TrimSpace(mustShell(t, "losetup --find --show "+d.image))
	t.Cleanup(func() { mustShell(t, "losetup --detach "+d.device) })
	return d
}

func mustShell(t *testing.T, line string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", line).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// shows reports which of some texts are in the image, whether or not they lie
// across two pieces that are read.
func (d rawDisk) shows(t *testing.T, texts ...string) (found []string) {
	t.Helper()
	mustShell(t, "sync; blockdev --flushbufs "+d.device)
	f, err := os.Open(d.image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	piece, kept := make([]byte, 4<<20), 0
	for {
		n, err := io.ReadFull(f, piece[kept:])
		for _, text := range texts {
			if bytes.Contains(piece[:kept+n], []byte(text)) && !slices.Contains(found, text) {
				found = append(found, text)
			}
		}
		if err != nil {
			return found
		}
		kept = copy(piece, piece[len(piece)-256:])
	}
}

// flushes is how many flushes have reached the disk.
func (d rawDisk) flushes(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(d.device), "stat"))
	fields := strings.Fields(string(text))
	if err != nil || len(fields) < 17 {
		t.Fatalf("%q, %v", text, err)
	}
	n, err := strconv.Atoi(fields[15])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// diskSecrets are what the image must not show.
func diskSecrets(t *testing.T, dir string) []string {
	t.Helper()
	key, err := os.ReadFile(filepath.Join(dir, "cluster.key"))
	if err != nil || len(key) < 16 {
		t.Fatalf("%q, %v", key, err)
	}
	return []string{secretPayload, secretLock, string(key)}
}

// encryption is the recipe "Data on disks".
type encryption struct {
	*recipe
	disk    rawDisk
	dir     string // the data directory
	node    *node
	written int
}

// encrypt follows the page up to the node, on a disk of this machine.
func encrypt(t *testing.T, size int64) (e *encryption, rest []string) {
	t.Helper()
	e = &encryption{recipe: security(t, "Data on disks"), disk: newRawDisk(t, size)}
	t.Cleanup(func() { _ = exec.Command("cryptsetup", "close", "cantus").Run() })
	mount := filepath.Join(e.s.dir, "cantus")
	t.Cleanup(func() { _ = exec.Command("umount", mount).Run() })
	for i, line := range e.lines {
		e.lines[i] = strings.ReplaceAll(line, "/dev/sdb", e.disk.device)
	}
	at := slices.IndexFunc(e.lines, func(line string) bool { return strings.HasPrefix(line, "cantus serve ") })
	if at != 6 {
		t.Fatalf("the page's commands are %q", e.lines)
	}
	e.follow(e.lines[:at]...)
	e.dir = filepath.Join(mount, "data")
	e.node = startNode(t, e.dir, "--partitions", "1")
	return e, slices.DeleteFunc(e.lines[at+1:], func(line string) bool { return line == "" })
}

// write appends transactions, and waits for their answers.
func (e *encryption) write(n int) {
	e.t.Helper()
	nc := e.dial()
	defer nc.Close()
	for range n {
		m := nats.NewMsg("cantus.append.0")
		m.Data = fmt.Appendf(nil, "%s %d", secretPayload, e.written+1)
		m.Header.Set("Cantus-Append-Lock", fmt.Sprint(secretLock, ".", e.written+1))
		if answer, err := nc.RequestMsg(m, patience); err != nil || !strings.Contains(string(answer.Data), `"txid":`) {
			e.t.Fatalf("append %d: %v, %v", e.written+1, answer, err)
		}
		e.written++
	}
}

func (e *encryption) dial() *nats.Conn {
	e.t.Helper()
	nc, err := nats.Connect(e.node.url)
	if err != nil {
		e.t.Fatal(err)
	}
	return nc
}

// check reads everything that was acknowledged.
func (e *encryption) check() {
	e.t.Helper()
	nc := e.dial()
	defer nc.Close()
	for i := range e.written {
		m, err := nc.Request("cantus.get.0", fmt.Appendf(nil, `{"txid":%d}`, i+1), patience)
		if want := fmt.Sprintf("%s %d", secretPayload, i+1); err != nil || string(m.Data) != want {
			e.t.Fatalf("transaction %d is %v, %v", i+1, m, err)
		}
	}
}

// TestEncryptionRecipe follows the recipe: an encrypted disk shows nothing, and
// its keys are replaced while the node serves.
func TestEncryptionRecipe(t *testing.T) {
	e, rest := encrypt(t, 640<<20)
	e.write(20)
	if found := e.disk.shows(t, diskSecrets(t, e.dir)...); len(found) > 0 {
		t.Errorf("the encrypted disk shows %q", found)
	}
	if len(rest) != 7 {
		t.Fatalf("the rest of the page's commands are %q", rest)
	}
	old := filepath.Join(t.TempDir(), "old")
	mustShell(t, "cp "+e.file("disk.key")+" "+old)
	e.follow(rest[:5]...) // another key file
	e.write(5)
	if out, status := e.run("cryptsetup open --test-passphrase --key-file " + old + " " + e.disk.device); status == 0 {
		t.Errorf("the old key still opens the disk: %s", out)
	}

	t.Logf("the old key does not open the disk any more: %d transactions are there", e.written)

	// Another volume key. The rotation, then the node, then both are killed.
	before := e.volumeKey()
	for _, kill := range []struct{ node, rotation bool }{{false, true}, {true, false}, {true, true}} {
		for !e.interrupt(rest[5], rest[6], kill.node, kill.rotation) {
			t.Log("the rotation was over before it could be interrupted: once more")
		}
		e.write(5)
		e.check()
		t.Logf("interrupted, with kills of %+v: %d transactions are there", kill, e.written)
	}
	if e.rotating() {
		e.follow(rest[6])
	}
	if after := e.volumeKey(); after == before {
		t.Error("the volume key is the one before")
	}
	if e.rotating() {
		t.Error("the rotation has not ended")
	}
	e.write(5)
	e.check()
	if found := e.disk.shows(t, diskSecrets(t, e.dir)...); len(found) > 0 {
		t.Errorf("the encrypted disk shows %q", found)
	}
}

// volumeKey identifies the volume key.
func (e *encryption) volumeKey() string {
	_, digest, _ := strings.Cut(mustShell(e.t, "cryptsetup luksDump "+e.disk.device), "Digests:")
	return digest
}

// rotating reports whether the disk has two volume keys, each for a part of it.
func (e *encryption) rotating() bool {
	e.t.Helper()
	return strings.Contains(mustShell(e.t, "cryptsetup luksDump "+e.disk.device), "reencrypt")
}

// interrupt begins a rotation of the volume key, or goes on with one, and kills
// it, the node, or both, while transactions are appended. Without a kill it is
// ended by a signal. interrupt reports whether that was in the middle.
func (e *encryption) interrupt(begin, resume string, node, rotation bool) bool {
	t := e.t
	t.Helper()
	line := begin
	if e.rotating() {
		line = resume
	}
	cmd := exec.Command("sh", "-c", "exec "+e.here(line))
	var out tail
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	over := false
	testkit.Until(t, "the rotation goes on while the node serves", func() bool {
		e.write(3)
		select {
		case err := <-ended:
			if over = true; err != nil {
				t.Fatalf("%s: %v\n%s", line, err, out.String())
			}
		default:
		}
		return over || e.rotating()
	})
	if over {
		return false
	}
	if node {
		e.node.kill()
	}
	if rotation {
		_ = cmd.Process.Signal(syscall.SIGKILL)
		<-ended
		middle := e.rotating()
		e.reopen()
		return middle
	}
	if err := e.node.start(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	<-ended
	return true
}

// reopen opens the volume and the node again, as after the machine has failed.
// A rotation that was killed may have left a part of the volume suspended,
// which must not be resumed: what would be written there is not what the
// rotation expects. So all that is done on the volume from now on fails.
func (e *encryption) reopen() {
	t := e.t
	t.Helper()
	mount := filepath.Dir(e.dir)
	mustShell(t, "for d in $(dmsetup ls | awk '/^cantus/ { print $1 }'); do dmsetup wipe_table --force --nolockfs --noflush $d; done")
	e.node.kill()
	mustShell(t, "umount "+mount+"; dmsetup remove_all --force")
	e.follow(e.lines[2], e.lines[5])
	if err := e.node.start(); err != nil {
		t.Fatal(err)
	}
	t.Logf("the volume and the node are open again")
}

// TestEncryptionPlain is the same on a disk that is not encrypted: what looks
// for secrets finds them.
func TestEncryptionPlain(t *testing.T) {
	disk, mount := newRawDisk(t, 512<<20), t.TempDir()
	mustShell(t, "mkfs.ext4 -q "+disk.device+" && mount "+disk.device+" "+mount)
	t.Cleanup(func() { mustShell(t, "umount "+mount) })
	e := &encryption{recipe: &recipe{t: t, s: newNewcomer(t)}, disk: disk, dir: filepath.Join(mount, "data")}
	e.node = startNode(t, e.dir, "--partitions", "1")
	t.Cleanup(e.node.kill)
	e.write(3)
	want := diskSecrets(t, e.dir)
	if found := disk.shows(t, want...); !slices.Equal(found, want) {
		t.Errorf("the plain disk shows %q, want %q", found, want)
	}
}

// TestEncryptionSyncs checks that each commit's sync reaches the disk below the
// encryption as a flush, and that what was acknowledged survives a cut of the
// power.
func TestEncryptionSyncs(t *testing.T) {
	e, _ := encrypt(t, 512<<20)
	e.write(1)
	before, frames := e.disk.flushes(t), e.node.frames(t)
	e.write(30)
	flushes, synced := e.disk.flushes(t)-before, e.node.frames(t)-frames
	if synced < 30 || flushes < synced {
		t.Errorf("%d commits were synced, and %d flushes reached the disk", synced, flushes)
	}
	mount := filepath.Dir(e.dir)
	powercut.Cut(t, mount)
	e.node.kill()
	mustShell(t, "umount "+mount+" && cryptsetup close cantus")
	e.follow(e.lines[2], e.lines[5])
	if err := e.node.start(); err != nil {
		t.Fatal(err)
	}
	e.check()
}

// TestEncryptionCost measures appends on an encrypted and on a plain disk, in
// turns, and logs how they compare. What is measured asserts nothing.
func TestEncryptionCost(t *testing.T) {
	e, _ := encrypt(t, 2<<30)
	e.node.kill()
	plain, mount := newRawDisk(t, 2<<30), t.TempDir()
	mustShell(t, "mkfs.ext4 -q "+plain.device+" && mount "+plain.device+" "+mount)
	t.Cleanup(func() { mustShell(t, "umount "+mount) })
	for _, inFlight := range []string{"1", "256"} {
		rates := map[string][]float64{}
		for range 3 {
			for name, dir := range map[string]string{"plain": mount, "encrypted": filepath.Dir(e.dir)} { // in any order
				data := filepath.Join(dir, "bench")
				out := mustShell(t, program+" bench append --json --rounds 1 --warm-up 1s --duration 3s --in-flight "+inFlight+" --data "+data+" 2>/dev/null; rm -rf "+data)
				var result struct {
					Results []struct{ Rate struct{ Median float64 } }
				}
				if err := json.Unmarshal([]byte(out), &result); err != nil || len(result.Results) == 0 {
					t.Fatalf("%v\n%s", err, out)
				}
				rates[name] = append(rates[name], result.Results[0].Rate.Median)
			}
		}
		slices.Sort(rates["plain"])
		slices.Sort(rates["encrypted"])
		t.Logf("%s in flight: %.0f appends a second on a plain disk, %.0f on an encrypted one: %.2f", inFlight,
			rates["plain"][1], rates["encrypted"][1], rates["encrypted"][1]/rates["plain"][1])
	}
}
