package wal_test

import (
	"strings"
	"testing"

	"github.com/cantuslog/cantus/wal"
)

// A batch that has a key of its own, since it is large, is read once to look up
// one of its transactions.
func TestLookupReadsOneEntry(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), small())
	l := s.Log(0)
	const count, batches = 3, 20
	payload := strings.Repeat("p", 32<<10)
	for i := range uint64(batches) {
		if err := l.Append(wal.Entry{Index: i + 1, Data: batch(1+i*count, count, payload)}); err != nil {
			t.Fatal(err)
		}
	}
	s.WaitApplied()
	for txid := uint64(1); txid <= batches*count; txid++ {
		before := l.EntriesRead()
		for index, b := range l.Batches(txid, batches) {
			if b.Err != nil || index != 1+(txid-1)/count || txid < b.Batch.First || txid > b.Batch.Last() {
				t.Fatalf("%d: entry %d, %+v", txid, index, b)
			}
			break
		}
		if read := l.EntriesRead() - before; read != 1 {
			t.Errorf("%d: %d entries were read", txid, read)
		}
	}
}
