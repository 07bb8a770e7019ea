package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/cantuslog/cantus/internal/workload"
)

// TestCommitRule tries which locks conflict: the columns are the locks that a
// transaction has at a mark, the rows those that were committed after it.
func TestCommitRule(t *testing.T) {
	t.Parallel()
	n := startNode(t, t.TempDir())
	c := dial(t, n.url)
	lock := 0
	for _, before := range []string{"Write", "Append", "Read"} {
		for _, asked := range []string{"Write", "Read", "Append", ""} {
			t.Run(before+" then "+asked, func(t *testing.T) {
				lock++
				name := fmt.Sprintf("x%d", lock)
				mark := strconv.FormatUint(mustInfo(t, c, 0).HighWaterMark, 10)
				first := mustAppend(t, c, 0, "before", "Cantus-"+before+"-Lock", name, "Cantus-High-Water-Mark", mark)
				headers := []string{"Cantus-High-Water-Mark", mark}
				if asked != "" {
					headers = append(headers, "Cantus-"+asked+"-Lock", name)
				}
				answer, err := c.Append(t.Context(), "cantus.append.0", []byte("asked"), headers...)
				if err != nil {
					t.Fatal(err)
				}
				want := before != "Read" && (asked == "Write" || asked == "Read")
				if got := answer.Error != nil; got != want {
					t.Fatalf("answered %v, refused must be %t", answer, want)
				}
				if want {
					newLockHistory(drain(t, c, 0)).checkRefusal(t, *answer.Error, first.Txid-1, map[string]string{"Write": "write", "Read": "read"}[asked], []string{name})
					// At a mark that includes the transaction named in the
					// conflict, the retry commits.
					headers[1] = strconv.FormatUint(answer.Error.Txid, 10)
					mustAppend(t, c, 0, "asked again", headers...)
				}
			})
		}
	}
}

// TestOneNameTwoModes checks that a transaction that names a lock twice is
// checked and recorded like any other, and does not conflict with itself.
func TestOneNameTwoModes(t *testing.T) {
	t.Parallel()
	n := startNode(t, t.TempDir())
	c := dial(t, n.url)
	const mark = "Cantus-High-Water-Mark"
	mustAppend(t, c, 0, "read and write", "Cantus-Read-Lock", "a", "Cantus-Write-Lock", "a", mark, "0")
	mustAppend(t, c, 0, "append and write", "Cantus-Append-Lock", "b", "Cantus-Write-Lock", "b", mark, "0")
	mustAppend(t, c, 0, "subtree and point in it", "Cantus-Write-Lock", "c.>", "Cantus-Write-Lock", "c.d", mark, "0")
	answer, err := c.Append(t.Context(), "cantus.append.0", nil, "Cantus-Read-Lock", "a", "Cantus-Write-Lock", "b",
		"Cantus-Write-Lock", "c.e", "Cantus-Append-Lock", "a", "Cantus-Write-Lock", "free", mark, "1")
	if err != nil || answer.Error == nil || answer.Error.Reason != "conflict" {
		t.Fatalf("answered %v %v, want a conflict", answer, err)
	}
	want := []workload.Conflict{{Lock: "c.e", Mode: "write", Txid: 3}, {Lock: "b", Mode: "write", Txid: 2}}
	if fmt.Sprint(answer.Error.Conflicts) != fmt.Sprint(want) || answer.Error.Txid != 3 || answer.Error.Lock != "c.e" {
		t.Errorf("refused with %+v, want %v", answer.Error, want)
	}
}

