package wal

import "slices"

// tail is the cache of a log's newest entries, encoded, without a gap. An entry
// stays at least until Badger has it, and then as long as the cache has room.
type tail struct {
	entries []tailEntry // entries[i] has the index base+i
	base    uint64
	bytes   int
	most    int // bytes kept of entries that Badger has
}

type tailEntry struct {
	seq   uint64 // its journal frame
	value []byte
	// The first and last txid of its batch of transactions, so that a lookup
	// decodes nothing. first is 0 if the entry holds no such batch.
	first uint64
	count uint32
}

// get returns the encoded entry at index, nil if the tail doesn't hold it.
func (t *tail) get(index uint64) []byte {
	if index < t.base || index-t.base >= uint64(len(t.entries)) {
		return nil
	}
	return t.entries[index-t.base].value
}

// put appends an entry, and drops old ones that Badger has, up to frame
// applied, beyond the cache's size.
func (t *tail) put(seq, index uint64, value []byte, applied uint64) {
	if index != t.base+uint64(len(t.entries)) {
		t.entries, t.bytes, t.base = nil, 0, index
	}
	e := tailEntry{seq: seq, value: value}
	if b, err := peekBatch(entryData(value)); err == nil && b.Kind == Transactions && b.Count > 0 {
		e.first, e.count = b.First, uint32(b.Count)
	}
	t.entries = append(t.entries, e)
	t.bytes += len(value)
	drop := 0
	for t.bytes > t.most && drop < len(t.entries) && t.entries[drop].seq <= applied {
		drop++
		t.bytes -= len(t.entries[drop-1].value)
	}
	t.drop(drop)
}

// drop removes the n oldest entries, whose bytes the caller has subtracted.
func (t *tail) drop(n int) {
	clear(t.entries[:n])
	t.entries = t.entries[n:]
	t.base += uint64(n)
}

// truncate drops the entries from index on.
func (t *tail) truncate(from uint64) {
	if from < t.base {
		t.entries, t.bytes, t.base = nil, 0, 0
		return
	}
	keep := min(from-t.base, uint64(len(t.entries)))
	for _, e := range t.entries[keep:] {
		t.bytes -= len(e.value)
	}
	clear(t.entries[keep:])
	t.entries = t.entries[:keep]
}

// trim drops the entries before index first.
func (t *tail) trim(first uint64) {
	if first <= t.base {
		return
	}
	n := int(min(first-t.base, uint64(len(t.entries))))
	for _, e := range t.entries[:n] {
		t.bytes -= len(e.value)
	}
	t.drop(n)
}

// find returns the newest batch of transactions up to index to that begins at
// or before txid and is not in voids.
func (t *tail) find(txid, to uint64, voids []uint64) (index, last uint64, ok bool) {
	if to < t.base || len(t.entries) == 0 {
		return 0, 0, false
	}
	for i := int(min(to-t.base, uint64(len(t.entries)-1))); i >= 0; i-- {
		e := &t.entries[i]
		if e.first == 0 || e.first > txid || slices.Contains(voids, t.base+uint64(i)) {
			continue
		}
		return t.base + uint64(i), e.first + uint64(e.count) - 1, true
	}
	return 0, 0, false
}
