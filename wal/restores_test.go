package wal_test

import (
	"encoding/hex"
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/wal"
)

// restores returns a batch of restores.
func restores(after uint64, steps ...wal.RestoreStep) []byte {
	var w wal.BatchWriter
	w.Begin(wal.Restores, after, 1000, 0)
	for _, s := range steps {
		w.AddRestore(s)
	}
	return w.Finish()
}

// certified returns a batch of n transactions that was certified in a term.
func certified(term, first uint64, n int) []byte {
	var w wal.BatchWriter
	w.BeginIn(term, first, int64(1000*first), 0)
	for range n {
		w.Add(&wal.Transaction{Payload: []byte("p")})
	}
	return w.Finish()
}

var restoreSteps = []wal.RestoreStep{
	{Begin: &wal.RestoreBegin{Cluster: "c1", Base: wal.Base{Txid: 6, Digest: wal.Digest{1, 2}}, Time: 9}},
	{Cursor: &wal.RestoredCursor{Name: []byte("k"), Txid: 7, Time: 8}},
	{End: &wal.RestoreEnd{Base: wal.Base{Txid: 12, Digest: wal.Digest{3}}, History: []wal.PastCluster{{ID: "c0", LastTxid: 5}, {ID: "c1", LastTxid: 12}}}},
	{Begin: &wal.RestoreBegin{Cluster: "c1", Base: wal.Base{Txid: 6, Digest: wal.Digest{1, 2}}, Time: 9, Mirror: true, History: []wal.PastCluster{{ID: "c0", LastTxid: 5}}}},
	{Recovered: &wal.LogRecovered{Cluster: "c1", Node: "n1", Committed: 5, Time: 7}},
}

// The bytes are those of the format in doc.go, which later versions have to
// read.
func TestTheFormatOfRestores(t *testing.T) {
	zeros := func(n int) string { return strings.Repeat("00", n) }
	want := "01 05 0000 05000000 0600000000000000 e803000000000000" + // header
		"34 01 0600000000000000 0102" + zeros(30) + "0900000000000000 02 6331" + // begin
		"13 02 0700000000000000 0800000000000000 01 6b" + // cursor
		"40 03 0c00000000000000 03" + zeros(31) + "02 0500000000000000 02 6330 0c00000000000000 02 6331" + // end
		"40 04 0600000000000000 0102" + zeros(30) + "0900000000000000 02 6331 01 0500000000000000 02 6330" + // begin of a mirror
		"17 05 0500000000000000 0700000000000000 02 6331 02 6e31" // recovered
	want = strings.ReplaceAll(want, " ", "")
	got := restores(6, restoreSteps...)
	if h := hex.EncodeToString(got[:len(got)-4]); h != want {
		t.Errorf("got  %s\nwant %s", h, want)
	}
	b, err := wal.ParseBatch(got)
	if err != nil || b.Kind != wal.Restores || b.Last() != 6 {
		t.Fatalf("%+v, %v", b, err)
	}
	r := b.Read()
	var s wal.RestoreStep
	for i, want := range restoreSteps {
		if !r.NextRestore(&s) || !reflect.DeepEqual(s, want) {
			t.Errorf("step %d: %+v, want %+v; %v", i, s, want, r.Err())
		}
	}
	if r.NextRestore(&s) || r.Err() != nil {
		t.Errorf("the batch does not end: %v", r.Err())
	}
}

func TestMalformedRestoresAreRefused(t *testing.T) {
	for _, step := range restoreSteps {
		whole := restores(0, step)
		record := whole[24+1 : len(whole)-4]
		for n := range len(record) {
			checkRefused(t, record[:n])
		}
		checkRefused(t, append(record[:len(record):len(record)], 0))
	}
	checkRefused(t, []byte{6})
	checkRefused(t, append([]byte{3}, append(make([]byte, 40), 0xff, 0xff, 0xff, 0xff, 0x7f)...)) // counts clusters without end
	last := wal.RestoreStep{Begin: &wal.RestoreBegin{Base: wal.Base{Txid: math.MaxUint64}}}
	b := restores(0, last)
	checkRefused(t, b[24+1:len(b)-4])
}

