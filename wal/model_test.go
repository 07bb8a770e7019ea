package wal_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cantuslog/cantus/wal"
)

// model is the simplest implementation of a log.
type model struct {
	first   uint64 // index of entries[0]; 0 if there are none
	entries []modelEntry
	metas   map[string]string
}

type modelEntry struct {
	entry wal.Entry
	// txid and count are those of a batch of transactions; count is 0 for other
	// entries.
	txid, count uint64
	void        bool
}

func newModel() *model { return &model{metas: map[string]string{}} }

func (m *model) last() uint64 {
	if len(m.entries) == 0 {
		return 0
	}
	return m.first + uint64(len(m.entries)) - 1
}

// lastTx returns the newest txid that counts.
func (m *model) lastTx() uint64 {
	for _, e := range slices.Backward(m.entries) {
		if e.count > 0 && !e.void {
			return e.txid + e.count - 1
		}
	}
	return 0
}

// firstTx returns the oldest txid that counts, 0 if there is none.
func (m *model) firstTx() uint64 {
	for _, e := range m.entries {
		if e.count > 0 && !e.void {
			return e.txid
		}
	}
	return 0
}

// findTime returns what FindTime must return: it looks at every transaction.
func (m *model) findTime(at int64, first uint64) uint64 {
	for _, e := range m.entries {
		for i := range e.count {
			if !e.void && e.txid+i >= first && batchTime(e.txid)+int64(i) >= at {
				return e.txid + i
			}
		}
	}
	return m.lastTx() + 1
}

// batchTime is the time of a batch whose first txid this is.
func batchTime(first uint64) int64 { return int64(first) * 1000 }

func (m *model) append(e modelEntry) {
	if len(m.entries) == 0 {
		m.first = e.entry.Index
	}
	m.entries = append(m.entries, e)
}

func (m *model) truncate(from uint64) {
	m.entries = m.entries[:from-m.first]
	if len(m.entries) == 0 {
		m.first = 0
	}
}

func (m *model) trim(through uint64) {
	if through >= m.first {
		m.entries = m.entries[through+1-m.first:]
		m.first = through + 1
	}
}

// find returns what FindTx must return.
func (m *model) find(txid, to uint64) (uint64, error) {
	if txid == 0 || to == 0 || len(m.entries) == 0 {
		return 0, wal.ErrNotFound
	}
	if to < m.first {
		return 0, wal.ErrTrimmed
	}
	seen := false
	for _, e := range m.entries {
		if e.entry.Index > to || e.count == 0 || e.void {
			continue
		}
		if txid < e.txid && !seen {
			return 0, wal.ErrTrimmed
		}
		seen = true
		if txid >= e.txid && txid < e.txid+e.count {
			return e.entry.Index, nil
		}
	}
	return 0, wal.ErrNotFound
}

// checkLog is the oracle: it compares all that a log can return.
func checkLog(t testing.TB, l *wal.Log, m *model) {
	t.Helper()
	if l.FirstIndex() != m.first || l.LastIndex() != m.last() {
		t.Fatalf("log holds %d to %d, want %d to %d", l.FirstIndex(), l.LastIndex(), m.first, m.last())
	}
	checkEntries(t, l, m)
	checkLookups(t, l, m)
	metas := map[string]string{}
	for name, v := range l.Metas("") {
		metas[name] = string(v)
	}
	if !maps.Equal(metas, m.metas) {
		t.Fatalf("metas are %q, want %q", metas, m.metas)
	}
	var voids []uint64
	for _, e := range m.entries {
		if e.void {
			voids = append(voids, e.entry.Index)
		}
	}
	if got := slices.Sorted(slices.Values(l.Voids())); !slices.Equal(got, voids) {
		t.Fatalf("voids are %d, want %d", got, voids)
	}
}

func sameEntry(a, b wal.Entry) bool {
	return a.Index == b.Index && a.Term == b.Term && a.Type == b.Type && a.AppendedAt == b.AppendedAt &&
		bytes.Equal(a.Extensions, b.Extensions) && bytes.Equal(a.Data, b.Data)
}

