package main

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

func TestAppendInASession(t *testing.T) {
	n := openInProcess(t, broker.Options{})
	x := writeLines(t, "x")
	in := func(more ...string) []string { return append([]string{"append", "0", x, "--session", "s1"}, more...) }
	n.wantRun(0, `^1 \S+ partition=0\n$`, in("--session-seq", "1", "--write", "counter", "--hwm", "0")...)
	n.wantRun(0, `^2 \S+ partition=0\n$`, in("--session-seq", "2", "--write", "counter", "--hwm", "0")...)
	n.wantRun(0, `^2 \S+ partition=0 duplicate\n$`, in("--session-seq", "2")...)
	n.wantRun(exitConflict, `number 4 of session "s1" does not follow 2, the last one that was accepted: send 3 first\n$`, in("--session-seq", "4")...)
	n.wantRun(exitConflict, `"session_seq":2`, in("--session-seq", "4", "--json")...)
	n.wantRun(exitConflict, `lock counter was recorded by transaction 2`, "append", "0", x, "--write", "counter", "--hwm", "0")
	n.wantRun(exitConflict, `append with --expected-last 2`, in("--session-seq", "3", "--expected-last", "1")...)
	file := writeLines(t, `{"payload":"a"}`, `{"payload":"b"}`)
	n.wantRun(0, `^3-4 \S+ partition=0\n$`, "append", "0", "--atomic", "--session", "s1", "--session-seq", "3", file)

	n.wantRun(0, `^1  \S+  tx  w:counter  session:s1#1  x`, "read", "0")
	n.wantRun(0, `4  \S+  tx  -  atomic:3-4  session:s1#3  b\n`, "read", "0", "--newest-first")
	n.wantRun(0, `"txid":2,.*"session":"s1","session_seq":2,"payload":"x`, "get", "0", "2", "--json")
	n.wantRun(0, `\nsession:         s1, number 2\n`, "get", "0", "2")

	n.wantRun(0, `^txid: +3\n`, "get", "0", "--session", "s1", "--session-seq", "3")

	for _, c := range []struct{ want, args string }{
		{`--session needs --session-seq N`, "--session s1"},
		{`--session-seq is a number in a session: name that by --session`, "--session-seq 1"},
		{`"0" is no number in a session: give a whole number from 1 on`, "--session s1 --session-seq 0"},
		{`give either --id or --session`, "--session s1 --session-seq 1 --hwm 0 --id a"},
		{`--session-seq: "-1" is no number in a session: give a whole number from 1 on`, "--session s1 --session-seq -1"},
		{`--session-seq 1 needs --hwm TXID`, "--session s1 --session-seq 1"},
		{`--session: .*s 1|--session: .*s\.1`, "--session s.1 --session-seq 1 --hwm 0"},
	} {
		n.wantRun(exitUsage, c.want, append([]string{"append", "0", x}, strings.Fields(c.args)...)...)
	}
	n.wantRun(exitUsage, `line 1: with --atomic a line has`, "append", "0", "--atomic", writeLines(t, `{"payload":"","session":"a","session_seq":1}`))
}

// sessionFile exports a log with a session, of which one number is an atomic
// batch.
func sessionFile(t *testing.T) string {
	t.Helper()
	n := openInProcess(t, broker.Options{})
	x := writeLines(t, "x")
	n.wantRun(0, `^1 `, "append", "0", x, "--session", "s1", "--session-seq", "1", "--hwm", "0", "--write", "counter")
	n.wantRun(0, `^2-3 `, "append", "0", "--atomic", "--session", "s1", "--session-seq", "2", writeLines(t, `{"payload":"a"}`, `{"payload":"b"}`))
	n.wantRun(0, `^4 `, "append", "0", x)
	return n.export()
}