func checkRefused(t *testing.T, record []byte) {
	t.Helper()
	var w wal.BatchWriter
	w.Begin(wal.Restores, 0, 0, 0)
	w.AddRaw(record)
	b, err := wal.ParseBatch(w.Finish())
	if err != nil {
		t.Fatal(err)
	}
	var s wal.RestoreStep
	if r := b.Read(); r.NextRestore(&s) || !errors.Is(r.Err(), wal.ErrBatch) {
		t.Errorf("record %x is %+v, %v", record, s, r.Err())
	}
}

// A restored entry is of version 2, which a version that would take its batch
// for void refuses.
func TestTheFormatOfARestoredEntry(t *testing.T) {
	e := wal.Entry{Index: 5, Term: 3, Extensions: []byte(wal.RestoredMark), Data: certified(2, 1, 1)}
	b := e.Encode(2, 3)
	if got := hex.EncodeToString(b[:27]); got != "0200"+"0300000000000000"+"0000000000000000"+"08"+hex.EncodeToString([]byte("restored")) {
		t.Errorf("entry %s", got)
	}
	got, err := wal.DecodeEntry(2, 5, 3, b)
	if err != nil || !got.Restored() || !reflect.DeepEqual(got, e) {
		t.Errorf("%+v, %v", got, err)
	}
	for name, spoil := range map[string]func() []byte{
		"version 1 with the mark":    func() []byte { b := e.Encode(2, 3); b[0] = 1; return b },
		"version 2 without the mark": func() []byte { e := e; e.Extensions = nil; b := e.Encode(2, 3); b[0] = 2; return b },
	} {
		b := spoil()
		b = append(b[:len(b)-4], wal.EntryChecksum(2, 5, 3, b[:len(b)-4])...)
		if _, err := wal.DecodeEntry(2, 5, 3, b); !errors.Is(err, wal.ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// restoredLog fills a log as a restore does: from the base of a backup, with
// batches of other terms, of which some don't count.
func restoredLog(t *testing.T, l *wal.Log, base wal.Base) (last wal.Base) {
	t.Helper()
	index, last := uint64(0), base
	add := func(term uint64, counts, restored bool, data []byte) {
		t.Helper()
		index++
		e := wal.Entry{Index: index, Term: term, Data: data}
		if restored {
			e.Extensions = []byte(wal.RestoredMark)
		}
		if err := l.Append(e); err != nil {
			t.Fatal(err)
		}
		b, err := wal.ParseBatch(data)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case counts && b.Kind == wal.Transactions:
			last = wal.Base{Txid: b.Last(), Digest: last.Digest.Next(data)}
		case !counts:
			if err := l.Void(index); err != nil {
				t.Fatal(err)
			}
		}
	}
	add(3, true, false, restores(0, wal.RestoreStep{Begin: &wal.RestoreBegin{Cluster: "c1", Base: base}}))
	add(3, false, false, certified(3, base.Txid+1, 7)) // the leader had certified it before
	for i := range 40 {
		data := certified(uint64(10+i), last.Txid+1, 2)
		add(3, true, true, data)
		if i%7 == 0 {
			add(3, false, true, data) // sent again
		}
	}
	add(4, true, false, restores(last.Txid, wal.RestoreStep{End: &wal.RestoreEnd{Base: last}}))
	add(4, false, true, certified(50, last.Txid+1, 3)) // it comes late
	add(4, false, false, certified(3, last.Txid+1, 3)) // of another term
	add(4, true, false, certified(4, last.Txid+1, 5))
	return last
}

// What is restored counts in every reading of the log: by txid, in order,
// verified, scrubbed and salvaged.
func TestARestoredLogIsRead(t *testing.T) {
	for name, base := range map[string]wal.Base{"from the beginning": {}, "from a base": {Txid: 600, Digest: wal.Digest{7}}} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(t, dir, small())
			l := s.Log(0)
			last := restoredLog(t, l, base)
			checkRestoredLog(t, s, base, last)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			checkSalvagedRestore(t, dir, base, last)
			// Without the checkpoint it is not known which batches are void.
			damaged := filepath.Join(t.TempDir(), "damaged")
			if err := errors.Join(os.CopyFS(damaged, os.DirFS(dir)), os.Remove(filepath.Join(damaged, "checkpoint.json"))); err != nil {
				t.Fatal(err)
			}
			checkSalvagedRestore(t, damaged, base, last)
			s = openStore(t, dir, small())
			checkRestoredLog(t, s, base, last)
			setBase(t, s.Log(0), wal.MetaDigestMark, last)
			if base.Txid > 0 {
				setBase(t, s.Log(0), wal.MetaDigestBase, base)
			}
			checkRestoredLog(t, s, base, last)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if r := reports(t, dir)[0]; r.Err != nil || r.Compared != last.Txid || r.Digest != last.Digest || r.FirstTxid != base.Txid+1 {
				t.Errorf("verified: %+v", r)
			}
			checkSalvagedRestore(t, dir, base, last)
		})
	}
}

