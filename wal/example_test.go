package wal_test

import (
	"fmt"
	"os"

	"github.com/cantuslog/cantus/wal"
)

// A partition's log: two batches are appended, and found by txid after the
// store was opened again; then the first is trimmed.
func Example() {
	dir, err := os.MkdirTemp("", "cantus")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	open := func() *wal.Store {
		s, err := wal.Open(dir, wal.Options{Identity: wal.Identity{Cluster: "example", Node: "n1", Partitions: 1}})
		if err != nil {
			panic(err)
		}
		return s
	}

	s := open()
	var w wal.BatchWriter
	w.Begin(wal.Transactions, 1, 1000, 0) // txids from 1 on, at time 1000
	w.Add(&wal.Transaction{Kind: []byte("tx"), Payload: []byte("one")})
	w.Add(&wal.Transaction{Kind: []byte("tx"), Payload: []byte("two")})
	first := wal.Entry{Index: 1, Term: 1, Data: w.Finish()}
	w.Begin(wal.Transactions, 3, 2000, 0)
	w.Add(&wal.Transaction{Kind: []byte("tx"), Payload: []byte("three")})
	second := wal.Entry{Index: 2, Term: 1, Data: w.Finish()}
	fmt.Println(s.Log(0).Append(first, second)) // both are synced, or neither
	fmt.Println(s.Close())

	s = open()
	l := s.Log(0)
	for _, b := range l.Batches(2, l.LastIndex()) {
		if b.Err != nil {
			panic(b.Err)
		}
		var t wal.Transaction
		for r := b.Batch.Read(); r.Next(&t); {
			fmt.Println(t.Txid, t.Time, string(t.Payload))
		}
	}
	fmt.Println(l.TrimHead(1))
	_, err = l.FindTx(2, l.LastIndex())
	fmt.Println(err)
	fmt.Println(s.Close())
	// Output:
	// <nil>
	// <nil>
	// 1 1000 one
	// 2 1001 two
	// 3 2000 three
	// <nil>
	// wal: trimmed
	// <nil>
}

// A transaction's bytes are the same in the journal, in Badger and on the wire
// between nodes. Changed bytes are an error.
func ExampleParseBatch() {
	var w wal.BatchWriter
	w.Begin(wal.Transactions, 7, 1000, 0)
	w.Add(&wal.Transaction{
		Kind:    []byte("pay"),
		Locks:   []wal.Lock{{Mode: wal.WriteLock, Name: []byte("account.42")}},
		Payload: []byte("hi"),
	})
	data := w.Finish()

	b, err := wal.ParseBatch(data)
	fmt.Println(b.First, b.Last(), b.Count, err)
	data[len(data)-6] ^= 1
	_, err = wal.ParseBatch(data)
	fmt.Println(err != nil)
	// Output:
	// 7 7 1 <nil>
	// true
}
