package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

// keptLines writes a file of some lines, a second apart, and returns its name.
func keptLines(t *testing.T, of string, lines int) string {
	t.Helper()
	var all bytes.Buffer
	for i := 1; i <= lines; i++ {
		fmt.Fprintf(&all, `{"time":"2026-11-22T09:00:%02dZ","payload":"%s %d"}`+"\n", i, of, i)
	}
	name := filepath.Join(t.TempDir(), of+".jsonl")
	if err := os.WriteFile(name, all.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// run runs a command on the node, and returns its exit status and output.
func (n *inProcess) run(args ...string) (int, string) {
	n.t.Helper()
	var out bytes.Buffer
	p := &program{in: strings.NewReader("more"), out: &out, errOut: &out}
	status := p.run(n.t.Context(), append(args, "--server", n.node.ClientURL()))
	return status, out.String()
}

// importPart does what an import with --keep of a file does before it is
// killed: all but the end.
func (n *inProcess) importPart(file string) {
	n.t.Helper()
	f, err := os.Open(file)
	if err != nil {
		n.t.Fatal(err)
	}
	defer f.Close()
	p := &program{out: new(bytes.Buffer), errOut: new(bytes.Buffer)}
	cmd := &importCmd{File: file, Keep: true, connection: connection{
		Server: n.node.ClientURL(), Timeout: duration(10 * time.Second), natsFlags: natsFlags{Prefix: "cantus", Inbox: "_INBOX"},
	}}
	k := &keptImport{importer: &importer{cmd: cmd, p: p, since: time.Now()}, file: f}
	for _, err := range k.batches() {
		if err != nil {
			n.t.Fatal(err)
		}
	}
	if k.conn, err = cmd.open(n.t.Context(), "import"); err != nil {
		n.t.Fatal(err)
	}
	defer k.conn.close()
	reply, err := k.step(n.t.Context(), subjects.RestoreRequest{Begin: &subjects.RestoreBegin{Cluster: k.source()}})
	if err == nil {
		err = k.send(n.t.Context(), 0, reply.Digest)
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

// An import with --keep whose file is lost is ended by hand, with what
// cantus.info.<p> says and the name that a refusal gives.
func TestAKeptImportIsEndedWithoutItsFile(t *testing.T) {
	n := openInProcess(t, broker.Options{})
	n.importPart(keptLines(t, "lost", 3))
	nc, err := n.node.Conn()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	request := func(subject, body string) []byte {
		t.Helper()
		msg, err := nc.Request(subject, []byte(body), 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		return msg.Data
	}
	var info subjects.PartitionInfo
	if err := json.Unmarshal(request("cantus.info.0", ""), &info); err != nil {
		t.Fatal(err)
	}
	end := func(cluster string) string {
		return string(request("cantus.admin.restore.0", fmt.Sprintf(`{"end":{"txid":%d,"digest":%q,"history":[{"cluster":%q,"last_txid":%d}]}}`,
			info.HighWaterMark, info.Digest, cluster, info.HighWaterMark)))
	}
	_, name, refused := strings.Cut(end("import-unknown"), "the backup is of cluster ")
	name, _, named := strings.Cut(name, " ")
	if !refused || !named {
		t.Fatalf("%+v: no name, but %q", info, name)
	}
	if answer := end(name); strings.Contains(answer, "error") {
		t.Fatal(answer)
	}
	n.append(4, 5)
	if status, out := n.run("read", "0"); status != exitDone || strings.Count(out, "lost") != 3 {
		t.Errorf("status %d: %s", status, out)
	}
}

// An import with --keep that is given up ends with the lines that are there.
// The partition is then like any other: they can be trimmed, and others come
// after them.
func TestAKeptImportIsGivenUp(t *testing.T) {
	n := openInProcess(t, broker.Options{})
	whole, other := keptLines(t, "whole", 9), keptLines(t, "other", 2)
	for _, c := range []struct {
		file   string
		status int
		says   string
	}{
		{other, exitUsage, "run that import again, with its file or with a copy that ends after line 3 or later"},
		{keptLines(t, "whole", 2), exitUsage, "partition 0 has 3 lines of this import, and the file has 2: give one that has at least those"},
		{keptLines(t, "whole", 3), exitDone, "3 lines in partition 0, the last as transaction 3"},
		{whole, exitUsage, "--keep needs an empty partition"},
	} {
		if c.file == other {
			n.importPart(keptLines(t, "whole", 3))
		}
		if status, out := n.run("import", "0", c.file, "--keep"); status != c.status || !strings.Contains(out, c.says) {
			t.Errorf("%s: status %d: %s", c.file, status, out)
		}
	}
	for _, c := range []struct{ args, says string }{
		{"trim 0 --before 4", "4"},
		{"import 0 " + other, "2 lines in partition 0, the last as transaction 5"},
		{"append 0", "6"},
		{"read 0 --from 4", "other 2"},
	} {
		if status, out := n.run(strings.Fields(c.args)...); status != exitDone || !strings.Contains(out, c.says) {
			t.Errorf("%s: status %d: %s", c.args, status, out)
		}
	}
}

// Blanks around a header's value are not kept, as in an append: what an export
// of the partition prints is imported as the same log.
func TestAKeptHeaderHasNoBlanksAround(t *testing.T) {
	line := `{"time":"2026-11-22T09:00:00Z","headers":{"A":[" one\t",""]},"payload":""}`
	tx, err := decodeTransaction([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	stored, err := storedTransaction(tx)
	if err != nil || string(stored.Header) != "A: one\r\nA: \r\n" {
		t.Errorf("the header is %q, %v", stored.Header, err)
	}
}
