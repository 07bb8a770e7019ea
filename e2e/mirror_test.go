package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/internal/workload"
)

// A cluster under load is mirrored while leaders on both sides are killed, and
// the mirror command too; two commands run at once. A consumer follows the
// mirror meanwhile, and goes on when the mirror is promoted. In the end both
// clusters have the same log, and a consumer that is ahead of the mirror is
// told so.
func TestClusterMirror(t *testing.T) {
	source := newCluster(t, 3, "--partitions", "2", "--msg-id-window", "30m")
	mirror := newCluster(second{t}, 3, "--partitions", "2", "--msg-id-window", "30m")
	startClusters(source, mirror)
	args := []string{"mirror", "--from", source.url(), "--to", mirror.url(), "--quiet"}
	load := startLoad(source, 2)
	client, watcher := source.dial(source.nodes[0].name), mirror.dial(mirror.nodes[0].name)
	consumer := follow(t, mirror, args)
	rounds := testkit.Sized(1, 2, 10)
	for round := range rounds {
		killWhileMirrored(t, source, mirror, round, args)
	}
	load.stop(t)
	source.awaitPlaced()
	mirror.awaitPlaced()
	for p := range 2 {
		mustSetCursor(t, client, p, "billing", 50)
	}
	if code, stdout, stderr := cantus(t, append(args, "--once", "--json")...); code != 0 || strings.Count(stdout, `"behind":0`) != 2 {
		t.Fatalf("mirror ended with %d: %s%s", code, stdout, stderr)
	}
	logs := map[int][]*nats.Msg{}
	for p := range 2 {
		want, got := mustInfo(t, client, p), mustInfo(t, watcher, p)
		if got.HighWaterMark != want.HighWaterMark || got.Digest != want.Digest || got.HighWaterMark == 0 {
			t.Errorf("partition %d ends at %d with the digest %s, the source at %d with %s", p, got.HighWaterMark, got.Digest, want.HighWaterMark, want.Digest)
		}
		logs[p] = drain(t, watcher, p)
		checkRestoredLog(t, drain(t, client, p), logs[p])
		if got, want := mustCursor(t, watcher, p, "billing"), mustCursor(t, client, p, "billing"); got != want || !strings.Contains(got, `"txid":50`) {
			t.Errorf("the cursor of partition %d is %s, at the source %s", p, got, want)
		}
	}
	lost := source.mustKeep(client, 0, "not in the mirror")
	if code, stdout, stderr := cantus(t, "mirror", "promote", "--server", mirror.url()); code != 0 || strings.Count(stdout, "promoted, and takes appends") != 2 {
		t.Fatalf("promote ended with %d: %s%s", code, stdout, stderr)
	}
	if code, stdout, stderr := cantus(t, append(args, "--once")...); code != 3 || !strings.Contains(stderr, "is not a mirror") {
		t.Errorf("after the promotion mirror ended with %d: %s%s", code, stdout, stderr)
	}
	first := logs[0][0]
	again, err := mirror.keep(t.Context(), watcher, workload.NewAppend(0, string(first.Data), "Nats-Msg-Id", first.Header.Get("Cantus-Msg-Id")))
	if err != nil || !again.Duplicate || again.Txid != 1 {
		t.Errorf("the first transaction, sent again, is %+v, %v", again, err)
	}
	for i := range 3 {
		if r := mirror.mustKeep(watcher, 0, fmt.Sprint("after the promotion ", i)); r.Txid != lost.Txid+uint64(i) {
			t.Fatalf("appended as %d, want %d", r.Txid, lost.Txid+uint64(i))
		}
	}
	checkToldAhead(t, client, watcher, lost.Txid)
	logs[0] = drain(t, watcher, 0)
	consumer.check(t, mirror, logs[0])
	if !testkit.Long() {
		return
	}
	mirror.checkSame(t, logs)
	if err := load.acknowledged(0, "not in the mirror", lost); err != nil {
		t.Fatal(err)
	}
	load.check(t)
}

