package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/client"
)

// atomicFile exports a log of single transactions and atomic batches, and
// returns the file.
func atomicFile(t *testing.T) string {
	t.Helper()
	n := openInProcess(t, broker.Options{})
	n.append(1, 2)
	for i, size := range []int{3, 2, 5000, 40} {
		b := &client.AtomicBatch{ID: fmt.Sprint("batch-", i)}
		for j := range size {
			payload := fmt.Append(nil, i, j)
			if size == 40 {
				payload = bytes.Repeat([]byte("x"), 20_000) // more than a batch of an import
			}
			b.Add("part", payload).AppendLock(fmt.Sprint("lock.", i))
		}
		if _, err := n.AppendAtomic(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Append(t.Context(), &client.Request{Payload: []byte("between")}); err != nil {
			t.Fatal(err)
		}
	}
	return n.export()
}

func (n *inProcess) export(args ...string) string {
	n.t.Helper()
	file := filepath.Join(n.t.TempDir(), "export.jsonl")
	n.wantRun(0, `exported`, append([]string{"export", "0", file}, args...)...)
	return file
}

func linesOf(t *testing.T, file string) []string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}

// An import with --keep makes the same log, with its atomic batches: the node
// recognizes a repeat of one.
func TestAKeptImportKeepsAtomicBatches(t *testing.T) {
	file := atomicFile(t)
	want := linesOf(t, file)
	if got := want[3]; !strings.Contains(got, `"txid":4,`) || !strings.Contains(got, `"atomic":{"first":3,"last":5}`) {
		t.Errorf("the export has %s", got)
	}
	n := openInProcess(t, broker.Options{})
	n.wantRun(0, fmt.Sprintf(`\n%d lines in partition 0`, len(want)), "import", "0", file, "--keep")
	if got := linesOf(t, n.export()); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%d lines were imported, and %d are exported, which are others", len(want), len(got))
	}
	for status, last := range map[int]string{0: `{"kind":"part","append_locks":["lock.0"],"payload":"0 2"}`, exitUsage: `{"payload":"other"}`} {
		n.wantRun(status, `^3-5 \S+ partition=0 duplicate\n$|batch-0`, "append", "0", "--atomic", "--id", "batch-0",
			writeLines(t, `{"kind":"part","payload":"0 0"}`, `{"kind":"part","payload":"0 1"}`, last))
	}
	n.append(len(want)+1, len(want)+1)
	n.wantRun(0, fmt.Sprintf(`%d lines in partition 0.*; 0 appended now`, len(want)), "import", "0", file, "--keep")
	// The same log with another division is another one.
	other := writeLines(t, slices.Concat(without(want[:5]), want[5:])...)
	n.wantRun(exitUsage, `is not this file`, "import", "0", other, "--keep")
}

// without returns lines without their atomic batch.
func without(lines []string) (all []string) {
	for _, l := range lines {
		all = append(all, regexp.MustCompile(`"atomic":\{[^}]*\},`).ReplaceAllString(l, ""))
	}
	return all
}

func TestAKeptImportRefusesBrokenAtomicBatches(t *testing.T) {
	n := openInProcess(t, broker.Options{})
	line := func(txid int, first, last int, more string) string {
		atomic := ""
		if first > 0 {
			atomic = fmt.Sprintf(`,"atomic":{"first":%d,"last":%d}`, first, last)
		}
		return fmt.Sprintf(`{"txid":%d,"time":"2026-11-22T09:00:00.%09dZ"%s,"payload":"x"%s}`, txid, txid, atomic, more)
	}
	for _, c := range []struct {
		lines []string
		want  string
	}{
		{[]string{line(2, 1, 3, ""), line(3, 1, 3, "")}, `line 1: its atomic batch begins with transaction 1, which is missing`},
		{[]string{line(1, 1, 3, ""), line(2, 1, 3, "")}, `line 2: the atomic batch 1-3 is not whole: its line with transaction 3 is missing`},
		{[]string{line(1, 1, 3, ""), line(2, 0, 0, "")}, `line 2: the atomic batch 1-3 is not whole: its line with transaction 2 is missing`},
		{[]string{line(1, 1, 3, ""), line(2, 2, 3, ""), line(3, 2, 3, "")}, `line 2: the atomic batch 1-3 is not whole`},
		{[]string{line(1, 0, 0, ""), line(2, 1, 3, ""), line(3, 1, 3, "")}, `line 2: its atomic batch begins with transaction 1`},
		{[]string{line(1, 1, 2, ""), line(3, 0, 0, "")}, `line 2: its txid is 3, and 2 comes next`},
		{[]string{line(1, 1, 2, ""), line(2, 1, 2, `,"msg_id":"b"`)}, `line 2: it has a msg_id: that of an atomic batch is at its first transaction, 1`},
		{[]string{line(1, 1, 2, ""), strings.Replace(line(2, 1, 2, ""), "09:00:00", "09:00:01", 1)}, `line 2: its time is not one nanosecond after .*: write 2026-11-22T09:00:00\.000000002Z`},
		{[]string{line(1, 2, 3, "")}, `line 1: transaction 1 is not part of an atomic batch from 2 to 3`},
	} {
		n.wantRun(exitUsage, c.want, "import", "0", writeLines(t, c.lines...), "--keep")
	}
	n.wantRun(0, `^$`, "read", "0")
	// Times that are not later are moved on together.
	n.wantRun(0, `3 lines in partition 0`, "import", "0", "--keep",
		writeLines(t, strings.Replace(line(1, 0, 0, ""), "09:00:00", "09:00:01", 1), line(2, 2, 3, ""), line(3, 2, 3, "")))
	n.wantRun(0, `"txid":3,"time":"2026-11-22T09:00:01\.000000003Z",.*"atomic":\{"first":2,"last":3\},"headers":\{"Original-Time":\["2026-11-22T09:00:00\.000000003Z"\]\}`, "get", "0", "3", "--json")
}

