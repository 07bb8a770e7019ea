package broker

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cantuslog/cantus/wal"
)

// A walker reads each transaction that it is asked for, whatever it is told of
// the places of transactions.
func TestWalkerBelievesNoPlace(t *testing.T) {
	t.Parallel()
	const batches, count = 400, 5
	log := emptyLog(t)
	for i := range uint64(batches) {
		var w wal.BatchWriter
		w.Begin(wal.Transactions, 1+i*count, 1000, 0)
		for range count {
			w.Add(&wal.Transaction{Payload: fmt.Append(nil, "in entry ", i+1)})
		}
		if err := log.Append(wal.Entry{Index: i + 1, Term: 1, Data: w.Finish()}); err != nil {
			t.Fatal(err)
		}
	}
	r := rand.New(rand.NewPCG(5, 6))
	entryOf := func(txid uint64) uint64 { return 1 + (txid-1)/count }
	for what, near := range map[string]func(uint64) uint64{
		"right": entryOf,
		"none":  func(uint64) uint64 { return 0 },
		"any":   func(uint64) uint64 { return r.Uint64N(batches + 50) },
	} {
		w := walker{log: log, to: batches, near: near}
		for range 2000 {
			var tx wal.Transaction
			txid := 1 + r.Uint64N(batches*count)
			if err := w.read(txid, &tx); err != nil {
				t.Fatalf("%s: %d: %v", what, txid, err)
			}
			if want := fmt.Sprint("in entry ", entryOf(txid)); tx.Txid != txid || string(tx.Payload) != want {
				t.Fatalf("%s: %d is %d, %q, and not %q", what, txid, tx.Txid, tx.Payload, want)
			}
		}
		w.close()
	}
}
