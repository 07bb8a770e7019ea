package wal_test

import (
	"strings"
	"testing"

	"github.com/cantuslog/cantus/wal"
)

// A batch that has a key of its own, since it is large, is read once to look up
// one of its transactions, also after others have taken its place and after a
// trim.
func TestLookupReadsOneEntry(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), small())
	l := s.Log(0)
	const batches = 20
	payload := strings.Repeat("p", 32<<10)
	lookups := func(count, first uint64) {
		t.Helper()
		s.WaitApplied()
		for txid := first; txid <= batches*count; txid++ {
			before := l.EntriesRead()
			for index, b := range l.Batches(txid, batches) {
				if b.Err != nil || index != 1+(txid-1)/count || txid < b.Batch.First || txid > b.Batch.Last() {
					t.Fatalf("%d: entry %d, %+v", txid, index, b)
				}
				break
			}
			if read := l.EntriesRead() - before; read != 1 {
				t.Errorf("%d in batches of %d: %d entries were read", txid, count, read)
			}
		}
	}
	for i, count := range []uint64{3, 5, 2} {
		if i > 0 {
			if err := l.TruncateSuffix(1); err != nil {
				t.Fatal(err)
			}
		}
		for i := range uint64(batches) {
			if err := l.Append(wal.Entry{Index: i + 1, Data: batch(1+i*count, int(count), payload)}); err != nil {
				t.Fatal(err)
			}
		}
		lookups(count, 1)
	}
	if err := l.TrimHead(10); err != nil {
		t.Fatal(err)
	}
	lookups(2, 21)
}

// BatchNear returns the right batch or none, wherever it begins to look.
func TestBatchNear(t *testing.T) {
	t.Parallel()
	for where, bytes := range map[string]int{"in memory": 64 << 20, "on disk": 0} {
		opts := small()
		if bytes > 0 {
			opts.TailBytes = bytes
		}
		s := openStore(t, t.TempDir(), opts)
		l := s.Log(0)
		const batches, count = 60, 3
		holds := map[uint64]uint64{} // by txid, the entry
		for i := range uint64(batches) {
			first := 1 + i*count
			switch i % 20 {
			case 7:
				appendCursors(t, l, 2)
			case 13:
				index := l.LastIndex() + 1
				if err := l.Append(wal.Entry{Index: index, Data: batch(first, count, "void")}); err != nil {
					t.Fatal(err)
				}
				if err := l.Void(index); err != nil {
					t.Fatal(err)
				}
			}
			index := l.LastIndex() + 1
			if err := l.Append(wal.Entry{Index: index, Data: batch(first, count, "p")}); err != nil {
				t.Fatal(err)
			}
			for n := range uint64(count) {
				holds[first+n] = index
			}
		}
		s.WaitApplied()
		to := holds[50*count]
		if err := l.TrimHead(holds[10*count]); err != nil {
			t.Fatal(err)
		}
		var buf []byte
		for txid := uint64(0); txid <= batches*count+1; txid++ {
			index := holds[txid]
			reachable := index >= l.FirstIndex() && index <= to
			for near := uint64(0); near <= l.LastIndex()+2; near++ {
				before := l.EntriesRead()
				b, ok := l.BatchNear(txid, near, to, &buf)
				if ok && (!reachable || txid < b.First || txid > b.Last() || !strings.HasPrefix(payloadOf(b), "p-")) {
					t.Fatalf("%s: %d from %d on: %+v", where, txid, near, b)
				}
				if near == index && (ok != reachable || ok && l.EntriesRead() != before+1) {
					t.Fatalf("%s: %d at its place: %t, after %d entries", where, txid, ok, l.EntriesRead()-before)
				}
			}
		}
	}
}

// payloadOf returns the payload of a batch's first transaction.
func payloadOf(b wal.Batch) string {
	var t wal.Transaction
	records := b.Read()
	records.Next(&t)
	return string(t.Payload)
}