// checkSalvagedRestore checks that all transactions of a restored log are
// salvaged, and no others.
func checkSalvagedRestore(t *testing.T, dir string, base, last wal.Base) {
	t.Helper()
	g := salvage(t, dir).survivors[0]
	if g.Transactions != last.Txid-base.Txid || len(g.Whole) != 1 || g.Whole[0] != (wal.TxidRange{First: base.Txid + 1, Last: last.Txid}) || g.Err != nil {
		t.Errorf("salvaged: %+v", g)
	}
}

func checkRestoredLog(t *testing.T, s *wal.Store, base, last wal.Base) {
	t.Helper()
	l := s.Log(0)
	if r := wal.VerifyLog(l, wal.Base{}, last); r.Err != nil || r.LastTxid != last.Txid || r.Digest != last.Digest || r.FirstTxid != base.Txid+1 {
		t.Fatalf("verified: %+v", r)
	}
	next := base.Txid + 1
	for txid := next; txid <= last.Txid; txid++ {
		index, err := l.FindTx(txid, l.LastIndex())
		if err != nil {
			t.Fatalf("txid %d: %v", txid, err)
		}
		if e, err := l.Entry(index); err != nil || e.Restored() != (txid <= last.Txid-5) {
			t.Fatalf("txid %d is in entry %d, %v", txid, index, err)
		}
	}
	for _, b := range l.Batches(next, l.LastIndex()) {
		if b.Err != nil || b.Batch.First != next {
			t.Fatalf("batch %+v, want txid %d", b, next)
		}
		next = b.Batch.Last() + 1
	}
	if next != last.Txid+1 {
		t.Fatalf("the batches end before txid %d, want %d", next, last.Txid+1)
	}
	if base.Txid > 0 {
		if _, err := l.FindTx(base.Txid, l.LastIndex()); !errors.Is(err, wal.ErrTrimmed) {
			t.Errorf("before the base: %v", err)
		}
	}
}

// A mark that makes a batch void which continues the txids is damage, unless
// the batch is of the other kind than the log took then.
func TestAVoidBatchOfTheRightKindIsDamage(t *testing.T) {
	for name, index := range map[string]uint64{"restored": 42, "certified": 52} {
		s := openStore(t, t.TempDir(), small())
		l := s.Log(0)
		restoredLog(t, l, wal.Base{})
		e, err := l.Entry(index)
		if b, _ := wal.ParseBatch(e.Data); err != nil || b.Kind != wal.Transactions || e.Restored() != (name == "restored") {
			t.Fatalf("entry %d is no batch that is %s", index, name)
		}
		if err := l.Void(index); err != nil {
			t.Fatal(err)
		}
		if r := wal.VerifyLog(l, wal.Base{}); !errors.Is(r.Err, wal.ErrDamaged) {
			t.Errorf("%s: %+v", name, r)
		}
	}
}