// Into a partition in use, atomic batches are imported as such. The import goes
// on after what is there, wherever the file ended.
func TestAnImportAppendsAtomicBatches(t *testing.T) {
	want := linesOf(t, atomicFile(t))
	for _, begun := range []string{"empty", "in use"} {
		n := openInProcess(t, broker.Options{})
		before := 0
		if begun == "in use" {
			n.append(1, 2)
			before = 2
		}
		first := slices.Concat(want[2:6], want) // an atomic batch is the first
		for _, lines := range []int{4, 4, 5, 9, 12, 13, 13 + 3000, len(first), len(first)} {
			out := n.wantRun(0, fmt.Sprintf(`%d lines in partition 0`, lines), "import", "0", "--name", "x", writeLines(t, first[:lines]...))
			if strings.Contains(out, "looking for") {
				t.Errorf("%s: the cursor is not where the last line is: %s", begun, out)
			}
			n.wantRun(0, ` `, "append", "0", writeLines(t, "beside"))
		}
		got := linesOf(t, n.export("--from", fmt.Sprint(before+1)))
		got = deleteBeside(got)
		if len(got) != len(first) {
			t.Fatalf("%s: %d lines are in the log, want %d", begun, len(got), len(first))
		}
		for i, line := range got {
			original, err := decodeTransaction([]byte(first[i]))
			if err != nil {
				t.Fatal(err)
			}
			now, err := decodeTransaction([]byte(line))
			if err != nil {
				t.Fatal(err)
			}
			if string(now.appendPayload(nil)) != string(original.appendPayload(nil)) || !now.hasHeader(headerOriginalTxid) {
				t.Fatalf("%s: line %d is %.200s", begun, i, line)
			}
			switch a, o := now.Atomic, original.Atomic; {
			case i >= 13 && i < 13+5000: // it was cut by the end of a file
				if a == nil || a.size() != 3000 && a.size() != 2000 {
					t.Fatalf("%s: line %d is in %v", begun, i, a)
				}
			case (a == nil) != (o == nil), a != nil && (a.size() != o.size() || now.Txid-a.First != original.Txid-o.First):
				t.Fatalf("%s: line %d is in %v, and was in %v", begun, i, a, o)
			}
		}
		n.wantRun(exitUsage, `lines? .*begun with --plain|begun without --plain`, "import", "0", "--name", "x", "--plain", writeLines(t, first...))
	}
}

// deleteBeside returns the lines that were imported.
func deleteBeside(lines []string) (all []string) {
	for _, l := range lines {
		if !strings.Contains(l, `"payload":"beside\n"`) {
			all = append(all, l)
		}
	}
	return all
}

func TestAnImportRefusesBrokenAtomicBatches(t *testing.T) {
	n := openInProcess(t, broker.Options{})
	part := func(txid int, more string) string {
		return fmt.Sprintf(`{"txid":%d,"atomic":{"first":1,"last":3},"payload":"x"%s}`, txid, more)
	}
	large := fmt.Sprintf(`,"headers":{"A":[%q]}`, strings.Repeat("x", 600_000))
	for _, c := range []struct {
		lines []string
		want  string
	}{
		{[]string{part(2, ""), part(1, "")}, `line 2: its txid is 1, and that of the line before, which is in the same atomic batch, 2`},
		{[]string{part(0, ""), part(0, ""), part(0, ""), part(0, "")}, `lines 1 to 4: the atomic batch 1-3 has 3 transactions, and this is one more`},
		{[]string{part(1, ""), part(2, `,"kind":"a b"`)}, `line 2: kind "a b"`},
		{[]string{part(1, large), part(2, large)}, `lines 1 to 2, an atomic batch, have 12\d+ bytes with the headers that an import adds: at most \d+ are allowed`},
	} {
		n.wantRun(exitUsage, c.want, "import", "0", writeLines(t, c.lines...))
	}
	n.wantRun(0, `^$`, "read", "0")
	// What a filter has left of one is imported together.
	n.wantRun(0, `3 lines`, "import", "0", writeLines(t, part(1, ""), part(3, ""), `{"payload":"y"}`))
	n.wantRun(0, `^1 .*atomic:1-2.*\n2 .*atomic:1-2.*\n3  \S+  tx  -  y\n$`, "read", "0")
}
