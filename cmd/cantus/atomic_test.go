package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

// writeLines writes lines to a file and returns its name.
func writeLines(t *testing.T, lines ...string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "lines.jsonl")
	if err := os.WriteFile(name, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// wantRun runs a command and checks its status and that its output matches a
// regular expression.
func (n *inProcess) wantRun(status int, output string, args ...string) string {
	n.t.Helper()
	got, out := n.run(args...)
	if got != status || !regexp.MustCompile(output).MatchString(out) {
		n.t.Errorf("cantus %q ends with %d, want %d and %s:\n%s", args, got, status, output, out)
	}
	return out
}

func TestAppendAtomic(t *testing.T) {
	n := openInProcess(t, broker.Options{})
	n.wantRun(0, `^1 `, "append", "0", "--append", "a", writeLines(t, "x"))
	file := writeLines(t,
		`{"kind":"booked","write_locks":["desk.12"],"append_locks":["all"],"payload":"one"}`,
		``,
		`{"read_locks":["b"],"headers":{"X-App":["1","2"]},"payload_base64":"/w=="}`,
		`{"payload":""}`)
	out := n.wantRun(0, `^2-4 \S+ partition=0\n$`, "append", "0", "--atomic", "--hwm", "1", "--id", "booking", "--expected-last", "1", file)
	n.wantRun(0, "^"+regexp.QuoteMeta(strings.TrimSuffix(out, "\n"))+" duplicate\n$", "append", "0", "--atomic", "--hwm", "1", "--id", "booking", file)
	for _, args := range [][]string{{"read", "0", "--from", "2"}, {"read", "0", "--newest-first"}} {
		n.wantRun(0, `2  \S+  booked  w:desk\.12 a:all  atomic:2-4  one\n`, args...)
		n.wantRun(0, `4  \S+  tx  -  atomic:2-4  \n`, args...)
	}
	n.wantRun(0, `^1  \S+  tx  a:a  x`, "read", "0", "--max", "1")
	n.wantRun(0, `"txid":3,.*"read_locks":\["b"\],"high_water_mark":1,"atomic":\{"first":2,"last":4\},"headers":\{"X-App":\["1","2"\]\},"payload_base64":"/w=="\}\n`, "get", "0", "3", "--json")
	n.wantRun(0, `high-water mark: 1\natomic batch:    2-4\nmessage id:      booking\n`, "get", "0", "2")

	var reply struct {
		Results []subjects.BatchRun
		Error   *subjects.Error
		Txid    *uint64
	}
	out = n.wantRun(0, `^\{`, "append", "0", "--atomic", "--hwm", "1", "--id", "booking", "--json", file)
	if err := json.Unmarshal([]byte(out), &reply); err != nil || len(reply.Results) != 1 || reply.Results[0].Count != 3 || reply.Results[0].Txid != 2 || !reply.Results[0].Duplicate || reply.Txid != nil {
		t.Errorf("%s: %v", out, err)
	}
	n.wantRun(exitConflict, `lock desk\.12 was recorded by transaction 2 of partition 0`, "append", "0", "--atomic", "--hwm", "1", file)
	n.wantRun(exitConflict, `--unless number 1 matches transaction 2`, "append", "0", "--atomic", "--hwm", "1", "--unless", `{"kinds":["booked"]}`, writeLines(t, `{"payload":"x"}`, `{"payload":"y"}`))
	n.wantRun(exitConflict, `append with --expected-last 4`, "append", "0", "--atomic", "--expected-last", "1", writeLines(t, `{"payload":"x"}`, `{"payload":"y"}`))
	n.wantRun(exitUsage, `was used by txid 2|message id`, "append", "0", "--atomic", "--id", "booking", writeLines(t, `{"payload":"x"}`, `{"payload":"y"}`))
	n.wantRun(0, `^5 \S+ partition=0\n$`, "append", "0", "--atomic", writeLines(t, `{"payload":"x"}`))
	n.wantRun(0, `^6-7 \S+ partition=0\n$`, "append", "--key", "alice", "--atomic", writeLines(t, `{"payload":"x"}`, `{"payload":"y"}`))
}

func TestAppendAtomicRefusesWhatIsNotRight(t *testing.T) {
	n := openInProcess(t, broker.Options{})
	good := writeLines(t, `{"payload":"x"}`, `{"payload":"y"}`)
	flags := `--write, --read, --append, --kind and --header are not given with --atomic`
	for _, args := range [][]string{{"--write", "a", "--hwm", "0"}, {"--read", "a", "--hwm", "0"}, {"--append", "a"}, {"--kind", "a"}, {"--header", "A: b"}} {
		n.wantRun(exitUsage, flags, append([]string{"append", "0", "--atomic", good}, args...)...)
	}
	for _, c := range []struct{ line, want string }{
		{``, `there are no transactions: write a JSON object a line`},
		{`x`, `line 1: not a transaction in JSON`},
		{`{"kind":"a"}`, `line 1: it has no payload`},
		{`{"payload":"","kind":"a b"}`, `line 1: kind "a b"`},
		{`{"payload":"","write_locks":["a"]}`, `line 1: write_locks and read_locks need --hwm TXID`},
		{`{"payload":"","append_locks":["a,b"]}`, `line 1: lock "a,b" holds a comma`},
		{`{"payload":"","headers":{"Nats-X":["a"]}}`, `line 1: header "Nats-X"`},
		{`{"payload":"","partition":0}`, `line 1: with --atomic a line has`},
		{`{"payload":"","txid":1}`, `line 1: with --atomic a line has`},
		{`{"payload":"","time":"2026-11-01T08:30:00Z"}`, `line 1: with --atomic a line has`},
		{`{"payload":"","msg_id":"a"}`, `line 1: with --atomic a line has`},
		{`{"payload":"","high_water_mark":0}`, `line 1: with --atomic a line has`},
		{`{"payload":"","atomic":{"first":1,"last":2}}`, `line 1: with --atomic a line has`},
		{strings.Repeat(`{"payload":""}`+"\n", subjects.MaxBatch+1), `more than 5000 transactions`},
		{strings.Repeat(`{"payload":"`+strings.Repeat("x", 300_000)+`"}`+"\n", 4), `the NATS server takes at most 1048576`},
	} {
		n.wantRun(exitUsage, c.want, "append", "0", "--atomic", writeLines(t, c.line))
	}
	n.wantRun(0, `^$`, "read", "0")
}

// A range that is malformed, or is not the transaction's, is not shown.
func TestAtomicRangesAreChecked(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{`{"payload":"","txid":2,"atomic":{"first":2,"last":3}}`, ""},
		{`{"payload":"","atomic":{"first":2,"last":3}}`, ""},
		{`{"payload":"","txid":1,"atomic":{"first":2,"last":3}}`, "transaction 1 is not part of an atomic batch from 2 to 3"},
		{`{"payload":"","txid":4,"atomic":{"first":2,"last":3}}`, "transaction 4 is not part of"},
		{`{"payload":"","txid":2,"atomic":{"first":2,"last":2}}`, "it has two transactions at least"},
		{`{"payload":"","txid":2,"atomic":{"first":3,"last":2}}`, "it has two transactions at least"},
		{`{"payload":"","txid":2,"atomic":{}}`, "txids begin at 1"},
		{`{"payload":"","atomic":{"first":1,"last":9000}}`, "at most 5000 transactions"},
		{`{"payload":"","atomic":{"first":1,"last":2,"size":2}}`, "size"},
		{`{"payload":"","atomic":"1-2"}`, "atomic"},
	} {
		switch decoded, err := decodeTransaction([]byte(c.line)); {
		case c.want == "" && (err != nil || decoded.Atomic == nil):
			t.Errorf("%s: %v", c.line, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", c.line, err, c.want)
		}
	}
	for value, good := range map[string]bool{"7-9": true, "7-7": false, "8-9": false, "": false, "7": false} {
		block := subjects.AppendBlockEnd(subjects.AppendField(subjects.AppendBlockStart(nil), subjects.HeaderAtomic, value))
		unpacked, err := unpackTransaction(0, subjects.Packed{Txid: 7, Header: block}, false)
		if (err == nil) != good || good && unpacked.Atomic.String() != value {
			t.Errorf("%q: %+v, %v", value, unpacked, err)
		}
	}
	twice := subjects.AppendField(subjects.AppendBlockStart(nil), subjects.HeaderAtomic, "7-9")
	if _, err := unpackTransaction(0, subjects.Packed{Txid: 7, Header: subjects.AppendBlockEnd(subjects.AppendField(twice, subjects.HeaderAtomic, "7-9"))}, false); err == nil {
		t.Error("it is given twice")
	}
}

// The page shows the atomic batch of a transaction, in rows and alone.
func TestThePageShowsAtomicBatches(t *testing.T) {
	in := &transaction{Txid: 814, Atomic: &atomicRange{813, 815}}
	for _, shown := range []*pageTransaction{rowOfPage(in), wholeOfPage(in)} {
		text, err := json.Marshal(shown)
		if err != nil || !strings.Contains(string(text), `"atomic":"813-815"`) {
			t.Errorf("%s, %v", text, err)
		}
	}
	if text, err := json.Marshal(wholeOfPage(&transaction{Txid: 1})); err != nil || strings.Contains(string(text), "atomic") {
		t.Errorf("%s, %v", text, err)
	}
}