// killWhileMirrored runs two mirror commands at once, and kills a leader on one
// side, and both commands, once they have mirrored something.
func killWhileMirrored(t *testing.T, source, mirror *cluster, round int, args []string) {
	t.Helper()
	watcher := mirror.dial(mirror.nodes[0].name)
	p := round % 2
	mark := uint64(0)
	if info, err := watcher.Info(t.Context(), p); err == nil {
		mark = info.HighWaterMark
	}
	var commands []*process
	for range 2 {
		command, err := run(args...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(command.kill)
		commands = append(commands, command)
	}
	mirror.awaitMirrored(t, watcher, p, mark+20, commands[0], commands[1])
	side := []*cluster{source, mirror}[round%2]
	client := side.dial(side.nodes[0].name)
	leader, err := side.leader(t.Context(), client, p)
	if err != nil {
		t.Fatal(err)
	}
	leader.kill()
	if err := side.awaitOther(t.Context(), side.dial(side.without(leader).name), leader); err != nil {
		t.Fatal(err)
	}
	commands[0].kill()
	// The other one goes on, up to what the source has now.
	now, err := source.dial(source.nodes[0].name).Info(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	mirror.awaitMirrored(t, watcher, p, now.HighWaterMark, commands[1])
	commands[1].kill()
	if err := leader.start(); err != nil {
		t.Fatal(err)
	}
	if err := side.awaitReady(t.Context(), client); err != nil {
		t.Fatal(err)
	}
}

// awaitMirrored waits until a mirror has a partition up to a transaction. The
// commands that mirror it must not end meanwhile.
func (c *cluster) awaitMirrored(t *testing.T, client *workload.Client, p int, mark uint64, commands ...*process) {
	t.Helper()
	err := c.until(t.Context(), "mirrored", func(ctx context.Context) string {
		for _, command := range commands {
			if command.ended() {
				t.Fatalf("a mirror command ended: %v\n%s", command.err, command.stderr)
			}
		}
		info, err := client.Info(ctx, p)
		if err != nil {
			return err.Error()
		}
		if info.HighWaterMark < mark {
			return fmt.Sprintf("partition %d is at %d, and not at %d", p, info.HighWaterMark, mark)
		}
		return ""
	})
	if err != nil {
		for _, command := range commands {
			t.Logf("a mirror command says:\n%s", command.stderr)
		}
		t.Fatal(err)
	}
}

// consumer is the output of a command that follows partition 0 of a mirror.
type consumer struct{ file string }

// follow begins to mirror, and follows the mirror from its first transaction
// on.
func follow(t *testing.T, mirror *cluster, args []string) consumer {
	t.Helper()
	command, err := run(args...)
	if err != nil {
		t.Fatal(err)
	}
	watcher := mirror.dial(mirror.nodes[0].name)
	mirror.awaitMirrored(t, watcher, 0, 1)
	command.kill()
	out, err := os.Create(filepath.Join(t.TempDir(), "consumer"))
	if err != nil {
		t.Fatal(err)
	}
	reader := exec.Command(program, "read", "0", "--follow", "--json", "--server", mirror.url())
	reader.Stdout = out
	if err := errors.Join(reader.Start(), out.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(reader.Process.Kill(), reader.Wait()) })
	return consumer{out.Name()}
}

// check checks that the consumer has got a log, once and in order.
func (r consumer) check(t *testing.T, c *cluster, log []*nats.Msg) {
	t.Helper()
	var lines []string
	err := c.until(t.Context(), "followed", func(context.Context) string {
		text, err := os.ReadFile(r.file)
		if err != nil {
			return err.Error()
		}
		lines = strings.Split(strings.TrimSpace(string(text)), "\n")
		if len(lines) < len(log) {
			return fmt.Sprintf("%d of %d transactions", len(lines), len(log))
		}
		return ""
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range lines {
		var tx struct {
			Txid uint64
		}
		if err := json.Unmarshal([]byte(line), &tx); err != nil || tx.Txid != uint64(i+1) {
			t.Fatalf("line %d of the consumer is %s, %v", i+1, line, err)
		}
	}
}