// An import with --keep keeps sessions: the node recognizes a repeat, and goes
// on with the next number.
func TestAKeptImportKeepsSessions(t *testing.T) {
	file := sessionFile(t)
	want := linesOf(t, file)
	n := openInProcess(t, broker.Options{})
	n.wantRun(0, `4 lines in partition 0`, "import", "0", file, "--keep")
	if got := linesOf(t, n.export()); strings.Join(got, "\n") != strings.Join(want, "\n") || !strings.Contains(want[2], `"session":"s1","session_seq":2`) {
		t.Errorf("imported\n%s\nand exported\n%s", strings.Join(want, "\n"), strings.Join(got, "\n"))
	}
	n.wantRun(0, `^2-3 \S+ partition=0 duplicate\n$`, "append", "0", "--atomic", "--session", "s1", "--session-seq", "2", writeLines(t, `{"payload":"a"}`, `{"payload":"b"}`))
	n.wantRun(0, `^5 `, "append", "0", writeLines(t, "x"), "--session", "s1", "--session-seq", "3", "--hwm", "0", "--write", "counter")
	for text, lines := range map[string][]string{
		"it has one of session and session_seq": {`{"txid":1,"time":"2026-11-22T09:00:00Z","payload":"","session":"s1"}`},
		"it has both msg_id and session":        {`{"txid":1,"time":"2026-11-22T09:00:00Z","payload":"","session":"s1","session_seq":1,"msg_id":"m"}`},
		"Cantus-Session":                        {`{"txid":1,"time":"2026-11-22T09:00:00Z","payload":"","session":"s.1","session_seq":1}`},
		"an atomic batch has one number as a whole": {
			`{"txid":1,"time":"2026-11-22T09:00:00Z","payload":"","session":"s1","session_seq":1,"atomic":{"first":1,"last":2}}`,
			`{"txid":2,"time":"2026-11-22T09:00:00.000000001Z","payload":"","session":"s1","session_seq":2,"atomic":{"first":1,"last":2}}`,
		},
	} {
		openInProcess(t, broker.Options{}).wantRun(exitUsage, text, "import", "0", writeLines(t, lines...), "--keep")
	}
}

// Another import leaves sessions out.
func TestAnImportLeavesSessionsOut(t *testing.T) {
	n := openInProcess(t, broker.Options{})
	n.wantRun(0, `4 lines`, "import", "0", sessionFile(t))
	all, err := n.Client.HighWaterMark(t.Context(), 0)
	if err != nil || all != 4 {
		t.Fatal(all, err)
	}
	for tx, err := range n.All(t.Context(), 0, 0, client.FollowOptions{}) {
		if err != nil || tx.Session != "" || tx.SessionSeq != 0 || tx.Header.Get(subjects.HeaderSession) != "" {
			t.Errorf("%+v, %v", tx, err)
		}
		if err != nil || tx.Txid == 4 {
			break
		}
	}
}

// The page shows the session of a transaction, in rows and alone.
func TestThePageShowsSessions(t *testing.T) {
	in := &transaction{Txid: 814, Session: "s1", SessionSeq: 7}
	for _, shown := range []*pageTransaction{rowOfPage(in), wholeOfPage(in)} {
		text, err := json.Marshal(shown)
		if err != nil || !strings.Contains(string(text), `"session":"s1","session_seq":"7"`) {
			t.Errorf("%s, %v", text, err)
		}
	}
	if text, err := json.Marshal(wholeOfPage(&transaction{Txid: 1})); err != nil || strings.Contains(string(text), "session") {
		t.Errorf("%s, %v", text, err)
	}
}

func TestSalvageWritesSessions(t *testing.T) {
	name := filepath.Join(t.TempDir(), "left.jsonl")
	f, err := createSalvageFile(name)
	if err != nil {
		t.Fatal(err)
	}
	err = f.write(0, &wal.Transaction{Txid: 7, Kind: []byte("k"), Session: []byte("s1"), SessionSeq: 3})
	if err := errors.Join(err, f.close()); err != nil {
		t.Fatal(err)
	}
	line, err := decodeTransaction([]byte(linesOf(t, name)[0]))
	if err != nil || line.Session != "s1" || line.SessionSeq != 3 {
		t.Errorf("%+v, %v", line, err)
	}
}