// TestCounter is a chain that breaks if even one transaction commits on a stale
// state: each payload is its writer's mark plus one, all under one lock, so
// that in the log every payload must equal its own txid. Several writers append
// at the same mark, and one wins.
func TestCounter(t *testing.T) {
	t.Parallel()
	const contenders, each = 8, 50
	n := startNode(t, t.TempDir())
	group, ctx := errgroup.WithContext(t.Context())
	for range contenders {
		c := dial(t, n.url)
		group.Go(func() error { return count(ctx, c, each) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	log := drain(t, dial(t, n.url), 0)
	if len(log) != contenders*each {
		t.Errorf("%d transactions, want %d", len(log), contenders*each)
	}
	for i, m := range log {
		if string(m.Data) != strconv.Itoa(i+1) {
			t.Fatalf("txid %d was computed at mark %s", i+1, m.Header.Get("Cantus-High-Water-Mark"))
		}
	}
}

func count(ctx context.Context, c *workload.Client, times int) error {
	var mark uint64
	for done := 0; done < times; {
		answer, err := c.Append(ctx, "cantus.append.0", []byte(strconv.FormatUint(mark+1, 10)),
			"Cantus-Write-Lock", "counter", "Cantus-High-Water-Mark", strconv.FormatUint(mark, 10))
		switch {
		case err != nil:
			return err
		case answer.Error == nil:
			mark = answer.Txid
			done++
		case answer.Error.Reason != "conflict" || answer.Error.Txid <= mark:
			return fmt.Errorf("at mark %d: %v", mark, answer)
		default:
			mark = answer.Error.Txid
		}
	}
	return nil
}

// TestFarBehind appends at a mark that 10,000 commits have passed: locks that
// none of them recorded are free, the others conflict.
func TestFarBehind(t *testing.T) {
	t.Parallel()
	n := startNode(t, t.TempDir())
	c, r := dial(t, n.url), dialRaw(t, n.url)
	for first := 0; first < 10_000; first += maxBatch {
		var batch []byte
		for i := range maxBatch {
			batch = append(batch, frame(block(fmt.Sprintf("%sl.%d", write, first+i), mark0), []byte("x"))...)
		}
		if got := sendBatch(t, r, 0, batch); len(got.Results) != 1 || got.Results[0].Count != maxBatch {
			t.Fatalf("the batch was answered %+v", got)
		}
	}
	for i := 0; i < 10_000; i += 97 {
		answer, err := c.Append(t.Context(), "cantus.append.0", nil, "Cantus-Write-Lock", fmt.Sprintf("l.%d", i), "Cantus-High-Water-Mark", "0")
		if err != nil || answer.Error == nil || answer.Error.Txid != uint64(i+1) {
			t.Fatalf("l.%d at mark 0: %v %v", i, answer, err)
		}
		mustAppend(t, c, 0, "", "Cantus-Write-Lock", fmt.Sprintf("l.%d", i), "Cantus-High-Water-Mark", strconv.Itoa(i+1))
	}
	mustAppend(t, c, 0, "free", "Cantus-Write-Lock", "l.10000", "Cantus-Write-Lock", "m", "Cantus-High-Water-Mark", "0")
}

// TestStaleAfterRestart appends to a restarted node with marks of before the
// restart: the locks are as they were.
func TestStaleAfterRestart(t *testing.T) {
	t.Parallel()
	n := startNode(t, t.TempDir())
	c := dial(t, n.url)
	mustAppend(t, c, 3, "one", "Cantus-Write-Lock", "a.b", "Cantus-High-Water-Mark", "0")
	mustAppend(t, c, 3, "two", "Cantus-Append-Lock", "c.>")
	newest := map[string]uint64{"a.>": 1, "a.b": 1, "c.d": 2, ">": 42}
	for i := range 40 {
		lock := fmt.Sprintf("l.%d", i)
		newest[lock] = mustAppend(t, c, 3, "more", "Cantus-Append-Lock", lock).Txid
	}
	cursor(t, c, 3, "reader", `{"txid":1}`)
	for _, end := range []func() error{n.stop, func() error { n.kill(); return nil }} {
		before := mustInfo(t, c, 3)
		if err := errors.Join(end(), n.start()); err != nil {
			t.Fatal(err)
		}
		c = dial(t, n.url)
		for lock, txid := range newest {
			answer, err := c.Append(t.Context(), "cantus.append.3", nil, "Cantus-Read-Lock", lock, "Cantus-High-Water-Mark", "0")
			if err != nil || answer.Error == nil || answer.Error.Txid != txid {
				t.Errorf("%s at mark 0: %v %v, want a conflict with %d", lock, answer, err, txid)
			}
		}
		after := mustInfo(t, c, 3)
		if after.Digest != before.Digest || after.HighWaterMark != 42 || after.Locks.Tracked != before.Locks.Tracked || after.Locks.Floor != 0 {
			t.Errorf("before %+v\nafter %+v", before, after)
		}
		if at := cursor(t, c, 3, "reader", ""); at.Txid != 1 {
			t.Errorf("the cursor is at %d", at.Txid)
		}
	}
}

// TestAppendByKey checks that each key has a partition, always the same one.
func TestAppendByKey(t *testing.T) {
	t.Parallel()
	n := startNode(t, t.TempDir())
	c := dial(t, n.url)
	used := map[int]bool{}
	for i := range 64 {
		subject := fmt.Sprintf("cantus.append.key.account-%d", i)
		one, err1 := c.Append(t.Context(), subject, []byte("x"))
		two, err2 := c.Append(t.Context(), subject, []byte("x"))
		if err := errors.Join(err1, err2); err != nil || one.Error != nil || two.Error != nil {
			t.Fatalf("%s: %v, %v %v", subject, err, one, two)
		}
		if one.Partition != two.Partition || two.Txid != one.Txid+1 {
			t.Errorf("%s went to %d as %d, then to %d as %d", subject, one.Partition, one.Txid, two.Partition, two.Txid)
		}
		used[one.Partition] = true
	}
	if len(used) != 4 {
		t.Errorf("64 keys used the partitions %v of 4", used)
	}
}

// TestCursor sets, compares and reads cursors.
func TestCursor(t *testing.T) {
	t.Parallel()
	n := startNode(t, t.TempDir())
	c := dial(t, n.url)
	for range 5 {
		mustAppend(t, c, 0, "x")
	}
	for _, step := range []struct {
		body   string
		txid   uint64
		reason string
	}{
		{"", 0, ""}, {`{"txid":2,"expected":0}`, 2, ""}, {`{"txid":3,"expected":0}`, 2, "wrong_last"}, {`{"txid":5,"expected":2}`, 5, ""},
		{`{"txid":1}`, 1, ""}, {`{"txid":6}`, 1, "ahead"}, {"", 1, ""},
	} {
		r := cursor(t, c, 0, "c1", step.body)
		reason := ""
		if r.Error != nil {
			reason = r.Error.Reason
		}
		if at := cursor(t, c, 0, "c1", ""); reason != step.reason || at.Txid != step.txid {
			t.Errorf("%s: %+v, then at %d; want %q and %d", step.body, r, at.Txid, step.reason, step.txid)
		}
	}
	if at := cursor(t, c, 1, "c1", ""); at.Txid != 0 {
		t.Errorf("in another partition the cursor is at %d", at.Txid)
	}
	if info := mustInfo(t, c, 0); info.HighWaterMark != 5 {
		t.Errorf("cursors moved the high-water mark to %d", info.HighWaterMark)
	}
}
