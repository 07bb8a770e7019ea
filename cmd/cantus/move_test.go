package main

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/wal"
)

// ask returns the answer to a request.
func (n *inProcess) ask(subject, body string) string {
	n.t.Helper()
	nc, err := n.node.Conn()
	if err != nil {
		n.t.Fatal(err)
	}
	defer nc.Close()
	m, err := nc.Request(subject, []byte(body), 10*time.Second)
	if err != nil {
		n.t.Fatal(err)
	}
	return string(m.Data)
}

// A cursor moves with an append in a session. Exports and kept imports have it,
// and an import moves no cursor.
func TestAnAppendMovesACursor(t *testing.T) {
	n := openInProcess(t, broker.Options{})
	x := writeLines(t, "x")
	n.wantRun(0, `^1 `, "append", "0", x)
	in := func(seq string, more ...string) []string {
		return append([]string{"append", "0", x, "--session", "s1", "--session-seq", seq, "--hwm", "0"}, more...)
	}
	n.wantRun(exitConflict, `there is no cursor "billing": give it to the session first, by "owner":"session:s1"`, in("1", "--move", "billing=1")...)
	if m := n.ask("cantus.cursor.0.billing", `{"txid":0,"owner":"session:s1"}`); strings.Contains(m, "error") {
		t.Fatal(m)
	}
	n.wantRun(0, `^2 `, in("1", "--move", "billing=1")...)
	n.wantRun(0, `^3 `, in("2")...)
	n.wantRun(0, `\nsession:         s1, number 1\nmoves:           billing=1\n`, "get", "0", "2")
	n.wantRun(0, `"session":"s1","session_seq":1,"move":"billing=1","payload":"x`, "get", "0", "2", "--json")
	for _, c := range []struct{ want, args string }{
		{`--move moves a cursor of a session: name that by --session`, "--move billing=1"},
		{`--move: .*give a cursor and the txid it moves to, such as billing=812`, "--session s1 --session-seq 3 --move billing"},
	} {
		n.wantRun(exitUsage, c.want, append([]string{"append", "0", x}, strings.Fields(c.args)...)...)
	}

	file := n.export()
	kept := openInProcess(t, broker.Options{})
	kept.wantRun(0, `3 lines in partition 0`, "import", "0", file, "--keep")
	if got, want := linesOf(t, kept.export()), linesOf(t, file); strings.Join(got, "\n") != strings.Join(want, "\n") || !strings.Contains(want[1], `"move":"billing=1"`) {
		t.Errorf("imported\n%s\nand exported\n%s", strings.Join(want, "\n"), strings.Join(got, "\n"))
	}
	if m := kept.ask("cantus.cursors.0", ""); !strings.Contains(m, `"cursors":[]`) {
		t.Errorf("after an import: %s", m)
	}
	for text, lines := range map[string][]string{
		"it has move and no session": {`{"txid":1,"time":"2026-11-22T09:00:00Z","payload":"","move":"c=1"}`},
		"the position is a txid":     {`{"txid":1,"time":"2026-11-22T09:00:00Z","payload":"","session":"s1","session_seq":1,"move":"c=0"}`},
		"it has move: that of an atomic batch is at its first": {
			`{"txid":1,"time":"2026-11-22T09:00:00Z","payload":"","session":"s1","session_seq":1,"move":"c=1","atomic":{"first":1,"last":2}}`,
			`{"txid":2,"time":"2026-11-22T09:00:00.000000001Z","payload":"","session":"s1","session_seq":1,"move":"c=1","atomic":{"first":1,"last":2}}`,
		},
	} {
		openInProcess(t, broker.Options{}).wantRun(exitUsage, text, "import", "0", writeLines(t, lines...), "--keep")
	}
}

func TestSalvageWritesMoves(t *testing.T) {
	name := filepath.Join(t.TempDir(), "left.jsonl")
	f, err := createSalvageFile(name)
	if err != nil {
		t.Fatal(err)
	}
	err = f.write(0, &wal.Transaction{Txid: 7, Kind: []byte("k"), Session: []byte("s1"), SessionSeq: 3, Cursor: []byte("c"), CursorTxid: 5})
	if err := errors.Join(err, f.close()); err != nil {
		t.Fatal(err)
	}
	if line, err := decodeTransaction([]byte(linesOf(t, name)[0])); err != nil || line.Move != "c=5" {
		t.Errorf("%+v, %v", line, err)
	}
}
