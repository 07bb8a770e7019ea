package broker_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/wal"
)

// logWriter appends entries, with any time, to the log of a directory that no
// node has open, as a leader would.
type logWriter struct {
	t    *testing.T
	log  *wal.Log
	term uint64
	txid uint64 // the last one
	tx   []wal.Entry
}

// writeLog writes to partition 0 of a directory, whose high-water mark is mark.
func writeLog(t *testing.T, dir string, mark uint64, write func(*logWriter)) {
	t.Helper()
	s, err := wal.Open(dir, wal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l := s.Log(0)
	newest, err := l.Entry(l.LastIndex())
	if err != nil {
		t.Fatal(err)
	}
	w := &logWriter{t: t, log: l, term: newest.Term, txid: mark}
	write(w)
	w.flush()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func (w *logWriter) flush() {
	w.t.Helper()
	if len(w.tx) == 0 {
		return
	}
	if err := w.log.Append(w.tx...); err != nil {
		w.t.Fatal(err)
	}
	w.tx = nil
}

func (w *logWriter) add(data []byte) {
	w.tx = append(w.tx, wal.Entry{Index: w.log.LastIndex() + 1 + uint64(len(w.tx)), Term: w.term, Data: data})
	if len(w.tx) == 1000 {
		w.flush()
	}
}

// cursors adds entries that each set a cursor, with a name of some bytes, to 1.
func (w *logWriter) cursors(entries, records int, at time.Time) {
	for range entries {
		var b wal.BatchWriter
		b.Begin(wal.CursorWrites, w.txid, at.UnixNano(), 0)
		for i := range records {
			b.AddCursor(wal.Cursor{Name: fmt.Appendf(nil, "c%040d", i), Txid: 1})
		}
		w.add(b.Finish())
	}
}

func (w *logWriter) transaction(at time.Time) {
	w.txid++
	var b wal.BatchWriter
	b.Begin(wal.Transactions, w.txid, at.UnixNano(), 0)
	b.Add(&wal.Transaction{Kind: []byte("tx"), Payload: fmt.Append(nil, w.txid), Locks: []wal.Lock{{Mode: wal.AppendLock, Name: fmt.Append(nil, "l", w.txid)}}})
	w.add(b.Finish())
}

// wantFewReads checks that no more than few of all the entries in the log were
// read.
func wantFewReads(t *testing.T, n *broker.Node, what string, do func()) {
	t.Helper()
	_, before := broker.Entries(n, 0)
	do()
	if held, after := broker.Entries(n, 0); after-before > 1000 || held < 10_000 {
		t.Errorf("%s: %d entries were read of %d", what, after-before, held)
	}
}

// Few transactions among many cursor writes: neither a reader nor a start goes
// through all of them.
func TestCursorWritesAreNotReadAgain(t *testing.T) {
	testkit.NotShort(t, "it appends, trims and restarts again and again")
	dir := t.TempDir()
	n, nc := openNode(t, dir, broker.Options{Partitions: 1})
	appendTx(t, nc, "cantus.append.0", "1", appendLock, "l1")
	nc.Close()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	writeLog(t, dir, 1, func(w *logWriter) {
		for range 3 {
			w.cursors(4000, 1, time.Now())
			w.transaction(time.Now())
		}
		w.cursors(4000, 1, time.Now())
	})
	n, _ = openNode(t, dir, broker.Options{Partitions: 1})
	n, nc = reopen(t, n, dir, broker.Options{Partitions: 1}) // all is applied, and marked
	wantFewReads(t, n, "start", func() {
		if _, read := broker.Entries(n, 0); read > 1000 {
			t.Errorf("%d entries were read", read)
		}
	})
	if s := broker.Tables(n, 0); len(s.Locks) != 4 || s.Floor != 0 {
		t.Errorf("%+v", s)
	}
	for from := 1; from <= 4; from++ {
		wantFewReads(t, n, fmt.Sprint("read from ", from), func() {
			got := collect(t, nc, "cantus.read.0", fmt.Sprintf(`{"from":%d}`, from))
			if ids, _ := txids(t, got.transactions); len(ids) != 5-from || got.next != 5 {
				t.Errorf("from %d: %v, next %d", from, ids, got.next)
			}
		})
		wantFewReads(t, n, fmt.Sprint("get ", from), func() {
			if m := ask(t, nc, "cantus.get.0", fmt.Sprintf(`{"txid":%d}`, from)); string(m.Data) != fmt.Sprint(from) {
				t.Errorf("get %d: %s", from, m.Data)
			}
		})
	}
}

// runs returns a node whose log was written offline.
func runs(t *testing.T, write func(*logWriter)) (*broker.Node, *nats.Conn, string) {
	t.Helper()
	dir := t.TempDir()
	n, nc := openNode(t, dir, broker.Options{Partitions: 1})
	nc.Close()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	writeLog(t, dir, 0, write)
	n, nc = openNode(t, dir, broker.Options{Partitions: 1})
	return n, nc, dir
}

// wantKept checks what is left after a trim, and again after a restart.
func wantKept(t *testing.T, n *broker.Node, nc *nats.Conn, dir string, first, mark uint64, most uint64) {
	t.Helper()
	for range 2 {
		var held uint64
		eventually(t, "the log is trimmed", func() bool {
			trimmed := broker.Trimmed(n, 0)
			held, _ = broker.Entries(n, 0)
			return trimmed
		})
		if held > most {
			t.Errorf("%d entries are held, not %d", held, most)
		}
		if i := info(t, nc, 0); i.FirstTxid != first || i.HighWaterMark != mark || i.Locks.Floor != first-1 {
			t.Errorf("from %d to %d, floor %d; want from %d to %d", i.FirstTxid, i.HighWaterMark, i.Locks.Floor, first, mark)
		}
		got := collect(t, nc, "cantus.read.0", fmt.Sprintf(`{"from":%d}`, first))
		if ids, _ := txids(t, got.transactions); len(ids) != int(mark-first+1) || got.next != mark+1 {
			t.Errorf("%v are read, next %d", ids, got.next)
		}
		if m := ask(t, nc, fmt.Sprintf("cantus.cursor.0.c%040d", 0), ""); !bytes.Contains(m.Data, []byte(`"txid":1,`)) {
			t.Errorf("the cursor is lost: %s", m.Data)
		}
		n, nc = reopen(t, n, dir, broker.Options{Partitions: 1})
	}
	wantVerified(t, n, dir, first, mark)
}

func wantVerified(t *testing.T, n *broker.Node, dir string, first, mark uint64) {
	t.Helper()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := wal.Verify(dir, func(p wal.PartitionReport) {
		if p.Err != nil || p.FirstTxid != first || p.LastTxid != mark {
			t.Errorf("verify: %+v", p)
		}
	}); err != nil {
		t.Error(err)
	}
}

// A partition can be trimmed where its transactions are of different hours,
// however few they are; and the cursor writes between go with them.
func TestATrimByAgeRemovesFewTransactions(t *testing.T) {
	testkit.NotShort(t, "it appends, trims and restarts again and again")
	now := time.Now()
	n, nc, dir := runs(t, func(w *logWriter) {
		for hours := 20; hours > 0; hours -= 2 {
			w.transaction(now.Add(-time.Duration(hours) * time.Hour))
			w.cursors(500, 1, now.Add(-time.Duration(hours)*time.Hour))
		}
	})
	// Those of 20 to 12 hours ago go, the fifth is 12 hours old.
	if r := trim(t, nc, `{"age":"11h"}`); r.FirstTxid != 6 {
		t.Fatalf("%+v", r)
	}
	wantKept(t, n, nc, dir, 6, 10, 5*502)
}

// A partition in which nothing is appended any more can be trimmed whole,
// repeatedly.
func TestATrimByAgeEmptiesAnIdlePartition(t *testing.T) {
	testkit.NotShort(t, "it appends, trims and restarts again and again")
	long := time.Now().Add(-48 * time.Hour)
	n, nc, dir := runs(t, func(w *logWriter) {
		w.transaction(long)
		w.transaction(long.Add(time.Second))
		w.cursors(3000, 1, long)
	})
	if r := trim(t, nc, `{"age":"72h"}`); r.FirstTxid != 1 {
		t.Fatalf("%+v", r)
	}
	if r := trim(t, nc, `{"age":"24h"}`); r.FirstTxid != 3 {
		t.Fatalf("%+v", r)
	}
	eventually(t, "the log is trimmed", func() bool { return broker.Trimmed(n, 0) })
	nc.Close()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	writeLog(t, dir, 2, func(w *logWriter) { w.cursors(3000, 1, time.Now()) })
	n, nc = openNode(t, dir, broker.Options{Partitions: 1})
	if r := trim(t, nc, `{"age":"24h"}`); r.FirstTxid != 3 {
		t.Fatalf("%+v", r)
	}
	wantKept(t, n, nc, dir, 3, 2, 20)
}

// Everything before the first transaction kept is deleted once that is
// committed.
func TestCursorWritesBeforeTheFirstTransactionGo(t *testing.T) {
	testkit.NotShort(t, "it appends, trims and restarts again and again")
	long := time.Now().Add(-48 * time.Hour)
	n, nc, dir := runs(t, func(w *logWriter) {
		w.transaction(long)
		w.cursors(10, 1, long)
	})
	if r := trim(t, nc, `{"before":2}`); r.FirstTxid != 2 {
		t.Fatalf("%+v", r)
	}
	nc.Close()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	writeLog(t, dir, 1, func(w *logWriter) {
		w.cursors(3000, 1, time.Now())
		w.transaction(time.Now())
	})
	n, nc = openNode(t, dir, broker.Options{Partitions: 1})
	wantKept(t, n, nc, dir, 2, 2, 20)
}

// The trim points of a log are bounded, in memory and in what is stored,
// however long it is.
func TestPointsAreThinnedOut(t *testing.T) {
	opts := broker.Options{Partitions: 1}
	broker.PointEvery(&opts, 1)
	dir := t.TempDir()
	n, nc := openNode(t, dir, opts)
	nc.Close()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	const count, most = 3000, 1024
	writeLog(t, dir, 0, func(w *logWriter) {
		for range count {
			w.transaction(time.Now())
		}
	})
	n, _ = openNode(t, dir, opts)
	points, _ := broker.CountTrimPoints(n, 0)
	n, nc = reopen(t, n, dir, opts)
	again, stored := broker.CountTrimPoints(n, 0)
	if points > most || points < most/2 || again != points || stored != points {
		t.Errorf("%d points, after a restart %d, and %d are stored; at most %d are to be", points, again, stored, most)
	}
	for _, before := range []int{count / 4, count - 10} {
		r := trim(t, nc, fmt.Sprintf(`{"before":%d}`, before))
		if r.FirstTxid != uint64(before) {
			t.Errorf("before %d: %+v", before, r)
		}
	}
	wantKept := trim(t, nc, `{"before":1}`).FirstTxid
	n, _ = reopen(t, n, dir, opts)
	wantVerified(t, n, dir, wantKept, count)
}

// Bytes count cursor writes, too.
func TestATrimBySizeCutsAmongFewTransactions(t *testing.T) {
	testkit.NotShort(t, "it appends and reads some hundred megabytes")
	now := time.Now()
	n, nc, dir := runs(t, func(w *logWriter) {
		w.transaction(now)
		for range 4 {
			w.cursors(150, 1000, now) // some 9 MiB
			w.transaction(now)
		}
	})
	if r := trim(t, nc, `{"bytes":100000000}`); r.FirstTxid != 1 {
		t.Fatalf("all is kept that was asked for, and %+v", r)
	}
	// Two of the four runs of 9 MiB stay.
	if r := trim(t, nc, `{"bytes":16000000}`); r.FirstTxid != 3 {
		t.Fatalf("%+v", r)
	}
	wantKept(t, n, nc, dir, 3, 5, 320)
}