func checkEntries(t testing.TB, l *wal.Log, m *model) {
	t.Helper()
	for _, outside := range []uint64{0, m.first - 1, m.last() + 1, m.last() + 100} {
		if _, err := l.Entry(outside); !errors.Is(err, wal.ErrNotFound) {
			t.Fatalf("entry %d outside of %d to %d: %v", outside, m.first, m.last(), err)
		}
	}
	for _, want := range m.entries {
		got, err := l.Entry(want.entry.Index)
		if err != nil || !sameEntry(got, want.entry) {
			t.Fatalf("entry %d is %+v, want %+v: %v", want.entry.Index, got, want.entry, err)
		}
	}
	n := 0
	for got, err := range l.Entries(m.first, m.last()+1) {
		if n == len(m.entries) {
			if !errors.Is(err, wal.ErrNotFound) {
				t.Fatalf("the entries end with %v", err)
			}
			n++
			continue
		}
		if err != nil || !sameEntry(got, m.entries[n].entry) {
			t.Fatalf("entries gave %+v as number %d, want %+v: %v", got, n, m.entries[n].entry, err)
		}
		n++
	}
	if n != len(m.entries)+1 {
		t.Fatalf("entries gave %d of %d", n, len(m.entries))
	}
	if m.first > 1 {
		for _, err := range l.Entries(m.first-1, m.last()) {
			if !errors.Is(err, wal.ErrNotFound) {
				t.Fatalf("entries from a trimmed one on: %v", err)
			}
		}
	}
}

func checkLookups(t testing.TB, l *wal.Log, m *model) {
	t.Helper()
	stride := 1 + rand.Uint64N(1+m.lastTx()/50)
	for txid := uint64(0); txid < m.lastTx()+3; txid += stride {
		for _, to := range []uint64{m.last(), m.first - 1 + txid%(uint64(len(m.entries))+2)} {
			want, wantErr := m.find(txid, to)
			got, err := l.FindTx(txid, to)
			if got != want || !errors.Is(err, wantErr) {
				t.Fatalf("txid %d up to index %d of %d to %d: at %d, %v; want %d, %v",
					txid, to, m.first, m.last(), got, err, want, wantErr)
			}
		}
	}
	from := uint64(1)
	if last := m.lastTx(); last > 0 {
		from += rand.Uint64N(last)
	}
	checkBatches(t, l, m, from)
	checkTimes(t, l, m)
}

// checkTimes searches for times that a transaction has, and for others.
func checkTimes(t testing.TB, l *wal.Log, m *model) {
	t.Helper()
	first, last := m.firstTx(), m.lastTx()
	if first == 0 {
		return
	}
	for range 20 {
		near := first + rand.Uint64N(last-first+3)
		at := batchTime(near) + rand.Int64N(5) - 2
		from := first + rand.Uint64N(last-first+1)
		want := m.findTime(at, from)
		if got, err := l.FindTime(at, from, last, m.last()); got != want || err != nil {
			t.Fatalf("the first of %d to %d at or after %d is %d, %v; want %d", from, last, at, got, err, want)
		}
	}
}

func checkBatches(t testing.TB, l *wal.Log, m *model, from uint64) {
	t.Helper()
	start, wantErr := m.find(from, m.last())
	var want []modelEntry
	for _, e := range m.entries {
		if wantErr == nil && e.entry.Index >= start && e.count > 0 && !e.void {
			want = append(want, e)
		}
	}
	for index, b := range l.Batches(from, m.last()) {
		if wantErr != nil {
			if !errors.Is(b.Err, wantErr) {
				t.Fatalf("batches from txid %d: %v, want %v", from, b.Err, wantErr)
			}
			return
		}
		if b.Err != nil || len(want) == 0 || index != want[0].entry.Index || b.Batch.First != want[0].txid ||
			uint64(b.Batch.Count) != want[0].count {
			t.Fatalf("batches from txid %d gave %+v at %d, want %+v", from, b, index, want)
		}
		want = want[1:]
	}
	if len(want) > 0 || wantErr != nil {
		t.Fatalf("batches from txid %d end before %+v, or without %v", from, want, wantErr)
	}
}

// batch makes a batch of n transactions from txid first on.
func batch(first uint64, n int, payload string) []byte {
	var w wal.BatchWriter
	w.Begin(wal.Transactions, first, batchTime(first), 0)
	for i := range n {
		w.Add(&wal.Transaction{
			Kind: []byte("tx"), HasHighWaterMark: true, HighWaterMark: first - 1,
			Locks:   []wal.Lock{{Mode: wal.WriteLock, Name: fmt.Appendf(nil, "account.%d", i)}},
			MsgID:   fmt.Appendf(nil, "id-%d-%d", first, i),
			Header:  []byte("App: x\r\n"),
			Payload: fmt.Appendf(nil, "%s-%d", payload, first+uint64(i)),
		})
	}
	return w.Finish()
}
