package wal

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"iter"
	"math"
)

// LockMode says whether a lock is checked, recorded, or both.
type LockMode uint8

// The modes; their numbers are part of the format.
const (
	ReadLock   LockMode = 0 // checked, not recorded
	WriteLock  LockMode = 1 // checked and recorded
	AppendLock LockMode = 2 // recorded, not checked
)

// Lock is a lock of a transaction.
type Lock struct {
	Mode LockMode
	Name []byte
}

// Transaction is one transaction as it is stored. The slices of a decoded
// transaction alias its batch and must not be changed.
type Transaction struct {
	// Txid and Time derive from the batch: they are not part of the record.
	Txid uint64
	// Time is when the leader certified it, in Unix nanoseconds.
	Time int64

	Kind             []byte
	HighWaterMark    uint64
	HasHighWaterMark bool
	// MsgID is the writer's idempotency key; nil for none. That of an atomic
	// batch is in its first transaction.
	MsgID []byte
	// Session and SessionSeq are its session's name and its number there, nil
	// and 0 for none.
	Session    []byte
	SessionSeq uint64
	// Cursor is the cursor that moves to CursorTxid with the transaction, if it
	// is its session's; nil for none. That of an atomic batch is in its first
	// transaction.
	Cursor     []byte
	CursorTxid uint64
	Atomic     Atomic
	Locks      []Lock
	// Header is the application's own header lines, each with its CR LF.
	Header  []byte
	Payload []byte
}

// Atomic is the place of a transaction in its atomic batch, the zero value if
// it is in none. The transactions of an atomic batch follow one another in one
// [Batch].
type Atomic struct {
	Index uint32 // from 0
	Size  uint32 // 2 at least
	// Fingerprint stands for the payloads of all of them: see [PayloadsHash].
	// Only the first transaction of an atomic batch with a message id, or in a
	// session, has it.
	Fingerprint uint64
}

// PayloadsHash returns the Fingerprint of an atomic batch whose transactions
// have these payloads.
func PayloadsHash(payloads iter.Seq[[]byte]) uint64 {
	h := sha256.New()
	var size [8]byte
	for p := range payloads {
		h.Write(binary.LittleEndian.AppendUint64(size[:0], uint64(len(p))))
		h.Write(p)
	}
	return binary.LittleEndian.Uint64(h.Sum(nil))
}

// First returns the txid of the first transaction of t's atomic batch, and t's
// own if it is in none.
func (t *Transaction) First() uint64 { return t.Txid - uint64(t.Atomic.Index) }

// Last returns the txid of the last transaction of t's atomic batch, and t's
// own if it is in none.
func (t *Transaction) Last() uint64 {
	return t.First() + uint64(max(t.Atomic.Size, 1)) - 1
}

const (
	flagMark    = 1
	flagMsgID   = 2
	flagAtomic  = 4
	flagSession = 8
	flagCursor  = 16 // in a session
)

// isFingerprinted reports whether t's record has a fingerprint.
func (t *Transaction) isFingerprinted() bool {
	return t.Atomic.Size > 0 && t.Atomic.Index == 0 && len(t.MsgID)+len(t.Session) > 0
}

// recordSize returns the length of t's record without its length prefix.
func (t *Transaction) recordSize() int {
	n := 1 + uvLen(uint64(len(t.Kind))) + len(t.Kind) + uvLen(uint64(len(t.Locks))) +
		uvLen(uint64(len(t.Header))) + len(t.Header) + len(t.Payload)
	if t.HasHighWaterMark {
		n += uvLen(t.HighWaterMark)
	}
	if len(t.MsgID) > 0 {
		n += uvLen(uint64(len(t.MsgID))) + len(t.MsgID)
	}
	if len(t.Session) > 0 {
		n += uvLen(uint64(len(t.Session))) + len(t.Session) + uvLen(t.SessionSeq)
	}
	if len(t.Cursor) > 0 {
		n += uvLen(uint64(len(t.Cursor))) + len(t.Cursor) + uvLen(t.CursorTxid)
	}
	if t.Atomic.Size > 0 {
		n += uvLen(uint64(t.Atomic.Index)) + uvLen(uint64(t.Atomic.Size))
	}
	if t.isFingerprinted() {
		n += 8
	}
	for _, l := range t.Locks {
		n += 1 + uvLen(uint64(len(l.Name))) + len(l.Name)
	}
	return n
}

