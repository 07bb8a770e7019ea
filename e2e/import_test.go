package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/cantuslog/cantus/internal/ports"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/internal/workload"
)

// importLine is a line of an import or an export.
type importLine struct {
	Partition   int                 `json:"partition"`
	Txid        uint64              `json:"txid"`
	Time        time.Time           `json:"time"`
	Kind        string              `json:"kind"`
	WriteLocks  []string            `json:"write_locks,omitempty"`
	Mark        *uint64             `json:"high_water_mark,omitempty"`
	AppendLocks []string            `json:"append_locks,omitempty"`
	MsgID       string              `json:"msg_id,omitempty"`
	Headers     map[string][]string `json:"headers,omitempty"`
	Payload     string              `json:"payload"`
}

// importLines returns the history as it would have been exported. Some of its
// times go back, and all message ids are the same.
func importLines(h *history) (lines []importLine) {
	for i, s := range h.steps {
		mark := uint64(i)
		lines = append(lines, importLine{
			Mark: &mark, Txid: uint64(i) + 1, Time: time.Unix(s.Time, 0).UTC(), Kind: "commit", WriteLocks: s.locks(), MsgID: "same",
			Headers: map[string][]string{"Commit": {s.id()}}, Payload: string(s.payload),
		})
	}
	return lines
}

