//go:build interop

package e2e_test

import (
	"encoding/json"
	"errors"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/internal/workload"
)

// command runs a program of another language in its folder and returns what
// it wrote to standard output.
func command(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		var said []byte
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			said = exit.Stderr
		}
		t.Fatalf("%s %v: %v\n%s%s", name, args, err, out, said)
	}
	return string(out)
}

func TestInteropC(t *testing.T) {
	t.Parallel()
	main := filepath.Join(t.TempDir(), "main")
	command(t, "c", "cc", "-Wall", "-Wextra", "-Werror", "-o", main, "main.c", "-lnats")
	n := startNode(t, t.TempDir())
	if out := command(t, "c", main, n.url); strings.TrimSpace(out) != "ok" {
		t.Errorf("it says %q", out)
	}
}

func TestInteropNodeJS(t *testing.T) {
	t.Parallel()
	n := startNode(t, t.TempDir())
	if out := command(t, "node", "node", "basic.mjs", n.url); strings.TrimSpace(out) != "ok" {
		t.Errorf("it says %q", out)
	}
}

// TestInteropNodeJSReplay has a program in JavaScript replay the history, which
// knows NATS and the protocol only, and checks the answers that its writers got
// against the log and the file.
func TestInteropNodeJSReplay(t *testing.T) {
	t.Parallel()
	n := startNode(t, t.TempDir())
	r := &replay{history: loadHistory(t), service: n, partition: 1, clients: []*workload.Client{dial(t, n.url)}}
	file, err := filepath.Abs("testdata/nats-server-history.jsonl.gz")
	if err != nil {
		t.Fatal(err)
	}
	var result struct {
		Acked    []workload.Reply `json:"acked"`
		Refusals []struct {
			Step int    `json:"step"`
			Mark uint64 `json:"mark"`
			workload.Refusal
		} `json:"refusals"`
	}
	out := command(t, "node", "node", "replay.mjs", n.url, strconv.Itoa(r.partition), file)
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		t.Fatalf("%v: %.200s", err, out)
	}
	if len(result.Acked) != len(r.steps) {
		t.Fatalf("%d steps were acknowledged, want %d", len(result.Acked), len(r.steps))
	}
	r.acked = result.Acked
	for _, one := range result.Refusals {
		r.refusals = append(r.refusals, refused{step: one.Step, mark: one.Mark, Refusal: one.Refusal})
	}
	t.Logf("%d transactions, %d conflicts", len(r.acked), len(r.refusals))
	r.check(t)
	checkDigest(t, n, r.clients[0])
}
