package wal

import (
	"bytes"
	"errors"
	"testing"
)

// places makes a batch of transactions at places in atomic batches.
func places(t *testing.T, all ...Atomic) Batch {
	t.Helper()
	var w BatchWriter
	w.BeginIn(3, 100, 1, 0)
	for i, a := range all {
		w.Add(&Transaction{Kind: []byte("k"), MsgID: []byte("id"), Atomic: a, Payload: []byte{byte(i)}})
	}
	b, err := ParseBatch(w.Finish())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPlacesInAtomicBatches(t *testing.T) {
	first := Atomic{0, 3, 7_000_000_000_000}
	all := []Atomic{{}, first, {1, 3, 0}, {2, 3, 0}, {0, 2, 9}, {1, 2, 0}, {}}
	b := places(t, all...)
	for skip := range all {
		r := b.Read()
		r.Skip(skip)
		for i := skip; i < len(all); i++ {
			var got Transaction
			if !r.Next(&got) {
				t.Fatalf("transaction %d after %d skipped: %v", i, skip, r.Err())
			}
			want := Transaction{Txid: 100 + uint64(i), Atomic: all[i]}
			if got.Atomic != all[i] || got.First() != want.First() || got.Last() != want.Last() || !bytes.Equal(got.MsgID, []byte("id")) || !bytes.Equal(got.Payload, []byte{byte(i)}) {
				t.Errorf("transaction %d: %+v", i, got)
			}
		}
		if r.Next(new(Transaction)) || r.Err() != nil {
			t.Errorf("after %d skipped: %v", skip, r.Err())
		}
	}
	if t0 := (Transaction{Txid: 103, Atomic: all[3]}); t0.First() != 101 || t0.Last() != 103 {
		t.Errorf("from %d to %d", t0.First(), t0.Last())
	}
	if t0 := (Transaction{Txid: 106}); t0.First() != 106 || t0.Last() != 106 {
		t.Errorf("from %d to %d", t0.First(), t0.Last())
	}
}

// A batch that a leader can't have made is malformed, whoever says that it is
// of its log.
func TestMalformedAtomicBatches(t *testing.T) {
	for _, all := range [][]Atomic{
		{{0, 2, 1}},
		{{1, 2, 0}},
		{{0, 2, 1}, {}},
		{{}, {1, 2, 0}},
		{{0, 3, 1}, {1, 3, 0}},
		{{0, 3, 1}, {2, 3, 0}, {}},
		{{0, 2, 1}, {0, 2, 1}, {1, 2, 0}},
		{{0, 2, 1}, {1, 3, 0}, {2, 3, 0}},
		{{0, 2, 1}, {1, 2, 0}, {1, 2, 0}},
		{{0, 1, 1}},
		{{0, 1 << 31, 1}, {1, 1 << 31, 0}},
	} {
		r := places(t, all...).Read()
		n := 0
		for n < len(all) && r.Next(new(Transaction)) {
			n++
		}
		if n == len(all) || !errors.Is(r.Err(), ErrBatch) {
			t.Errorf("%v: %d transactions, %v", all, n, r.Err())
		}
	}
}
