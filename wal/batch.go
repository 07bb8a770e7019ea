package wal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
)

// BatchKind is the kind of a batch's records.
type BatchKind uint8

// The kinds; their numbers are part of the format.
const (
	Transactions BatchKind = 1
	CursorWrites BatchKind = 2
	Trims        BatchKind = 3
	Commands     BatchKind = 4
	Restores     BatchKind = 5
)

const (
	batchVersion  = 1
	batchVersion2 = 2 // with a term
	batchHeader   = 24
	termSize      = 8
	crcSize       = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// BatchWriter encodes records into a batch. The zero value is ready for Begin;
// it may be used again after Finish.
type BatchWriter struct {
	buf   []byte
	count uint32
	first uint64
}

// Begin starts a batch of the given kind, with a buffer of size bytes. first is
// the txid of its first transaction, and at the time of its first record.
func (w *BatchWriter) Begin(kind BatchKind, first uint64, at int64, size int) {
	w.buf = make([]byte, batchHeader, max(size, 512))
	w.count, w.first = 0, first
	w.buf[0], w.buf[1] = batchVersion, byte(kind)
	binary.LittleEndian.PutUint64(w.buf[8:], first)
	binary.LittleEndian.PutUint64(w.buf[16:], uint64(at))
}

// BeginIn starts a batch of transactions that the leader of a Raft term has
// certified. The other arguments are those of Begin.
func (w *BatchWriter) BeginIn(term, first uint64, at int64, size int) {
	w.Begin(Transactions, first, at, size)
	w.buf[0] = batchVersion2
	w.buf = binary.LittleEndian.AppendUint64(w.buf, term)
}

// Add appends a transaction. It ignores t's Txid and Time: the transaction gets
// the batch's next.
func (w *BatchWriter) Add(t *Transaction) {
	w.buf = t.appendRecord(w.buf)
	w.count++
}

// AddCursor appends a cursor write.
func (w *BatchWriter) AddCursor(c Cursor) {
	n := 1 + uvLen(uint64(len(c.Name))) + len(c.Name) + 8 + 8
	if len(c.Owner) > 0 {
		n += uvLen(uint64(len(c.Owner))) + len(c.Owner)
	}
	if c.HasExpectedOwner {
		n += uvLen(uint64(len(c.ExpectedOwner))) + len(c.ExpectedOwner)
	}
	w.buf = binary.AppendUvarint(w.buf, uint64(n))
	var flags byte
	if c.HasExpected {
		flags = flagExpected
	}
	if len(c.Owner) > 0 {
		flags |= flagOwner
	}
	if c.HasExpectedOwner {
		flags |= flagExpectedOwner
	}
	if c.Kept {
		flags |= flagKept
	}
	w.buf = append(w.buf, flags)
	w.buf = appendBytes(w.buf, c.Name)
	w.buf = binary.LittleEndian.AppendUint64(w.buf, c.Txid)
	w.buf = binary.LittleEndian.AppendUint64(w.buf, c.Expected)
	if len(c.Owner) > 0 {
		w.buf = appendBytes(w.buf, c.Owner)
	}
	if c.HasExpectedOwner {
		w.buf = appendBytes(w.buf, c.ExpectedOwner)
	}
	w.count++
}

// AddRaw appends an encoded record, to a batch of commands or of trims.
func (w *BatchWriter) AddRaw(record []byte) {
	w.buf = appendBytes(w.buf, record)
	w.count++
}

// Count returns the number of records so far.
func (w *BatchWriter) Count() int { return int(w.count) }

// Size returns the number of bytes so far.
func (w *BatchWriter) Size() int { return len(w.buf) }

// Finish returns the batch's bytes, which belong to the caller from then on.
func (w *BatchWriter) Finish() []byte {
	binary.LittleEndian.PutUint32(w.buf[4:], w.count)
	b := binary.LittleEndian.AppendUint32(w.buf, crc32.Checksum(w.buf, castagnoli))
	w.buf = nil
	return b
}

// Cursor is one write of a consumer's position. When it is applied it takes
// effect if nothing is expected or the cursor is at Expected, and if the write
// has no Owner or the cursor does not exist or has the same one. If an owner is
// expected, the cursor's owner must be that one instead, and Owner is only the
// new one.
type Cursor struct {
	Name        []byte
	Txid        uint64
	Expected    uint64
	HasExpected bool
	Owner       []byte // empty for none
	// ExpectedOwner is empty if the cursor must have none, or not exist.
	ExpectedOwner    []byte
	HasExpectedOwner bool
	// Kept says that the cursor exists also at Txid 0, which removes any other.
	Kept bool
}

// The flags of a cursor record.
const (
	flagExpected      = 1
	flagOwner         = 2
	flagExpectedOwner = 4
	flagKept          = 8
)

// Batch is a batch whose checksum was correct. It aliases the bytes that it was
// parsed from.
type Batch struct {
	Kind  BatchKind
	Count int
	// First is the txid of the first transaction; for other kinds, of the last
	// one before the batch.
	First uint64
	// Time is the time of the first record, in Unix nanoseconds.
	Time int64
	// Term is the term in which the transactions were certified, 0 if the batch
	// does not say.
	Term    uint64
	records []byte
	data    []byte
}

// Bytes returns the batch as it was encoded, for the digest chain.
func (b *Batch) Bytes() []byte { return b.data }

// ParseBatch checks b and returns the batch in it. The error wraps [ErrBatch].
func ParseBatch(b []byte) (Batch, error) {
	batch, err := peekBatch(b)
	if err != nil {
		return Batch{}, err
	}
	body := b[:len(b)-crcSize]
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(b[len(body):]) {
		return Batch{}, fmt.Errorf("%w: checksum is wrong", ErrBatch)
	}
	return batch, nil
}

// peekBatch is ParseBatch without the checksum.
func peekBatch(b []byte) (Batch, error) {
	switch {
	case len(b) < batchHeader+crcSize:
		return Batch{}, fmt.Errorf("%w: %d bytes are too few", ErrBatch, len(b))
	case b[0] != batchVersion && b[0] != batchVersion2:
		return Batch{}, fmt.Errorf("%w: version %d is not known, %d and %d are", ErrBatch, b[0], batchVersion, batchVersion2)
	case b[0] == batchVersion2 && (len(b) < batchHeader+termSize+crcSize || BatchKind(b[1]) != Transactions):
		return Batch{}, fmt.Errorf("%w: %d bytes of kind %d can't have a term", ErrBatch, len(b), b[1])
	case BatchKind(b[1]) < Transactions || BatchKind(b[1]) > Restores:
		return Batch{}, fmt.Errorf("%w: kind %d is not known", ErrBatch, b[1])
	case b[2] != 0 || b[3] != 0:
		return Batch{}, fmt.Errorf("%w: reserved bytes are set", ErrBatch)
	}
	batch := Batch{
		Kind:    BatchKind(b[1]),
		Count:   int(binary.LittleEndian.Uint32(b[4:])),
		First:   binary.LittleEndian.Uint64(b[8:]),
		Time:    int64(binary.LittleEndian.Uint64(b[16:])),
		records: b[batchHeader : len(b)-crcSize],
		data:    b,
	}
	if b[0] == batchVersion2 {
		batch.Term, batch.records = binary.LittleEndian.Uint64(batch.records), batch.records[termSize:]
	}
	if batch.Count > len(batch.records) {
		return Batch{}, fmt.Errorf("%w: counts %d records in %d bytes", ErrBatch, batch.Count, len(batch.records))
	}
	if batch.Kind == Transactions && (batch.First == 0 || batch.First > math.MaxUint64-uint64(batch.Count)) {
		return Batch{}, fmt.Errorf("%w: %d transactions cannot begin at txid %d", ErrBatch, batch.Count, batch.First)
	}
	return batch, nil
}

// OutOfTerm reports whether the batch was certified in another term than that
// of its entry. Such a batch was certified against another log's end, and is
// void (docs/adr/0016), unless the entry is [Entry.Restored].
func (b *Batch) OutOfTerm(entry uint64) bool { return b.Term != 0 && b.Term != entry }

// Last returns the txid of the batch's last transaction. For an empty batch
// that is the one before First, and for other kinds First.
func (b *Batch) Last() uint64 {
	if b.Kind != Transactions {
		return b.First
	}
	return b.First + uint64(b.Count) - 1
}

// BatchReader reads a batch's records in order.
type BatchReader struct {
	batch  Batch
	rest   []byte
	n      int
	atomic Atomic // of the record that was decoded last
	read   int    // its number, from 1
	err    error
}

// Read returns a reader of the batch's records.
func (b Batch) Read() BatchReader { return BatchReader{batch: b, rest: b.records} }

// Next reads the next transaction into t, reusing t.Locks, and reports whether
// there was one. If not, Err returns the reason.
func (r *BatchReader) Next(t *Transaction) bool {
	record, ok := r.next()
	if !ok {
		return false
	}
	if r.err = t.decode(record); r.err != nil {
		return false
	}
	t.Txid = r.batch.First + uint64(r.n-1)
	t.Time = r.batch.Time + int64(r.n-1)
	if !r.follows(t.Atomic) {
		r.err = fmt.Errorf("%w: record %d of %d is out of place in its atomic batch", ErrBatch, r.n, r.batch.Count)
		return false
	}
	return true
}

// follows reports whether the record that was read last can be at a place in an
// atomic batch: all of it is in this batch, and the record before it, if that
// was read, is the one before it there.
func (r *BatchReader) follows(a Atomic) bool {
	before, read := r.atomic, r.read == r.n-1
	r.atomic, r.read = a, r.n
	inside := before.Size > 0 && before.Index+1 < before.Size
	switch {
	case a.Size == 0:
		return !read || !inside
	case int(a.Index) >= r.n || int(a.Size-a.Index) > r.batch.Count-r.n+1:
		return false
	case !read:
		return true
	case inside:
		return a.Index == before.Index+1 && a.Size == before.Size
	}
	return a.Index == 0
}

// Skip skips n transactions without decoding them.
func (r *BatchReader) Skip(n int) {
	for range n {
		if _, ok := r.next(); !ok {
			return
		}
	}
}

// NextCursor reads the next cursor write.
func (r *BatchReader) NextCursor(c *Cursor) bool {
	record, ok := r.next()
	if !ok {
		return false
	}
	f := reader{b: record}
	flags := f.byte()
	*c = Cursor{Name: f.bytes(), Txid: f.uint64(), Expected: f.uint64(), HasExpected: flags&flagExpected != 0, Kept: flags&flagKept != 0}
	if flags&flagOwner != 0 {
		c.Owner = f.bytes()
		f.short = f.short || len(c.Owner) == 0
	}
	if flags&flagExpectedOwner != 0 {
		c.ExpectedOwner, c.HasExpectedOwner = f.bytes(), true
	}
	if f.short || len(f.b) > 0 || flags&^(flagExpected|flagOwner|flagExpectedOwner|flagKept) != 0 {
		r.err = fmt.Errorf("%w: malformed cursor record", ErrBatch)
		return false
	}
	return true
}

// NextRaw returns the next record as it was added.
func (r *BatchReader) NextRaw() (record []byte, ok bool) { return r.next() }

// Err returns nil if the records ended where the batch says.
func (r *BatchReader) Err() error { return r.err }

func (r *BatchReader) next() ([]byte, bool) {
	if r.err != nil {
		return nil, false
	}
	if r.n == r.batch.Count {
		if len(r.rest) > 0 {
			r.err = fmt.Errorf("%w: %d bytes behind the last record", ErrBatch, len(r.rest))
		}
		return nil, false
	}
	f := reader{b: r.rest}
	record := f.bytes()
	if f.short {
		r.err = fmt.Errorf("%w: record %d of %d ends early", ErrBatch, r.n+1, r.batch.Count)
		return nil, false
	}
	r.rest = f.b
	r.n++
	return record, true
}
