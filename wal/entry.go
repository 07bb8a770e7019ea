package wal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// Entry is one entry of a log. The slices of an entry that was read are shared
// and must not be changed.
type Entry struct {
	Index uint64
	Term  uint64
	// Type is defined by the caller; 0 means that Data is a batch.
	Type uint8
	// AppendedAt is in Unix nanoseconds, 0 for none.
	AppendedAt int64
	Extensions []byte
	Data       []byte
}

// RestoredMark is the Extensions of an entry whose batch was restored from a
// backup.
const RestoredMark = "restored"

// Restored reports whether the entry's batch was committed in another log, and
// brought into this one as it was: see docs/adr/0036. Its term is that of the
// other log, and says nothing here. The entry's checksum covers the mark.
func (e *Entry) Restored() bool { return IsRestored(e.Extensions) }

// IsRestored is [Entry.Restored] for an entry's extensions.
func IsRestored(extensions []byte) bool { return string(extensions) == RestoredMark }

// outOfTerm reports whether the batch in e is void because of its term.
func (e *Entry) outOfTerm(b *Batch) bool { return !e.Restored() && b.OutOfTerm(e.Term) }

// NeedsRoom reports whether e must not be appended while a store is
// [Store.Tight]: it holds transactions or cursors, of which there is no end.
// Trims, commands and entries of other types are small and few.
func (e *Entry) NeedsRoom() bool {
	if e.Type != 0 {
		return false
	}
	b, err := peekBatch(e.Data)
	return err != nil || b.Kind == Transactions || b.Kind == CursorWrites
}

const (
	entryVersion  = 1
	entryVersion2 = 2 // restored: versions that would take it for void refuse it
	entryHeader   = 18
)

// encode returns e as it is stored in the log of group, in a truncation epoch.
func (e *Entry) encode(group uint32, epoch uint64) []byte {
	n := entryHeader + uvLen(uint64(len(e.Extensions))) + len(e.Extensions) + len(e.Data) + crcSize
	b := make([]byte, 2, n)
	b[0], b[1] = entryVersion, e.Type
	if e.Restored() {
		b[0] = entryVersion2
	}
	b = binary.LittleEndian.AppendUint64(b, e.Term)
	b = binary.LittleEndian.AppendUint64(b, uint64(e.AppendedAt))
	b = appendBytes(b, e.Extensions)
	b = append(b, e.Data...)
	return binary.LittleEndian.AppendUint32(b, entrySum(group, e.Index, epoch, b))
}

// decodeEntry decodes the entry stored for (group, index, epoch). The error
// wraps [ErrDamaged].
func decodeEntry(group uint32, index, epoch uint64, b []byte) (Entry, error) {
	if len(b) < entryHeader+1+crcSize {
		return Entry{}, fmt.Errorf("%w: entry %d of group %d: %d bytes are too few", ErrDamaged, index, group, len(b))
	}
	body := b[:len(b)-crcSize]
	if entrySum(group, index, epoch, body) != binary.LittleEndian.Uint32(b[len(body):]) {
		return Entry{}, fmt.Errorf("%w: entry %d of group %d: checksum is wrong", ErrDamaged, index, group)
	}
	if body[0] != entryVersion && body[0] != entryVersion2 {
		return Entry{}, fmt.Errorf("%w: entry %d of group %d: version %d is not known, %d and %d are",
			ErrDamaged, index, group, body[0], entryVersion, entryVersion2)
	}
	r := reader{b: body[entryHeader:]}
	e := Entry{
		Index:      index,
		Type:       body[1],
		Term:       binary.LittleEndian.Uint64(body[2:]),
		AppendedAt: int64(binary.LittleEndian.Uint64(body[10:])),
		Extensions: r.bytes(),
	}
	if r.short {
		return Entry{}, fmt.Errorf("%w: entry %d of group %d ends early", ErrDamaged, index, group)
	}
	e.Data = r.b
	if e.Restored() != (body[0] == entryVersion2) {
		return Entry{}, fmt.Errorf("%w: entry %d of group %d: version %d, with the extensions %q", ErrDamaged, index, group, body[0], e.Extensions)
	}
	return e, nil
}

func entrySum(group uint32, index, epoch uint64, body []byte) uint32 {
	var where [24]byte
	binary.LittleEndian.PutUint64(where[:], uint64(group))
	binary.LittleEndian.PutUint64(where[8:], index)
	binary.LittleEndian.PutUint64(where[16:], epoch)
	return crc32.Update(crc32.Checksum(where[:], castagnoli), castagnoli, body)
}

// entryData returns the data of an encoded entry of type 0, and nil for another
// type. It checks nothing: the bytes were encoded a moment ago.
func entryData(b []byte) []byte {
	if len(b) < entryHeader+1+crcSize || b[1] != 0 {
		return nil
	}
	r := reader{b: b[entryHeader : len(b)-crcSize]}
	r.bytes()
	return r.b
}