// appendRecord appends t's record to dst.
func (t *Transaction) appendRecord(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(t.recordSize()))
	var flags byte
	if t.HasHighWaterMark {
		flags |= flagMark
	}
	if len(t.MsgID) > 0 {
		flags |= flagMsgID
	}
	if t.Atomic.Size > 0 {
		flags |= flagAtomic
	}
	if len(t.Session) > 0 {
		flags |= flagSession
	}
	if len(t.Cursor) > 0 {
		flags |= flagCursor
	}
	dst = append(dst, flags)
	if t.HasHighWaterMark {
		dst = binary.AppendUvarint(dst, t.HighWaterMark)
	}
	dst = appendBytes(dst, t.Kind)
	if len(t.MsgID) > 0 {
		dst = appendBytes(dst, t.MsgID)
	}
	if len(t.Session) > 0 {
		dst = binary.AppendUvarint(appendBytes(dst, t.Session), t.SessionSeq)
	}
	if len(t.Cursor) > 0 {
		dst = binary.AppendUvarint(appendBytes(dst, t.Cursor), t.CursorTxid)
	}
	if t.Atomic.Size > 0 {
		dst = binary.AppendUvarint(dst, uint64(t.Atomic.Index))
		dst = binary.AppendUvarint(dst, uint64(t.Atomic.Size))
	}
	if t.isFingerprinted() {
		dst = binary.LittleEndian.AppendUint64(dst, t.Atomic.Fingerprint)
	}
	dst = binary.AppendUvarint(dst, uint64(len(t.Locks)))
	for _, l := range t.Locks {
		dst = append(dst, byte(l.Mode))
		dst = appendBytes(dst, l.Name)
	}
	dst = appendBytes(dst, t.Header)
	return append(dst, t.Payload...)
}

// decode decodes a record (without its length prefix) into t, reusing t.Locks.
func (t *Transaction) decode(record []byte) error {
	r := reader{b: record}
	flags := r.byte()
	if flags&^(flagMark|flagMsgID|flagAtomic|flagSession|flagCursor) != 0 {
		return fmt.Errorf("%w: record has unknown flags %#x", ErrBatch, flags)
	}
	t.HasHighWaterMark, t.HighWaterMark, t.MsgID = flags&flagMark != 0, 0, nil
	if t.HasHighWaterMark {
		t.HighWaterMark = r.uvarint()
	}
	t.Kind = r.bytes()
	if flags&flagMsgID != 0 {
		t.MsgID = r.bytes()
	}
	if err := t.decodeSession(&r, flags); err != nil {
		return err
	}
	t.Atomic = Atomic{}
	if flags&flagAtomic != 0 {
		if err := t.decodeAtomic(&r); err != nil {
			return err
		}
	}
	n := r.uvarint()
	if n > uint64(len(r.b)/2) { // a lock has at least two bytes
		return fmt.Errorf("%w: record counts %d locks in %d bytes", ErrBatch, n, len(r.b))
	}
	t.Locks = t.Locks[:0]
	for range n {
		if r.short {
			break
		}
		mode := LockMode(r.byte())
		if mode > AppendLock {
			return fmt.Errorf("%w: record has a lock of mode %d", ErrBatch, mode)
		}
		t.Locks = append(t.Locks, Lock{Mode: mode, Name: r.bytes()})
	}
	t.Header = r.bytes()
	t.Payload = r.b
	if r.short {
		return fmt.Errorf("%w: record ends early", ErrBatch)
	}
	return nil
}

func (t *Transaction) decodeSession(r *reader, flags byte) error {
	t.Session, t.SessionSeq, t.Cursor, t.CursorTxid = nil, 0, nil, 0
	if flags&flagSession != 0 {
		if t.Session, t.SessionSeq = r.bytes(), r.uvarint(); len(t.Session) == 0 || t.SessionSeq == 0 {
			return fmt.Errorf("%w: record has number %d of session %q", ErrBatch, t.SessionSeq, t.Session)
		}
	}
	if flags&flagCursor != 0 {
		if t.Cursor, t.CursorTxid = r.bytes(), r.uvarint(); len(t.Cursor) == 0 || t.CursorTxid == 0 || len(t.Session) == 0 {
			return fmt.Errorf("%w: record moves cursor %q to %d in session %q", ErrBatch, t.Cursor, t.CursorTxid, t.Session)
		}
	}
	return nil
}

func (t *Transaction) decodeAtomic(r *reader) error {
	index, size := r.uvarint(), r.uvarint()
	if size < 2 || size > math.MaxUint32 || index >= size {
		return fmt.Errorf("%w: record %d of an atomic batch of %d", ErrBatch, index, size)
	}
	t.Atomic.Index, t.Atomic.Size = uint32(index), uint32(size)
	if t.isFingerprinted() {
		t.Atomic.Fingerprint = r.uint64()
	}
	return nil
}

// reader decodes fields from the front of b; short is true if b ended early.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.short = true
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.short = true
		r.b = nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) uint64() uint64 {
	if len(r.b) < 8 {
		r.short = true
		r.b = nil
		return 0
	}
	v := binary.LittleEndian.Uint64(r.b)
	r.b = r.b[8:]
	return v
}

func (r *reader) bytes() []byte {
	n := r.uvarint()
	if n > uint64(len(r.b)) {
		r.short = true
		r.b = nil
		return nil
	}
	field := r.b[:n:n]
	r.b = r.b[n:]
	return field
}

func appendBytes(dst, field []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(field)))
	return append(dst, field...)
}

// uvLen returns the length of v as an unsigned varint.
func uvLen(v uint64) int {
	n := 1
	for ; v >= 0x80; v >>= 7 {
		n++
	}
	return n
}