func writeLines(tb testing.TB, lines []importLine) (path string) {
	tb.Helper()
	var b bytes.Buffer
	for _, l := range lines {
		line, err := json.Marshal(l)
		if err != nil {
			tb.Fatal(err)
		}
		b.Write(append(line, '\n'))
	}
	path = filepath.Join(tb.TempDir(), "history.jsonl")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

// checkImported checks that a partition has each line once and in order, among
// the transactions of others.
func checkImported(t *testing.T, url string, lines []importLine) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out.jsonl")
	if code, _, errs := cantus(t, "export", "0", out, "--server", url); code != 0 {
		t.Fatalf("export: status %d: %s", code, errs)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	next, others := 0, 0
	for n, line := range bytes.Split(bytes.TrimSuffix(text, []byte("\n")), []byte("\n")) {
		var got importLine
		if err := json.Unmarshal(line, &got); err != nil || got.Txid != uint64(n)+1 {
			t.Fatalf("line %d of the export is transaction %d: %v", n+1, got.Txid, err)
		}
		if got.Kind != "commit" {
			others++
			continue
		}
		if next == len(lines) {
			t.Fatalf("transaction %d is one line too many: %s", got.Txid, line)
		}
		want := lines[next]
		next++
		for name, value := range map[string]string{
			"Commit": want.Headers["Commit"][0], "Original-Time": want.Time.Format(time.RFC3339Nano), "Original-Txid": fmt.Sprint(want.Txid), "Original-Msg-Id": "same",
		} {
			if !slices.Equal(got.Headers[name], []string{value}) {
				t.Fatalf("transaction %d is line %d, and has %s %q, want %q", got.Txid, next, name, got.Headers[name], value)
			}
		}
		if got.Payload != want.Payload || !slices.Equal(got.AppendLocks, want.WriteLocks) || got.WriteLocks != nil {
			t.Fatalf("transaction %d is not line %d: %s", got.Txid, next, line)
		}
	}
	if next != len(lines) {
		t.Fatalf("%d of %d lines are in the log", next, len(lines))
	}
	t.Logf("%d lines, among %d transactions of another writer", next, others)
}

// importHistory returns the lines of the history, as many as the tier has, and
// a configuration with small messages, so that an import has many of them.
func importHistory(t *testing.T) (lines []importLine, file, config string) {
	t.Helper()
	h := loadHistory(t)
	if n := testkit.Sized(800, 4000, len(h.commits)); n < len(h.commits) {
		h = h.head(t, n)
	}
	lines = importLines(h)
	config = filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(config, []byte("max_payload: 32768\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return lines, writeLines(t, lines), config
}

// TestAnInterruptedImport imports the history while another writer appends. It
// kills the import ten times, and the node under it three times.
func TestAnInterruptedImport(t *testing.T) {
	testkit.NotShort(t, "it starts several processes or nodes")
	testkit.Parallel(t)
	lines, file, config := importHistory(t)
	n := startNode(t, t.TempDir(), "--partitions", "1", "--nats-config", config, "--listen", ports.Free(t))
	client := dial(t, n.url)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var writing errgroup.Group
	writing.Go(func() error { return writeBeside(ctx, n.url) })

	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	early := 0
	for kill := range 10 {
		p, err := run("import", "0", file, "--server", n.url, "--timeout", "2s")
		if err != nil {
			t.Fatal(err)
		}
		grow := func() {
			mark := mustInfo(t, client, 0).HighWaterMark + 1 + random.Uint64N(uint64(len(lines)/8))
			testkit.Until(t, "the log grows", func() bool { return mustInfo(t, client, 0).HighWaterMark >= mark })
		}
		grow()
		if kill%3 == 1 { // the node first: the import goes on when it is back
			n.kill()
			if err := n.start(); err != nil {
				t.Fatal(err)
			}
			client = dial(t, n.url)
			grow()
		}
		select {
		case <-p.done:
			early++
		default:
		}
		p.kill()
	}
	code, out, errs := cantus(t, "import", "0", file, "--server", n.url)
	if code != 0 {
		t.Fatalf("the last import: status %d: %s", code, errs)
	}
	t.Logf("10 kills, %d of them after the end: %s%s", early, errs, out)
	if code, out, errs := cantus(t, "import", "0", file, "--server", n.url, "--json"); code != 0 || !bytes.Contains([]byte(out), []byte(`"appended":0`)) {
		t.Errorf("once more: status %d: %s%s", code, out, errs)
	}
	cancel()
	if err := writing.Wait(); err != nil {
		t.Fatal(err)
	}
	checkImported(t, n.url, lines)
}

// TestAnImportFindsItsLines goes on with imports whose cursor is far behind, on
// a node that forgets message ids at once: the lines are found in the log, not
// recognized by the node.
func TestAnImportFindsItsLines(t *testing.T) {
	lines := importLines(loadHistory(t).head(t, 300))
	n := startNode(t, t.TempDir(), "--partitions", "1", "--msg-ids", "1")
	client := dial(t, n.url)
	for _, count := range []int{1, 2, 150, 151, 300, 300} {
		count = min(count, len(lines))
		code, out, errs := cantus(t, "import", "0", writeLines(t, lines[:count]), "--server", n.url, "--json")
		var result struct {
			Lines  int    `json:"lines"`
			Last   uint64 `json:"last_txid"`
			Cursor string `json:"cursor"`
		}
		if err := json.Unmarshal([]byte(out), &result); err != nil || code != 0 || result.Lines != count {
			t.Fatalf("%d lines: status %d: %s%s", count, code, out, errs)
		}
		for _, m := range []*nats.Msg{
			workload.NewAppend(0, "beside", "Cantus-Kind", "beside"),
			{Subject: "cantus.cursor.0." + result.Cursor, Data: fmt.Appendf(nil, `{"txid":%d}`, 1+rand.Uint64N(result.Last))},
		} {
			if reply, err := client.Conn.RequestMsg(m, patience); err != nil || bytes.Contains(reply.Data, []byte(`"error"`)) {
				t.Fatalf("%s: %v", m.Subject, err)
			}
		}
	}
	checkImported(t, n.url, lines[:min(300, len(lines))])
}

// TestAnImportThroughLeaders imports the history into three nodes, whose leader
// is killed again and again. One run of the import gets all of it in.
func TestAnImportThroughLeaders(t *testing.T) {
	lines, file, config := importHistory(t)
	c := startCluster(t, 3, "--partitions", "1", "--nats-config", config)
	var urls []string
	for _, n := range c.nodes {
		urls = append(urls, n.url)
	}
	p, err := run("import", "0", file, "--server", strings.Join(urls, ","), "--timeout", "2s")
	if err != nil {
		t.Fatal(err)
	}
	client := c.dial(c.nodes[0].name)
	for kills, at := 0, uint64(len(lines)/8); kills < 5; at += uint64(len(lines) / 8) {
		var leader string
		testkit.Until(t, "the log grows", func() bool {
			info := mustInfo(t, client, 0)
			leader = info.Leader
			return info.HighWaterMark >= at
		})
		n := c.node(leader)
		n.kill()
		if err := n.start(); err != nil {
			t.Fatal(err)
		}
		kills++
	}
	select {
	case <-p.done:
	case <-time.After(patience):
		t.Fatal("the import does not end")
	}
	if p.err != nil {
		t.Fatalf("import: %v\n%s", p.err, p.stderr)
	}
	t.Logf("%s", p.stderr)
	checkImported(t, strings.Join(urls, ","), lines)
}

// TestAnInterruptedKeptImport imports the history with its times, and kills the
// import ten times, and the node under it three times. The log is then the one
// that an import without interruptions makes.
func TestAnInterruptedKeptImport(t *testing.T) {
	testkit.Parallel(t)
	lines, file, config := importHistory(t)
	n := startNode(t, t.TempDir(), "--partitions", "2", "--nats-config", config, "--listen", ports.Free(t))
	if code, _, errs := cantus(t, "import", "1", file, "--keep", "--server", n.url); code != 0 {
		t.Fatalf("without interruptions: status %d: %s", code, errs)
	}
	client := dial(t, n.url)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	early := 0
	for kill := range 10 {
		p, err := run("import", "0", file, "--keep", "--server", n.url, "--timeout", "2s")
		if err != nil {
			t.Fatal(err)
		}
		grow := func() {
			mark := min(mustInfo(t, client, 0).HighWaterMark+1+random.Uint64N(uint64(len(lines)/8)), uint64(len(lines)))
			testkit.Until(t, "the log grows", func() bool { return mustInfo(t, client, 0).HighWaterMark >= mark })
		}
		grow()
		if kill%3 == 1 {
			n.kill()
			if err := n.start(); err != nil {
				t.Fatal(err)
			}
			client = dial(t, n.url)
			grow()
		}
		select {
		case <-p.done:
			early++
		default:
		}
		p.kill()
	}
	code, out, errs := cantus(t, "import", "0", file, "--keep", "--server", n.url)
	if code != 0 {
		t.Fatalf("the last import: status %d: %s", code, errs)
	}
	t.Logf("10 kills, %d of them after the end: %s%s", early, errs, out)
	if a, b := mustInfo(t, client, 0), mustInfo(t, client, 1); a.Digest != b.Digest || a.HighWaterMark != b.HighWaterMark || a.HighWaterMark != uint64(len(lines)) {
		t.Errorf("interrupted: %+v\nnot: %+v", a, b)
	}
	last := time.Time{}
	for i, m := range drain(t, client, 0) {
		want := lines[i].Time
		if !want.After(last) {
			want = last.Add(1)
		}
		last = want
		if workload.Txid(m) != lines[i].Txid || m.Header.Get("Cantus-Time") != want.Format(time.RFC3339Nano) || m.Header.Get("Cantus-Msg-Id") != "same" ||
			m.Header.Get("Cantus-Write-Lock") != strings.Join(lines[i].WriteLocks, ",") || string(m.Data) != lines[i].Payload {
			t.Fatalf("line %d is %+v", i+1, m.Header)
		}
	}
}

// writeBeside appends transactions until ctx ends, whatever becomes of them.
func writeBeside(ctx context.Context, url string) error {
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
	if err != nil {
		return err
	}
	defer nc.Close()
	for i := 0; ctx.Err() == nil; i++ {
		_, _ = nc.RequestMsg(workload.NewAppend(0, fmt.Sprint("beside ", i), "Cantus-Kind", "beside"), time.Second)
	}
	return nil
}
