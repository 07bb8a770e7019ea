package wal_test

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/wal"
)

// reports returns the reports of Verify.
func reports(t *testing.T, dir string) []wal.PartitionReport {
	t.Helper()
	var got []wal.PartitionReport
	if err := wal.Verify(dir, func(r wal.PartitionReport) { got = append(got, r) }); err != nil {
		t.Fatal(err)
	}
	return got
}

// chain appends batches and stores the digest like a node. It returns the
// points of the chain, including its beginning.
func chain(t *testing.T, l *wal.Log, batches int) []wal.Base {
	t.Helper()
	points := []wal.Base{{}}
	for i := range uint64(batches) {
		last := points[len(points)-1]
		b := batch(last.Txid+1, 2, "p")
		if err := l.Append(wal.Entry{Index: i + 1, Term: 1, Data: b}); err != nil {
			t.Fatal(err)
		}
		points = append(points, wal.Base{Txid: last.Txid + 2, Digest: last.Digest.Next(b)})
	}
	return points
}

func setBase(t *testing.T, l *wal.Log, name string, b wal.Base) {
	t.Helper()
	if err := l.SetMeta(wal.Meta{Name: name, Value: wal.EncodeBase(b)}); err != nil {
		t.Fatal(err)
	}
}

func TestVerifyReportsEveryPartition(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, small())
	points := chain(t, s.Log(1), 40)
	setBase(t, s.Log(1), wal.MetaDigestMark, points[30])
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	got := reports(t, dir)
	if len(got) != 2 || got[0] != (wal.PartitionReport{FirstTxid: 1}) {
		t.Fatalf("reports %+v", got)
	}
	r := got[1]
	if r.Err != nil || r.Group != 1 || r.FirstTxid != 1 || r.LastTxid != 80 || r.Transactions != 80 || r.Entries != 40 ||
		r.Digest != points[40].Digest || r.Compared != 60 || r.Bytes == 0 {
		t.Fatalf("report %+v", r)
	}
}

func TestVerifyGoesOnFromTheBaseOfATrimmedLog(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, small())
	points := chain(t, s.Log(0), 40)
	setBase(t, s.Log(0), wal.MetaDigestBase, points[10])
	setBase(t, s.Log(0), wal.MetaDigestMark, points[40])
	if err := errors.Join(s.Log(0).TrimHead(10), s.Close()); err != nil {
		t.Fatal(err)
	}
	if r := reports(t, dir)[0]; r.Err != nil || r.FirstTxid != 21 || r.LastTxid != 80 || r.Transactions != 60 ||
		r.Digest != points[40].Digest || r.Compared != 80 {
		t.Fatalf("report %+v", r)
	}
}

func TestVerifyFindsWhatChecksumsDoNot(t *testing.T) {
	t.Parallel()
	testkit.NotShort(t, "hundreds of damaged copies of a directory are opened")
	other := func(b wal.Base) wal.Base {
		b.Digest[7] ^= 1
		return b
	}
	for name, spoil := range map[string]func(t *testing.T, l *wal.Log, points []wal.Base){
		"another digest at the mark": func(t *testing.T, l *wal.Log, points []wal.Base) {
			setBase(t, l, wal.MetaDigestMark, other(points[10]))
		},
		"a log that ends before the mark": func(t *testing.T, l *wal.Log, points []wal.Base) {
			setBase(t, l, wal.MetaDigestMark, points[20])
			if err := l.TruncateSuffix(20); err != nil {
				t.Fatal(err)
			}
		},
		"a mark inside of a batch": func(t *testing.T, l *wal.Log, points []wal.Base) {
			setBase(t, l, wal.MetaDigestMark, wal.Base{Txid: 11, Digest: points[5].Digest})
		},
		"a trimmed log without a base": func(t *testing.T, l *wal.Log, _ []wal.Base) {
			if err := l.TrimHead(5); err != nil {
				t.Fatal(err)
			}
		},
		"a base that is not where the log begins": func(t *testing.T, l *wal.Log, points []wal.Base) {
			setBase(t, l, wal.MetaDigestBase, points[3])
			setBase(t, l, wal.MetaDigestMark, points[20])
			if err := l.TrimHead(5); err != nil {
				t.Fatal(err)
			}
		},
		"a mark at the base with another digest": func(t *testing.T, l *wal.Log, points []wal.Base) {
			setBase(t, l, wal.MetaDigestBase, points[5])
			setBase(t, l, wal.MetaDigestMark, other(points[5]))
		},
		"a mark that is none": func(t *testing.T, l *wal.Log, _ []wal.Base) {
			if err := l.SetMeta(wal.Meta{Name: wal.MetaDigestMark, Value: []byte("x")}); err != nil {
				t.Fatal(err)
			}
		},
		"a batch that counts and is marked as void": func(t *testing.T, l *wal.Log, _ []wal.Base) {
			if err := l.Void(7); err != nil {
				t.Fatal(err)
			}
		},
		"a batch that does not parse": func(t *testing.T, l *wal.Log, _ []wal.Base) {
			if err := l.Append(wal.Entry{Index: 21, Data: []byte("not a batch")}); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(t, dir, small())
			spoil(t, s.Log(0), chain(t, s.Log(0), 20))
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if r := reports(t, dir)[0]; !errors.Is(r.Err, wal.ErrDamaged) {
				t.Fatalf("report %+v", r)
			}
		})
	}
}

func TestVerifyPassesOverVoidBatches(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, small())
	l := s.Log(0)
	points := chain(t, l, 5)
	for i, first := range []uint64{3, 100} { // repeats txids, skips some
		if err := l.Append(wal.Entry{Index: 6 + uint64(i), Data: batch(first, 2, "v")}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Void(6); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if r := reports(t, dir)[0]; r.Err != nil || r.LastTxid != 10 || r.Digest != points[5].Digest || r.Entries != 7 {
		t.Fatalf("report %+v", r)
	}
}

// A batch that was certified in another term than its entry's counts for
// nothing, in the chain and in lookups by txid.
func TestABatchOfAnotherTermCountsForNothing(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, small())
	l := s.Log(0)
	inTerm := func(term uint64, payload string) []byte {
		var w wal.BatchWriter
		w.BeginIn(term, 1, 1000, 0)
		w.Add(&wal.Transaction{Payload: []byte(payload)})
		return w.Finish()
	}
	good := inTerm(3, "good")
	for i, data := range [][]byte{inTerm(2, "late"), good} {
		if err := l.Append(wal.Entry{Index: uint64(i + 1), Term: 3, Data: data}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Void(1); err != nil {
		t.Fatal(err)
	}
	if index, err := l.FindTx(1, 2); err != nil || index != 2 {
		t.Errorf("txid 1 is in entry %d, %v", index, err)
	}
	var seen []uint64
	for index, b := range l.Batches(1, 2) {
		if b.Err != nil || b.Batch.Term != 3 {
			t.Errorf("entry %d: term %d, %v", index, b.Batch.Term, b.Err)
		}
		seen = append(seen, index)
	}
	if len(seen) != 1 || seen[0] != 2 {
		t.Errorf("batches of entries %v", seen)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if r := reports(t, dir)[0]; r.Err != nil || r.Transactions != 1 || r.Digest != (wal.Digest{}).Next(good) {
		t.Errorf("report %+v", r)
	}
}

func TestVerifyFoundsNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "none")
	if err := wal.Verify(dir, func(wal.PartitionReport) {}); err == nil {
		t.Fatal("a missing directory verifies")
	}
	if matches, _ := filepath.Glob(dir); len(matches) != 0 {
		t.Fatal("verifying made the directory")
	}
}
