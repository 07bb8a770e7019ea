package e2e_test

import (
	"encoding/json"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// checkNoStart runs the program, which must end by itself with a failure that
// contains each of the words, without having served.
func checkNoStart(t *testing.T, args []string, words ...string) {
	t.Helper()
	p, err := run(args...)
	if err != nil {
		t.Fatal(err)
	}
	checkEnds(t, p, words...)
}

func checkEnds(t *testing.T, p *process, words ...string) {
	t.Helper()
	select {
	case <-p.done:
	case line := <-p.lines:
		p.kill()
		t.Fatalf("it serves: %q", line)
	case <-time.After(patience):
		p.kill()
		t.Fatalf("neither serving nor ended after %v\n%s", patience, p.stderr)
	}
	if code := p.cmd.ProcessState.ExitCode(); code <= 0 {
		t.Errorf("exit code %d, want a failure\n%s", code, p.stderr)
	}
	for _, word := range words {
		if !strings.Contains(p.stderr.String(), word) {
			t.Errorf("it does not say %q:\n%s", word, p.stderr)
		}
	}
	if strings.Contains(p.stderr.String(), "panic:") || strings.Contains(p.stderr.String(), "goroutine ") {
		t.Errorf("it panics:\n%s", p.stderr)
	}
}

// serve returns the arguments that serve dir on free ports.
func serve(dir string, more ...string) []string { return (&node{dir: dir, args: more}).serveArgs() }

func TestWrongDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := startNode(t, dir, "--partitions", "3", "--cluster-name", "blue", "--name", "n7")
	c := dial(t, n.url)
	first := mustAppend(t, c, 2, "x")

	t.Run("in use", func(t *testing.T) {
		checkNoStart(t, serve(dir, "--partitions", "3", "--cluster-name", "blue", "--name", "n7"), "in use", dir)
		if second := mustAppend(t, c, 2, "y"); second.Txid != first.Txid+1 {
			t.Errorf("the node that has it answers %v", second)
		}
	})
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, dir)
	t.Run("another cluster", func(t *testing.T) {
		checkNoStart(t, serve(dir, "--cluster-name", "green", "--name", "n7"), "blue", "green", dir)
	})
	t.Run("another name", func(t *testing.T) {
		checkNoStart(t, serve(dir, "--cluster-name", "blue", "--name", "n8"), "n7", "n8", dir)
	})
	t.Run("another number of partitions", func(t *testing.T) {
		checkNoStart(t, serve(dir, "--cluster-name", "blue", "--name", "n7", "--partitions", "4"), "3", "4", dir)
	})
	if after := snapshot(t, dir); !after.equal(before, "cantus.json") {
		t.Error("starts that were refused changed who the directory belongs to")
	}
	t.Run("the right one", func(t *testing.T) {
		if err := n.start(); err != nil {
			t.Fatal(err)
		}
		if info := mustInfo(t, dial(t, n.url), 2); info.HighWaterMark != 2 {
			t.Errorf("high-water mark %d, want 2", info.HighWaterMark)
		}
	})
}

func TestNoDirectory(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("not a directory"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Run("a file", func(t *testing.T) { checkNoStart(t, serve(file), file) })
	t.Run("below a file", func(t *testing.T) { checkNoStart(t, serve(filepath.Join(file, "data")), file) })
	t.Run("something else's directory", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "thesis.tex"), []byte("three years of work"), 0o600); err != nil {
			t.Fatal(err)
		}
		checkNoStart(t, serve(dir), dir, "thesis.tex")
	})
}

// TestNewerFormat edits the directory's identity as a later version would
// write it: JSON and its CRC-32C in a line of its own.
func TestNewerFormat(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := startNode(t, dir)
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "cantus.json")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	identity := map[string]any{}
	if err := json.NewDecoder(strings.NewReader(string(b))).Decode(&identity); err != nil {
		t.Fatal(err)
	}
	identity["format"] = 1000
	if b, err = json.Marshal(identity); err != nil {
		t.Fatal(err)
	}
	b = append(b, '\n')
	b = fmt.Appendf(b, "%08x\n", crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	checkNoStart(t, serve(dir), "newer", "1000", dir)
}
