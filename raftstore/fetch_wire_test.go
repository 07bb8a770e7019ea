package raftstore

import (
	"testing"

	"github.com/cantuslog/cantus/wal"
)

func FuzzFetchedEntry(f *testing.F) {
	f.Add(encodeFetched(&wal.Entry{Index: 3, Term: 2, AppendedAt: 1, Type: 1, Extensions: []byte("x")}))
	f.Add(make([]byte, 25))
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := decodeFetched(b); err == nil && e.Index > 0 && len(e.Data) > len(b) {
			t.Error("the entry is longer than its message")
		}
	})
}
