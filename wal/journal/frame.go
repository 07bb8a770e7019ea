package journal

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
)

const (
	frameAlign  = 8  // frames begin at multiples of this
	frameHeader = 16 // length, CRC-32C, masked sequence number
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Op is one operation on a key: a put, or a delete if Delete is set; a delete
// has no Value. Replay passes an empty slice in place of a nil one.
type Op struct {
	Key, Value []byte
	Delete     bool
}

// codec encodes and checks the frames of one journal.
type codec struct {
	salt uint64
	base uint32 // CRC-32C of the salt, where every frame's begins
}

func newCodec(salt uint64) codec {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], salt)
	return codec{salt: salt, base: crc32.Update(0, castagnoli, b[:])}
}

// frame appends to dst, which must be empty, the frame of the given groups of
// operations.
func (c codec) frame(dst []byte, seq uint64, groups ...[]Op) []byte {
	count := 0
	for _, ops := range groups {
		count += len(ops)
	}
	dst = append(dst, make([]byte, frameHeader)...)
	dst = binary.AppendUvarint(dst, uint64(count))
	for _, ops := range groups {
		for i := range ops {
			dst = appendOp(dst, &ops[i])
		}
	}
	length := len(dst) - frameHeader
	for len(dst)%frameAlign != 0 {
		dst = append(dst, 0)
	}
	c.finish(dst, seq, length)
	return dst
}

// seal returns the empty frame that is written where frame seq will go. It
// shows that all frames before it were synced.
func (c codec) seal(seq uint64) []byte {
	b := make([]byte, frameHeader)
	c.finish(b, seq, 0)
	return b
}

func (c codec) finish(frame []byte, seq uint64, length int) {
	binary.LittleEndian.PutUint32(frame, uint32(length))
	binary.LittleEndian.PutUint64(frame[8:], seq^c.salt)
	binary.LittleEndian.PutUint32(frame[4:], c.sum(frame))
}

// sum returns the checksum over salt, length, sequence number, body and
// padding.
func (c codec) sum(frame []byte) uint32 {
	crc := crc32.Update(c.base, castagnoli, frame[:4])
	return crc32.Update(crc, castagnoli, frame[8:])
}

// header returns what a frame's first bytes claim, unchecked.
func (c codec) header(b []byte) (size int64, seq uint64) {
	length := int64(binary.LittleEndian.Uint32(b))
	return alignUp(frameHeader + length), binary.LittleEndian.Uint64(b[8:]) ^ c.salt
}

// valid reports whether this journal wrote frame, which is as long as its
// header claims.
func (c codec) valid(frame []byte) bool {
	return binary.LittleEndian.Uint32(frame[4:]) == c.sum(frame)
}

// frameBody returns the operations of a valid frame, without padding. A seal
// has none.
func frameBody(frame []byte) []byte {
	return frame[frameHeader : frameHeader+binary.LittleEndian.Uint32(frame)]
}

func appendOp(dst []byte, op *Op) []byte {
	head := uint64(len(op.Key)) << 1
	if op.Delete {
		dst = binary.AppendUvarint(dst, head|1)
		return append(dst, op.Key...)
	}
	dst = binary.AppendUvarint(dst, head)
	dst = binary.AppendUvarint(dst, uint64(len(op.Value)))
	dst = append(dst, op.Key...)
	return append(dst, op.Value...)
}

var errBody = errors.New("operations do not parse")

// decodeOps decodes a frame's body. The operations alias it.
func decodeOps(body []byte) ([]Op, error) {
	count, rest, ok := uvarint(body)
	if !ok || count == 0 || count > uint64(len(rest)) {
		return nil, errBody
	}
	// The count may be wrong: memory is allocated only for what is found.
	ops := make([]Op, 0, min(count, 1024))
	for range count {
		var op Op
		if op, rest, ok = decodeOp(rest); !ok {
			return nil, errBody
		}
		ops = append(ops, op)
	}
	if len(rest) != 0 {
		return nil, errBody
	}
	return ops, nil
}

func decodeOp(b []byte) (op Op, rest []byte, ok bool) {
	head, b, ok := uvarint(b)
	if !ok {
		return op, nil, false
	}
	var size uint64
	op.Delete = head&1 != 0
	if !op.Delete {
		if size, b, ok = uvarint(b); !ok {
			return op, nil, false
		}
	}
	key := head >> 1
	if key > uint64(len(b)) || size > uint64(len(b))-key {
		return op, nil, false
	}
	op.Key = b[:key:key]
	if !op.Delete {
		op.Value = b[key : key+size : key+size]
	}
	return op, b[key+size:], true
}

// uvarint reads a number. It accepts the shortest form only, so that each
// content has one encoding.
func uvarint(b []byte) (v uint64, rest []byte, ok bool) {
	v, n := binary.Uvarint(b)
	if n <= 0 || n > 1 && b[n-1] == 0 {
		return 0, nil, false
	}
	return v, b[n:], true
}

// opsSize returns the encoded size of operations, without their count.
func opsSize(ops []Op) int64 {
	var size int64
	for i := range ops {
		op := &ops[i]
		size += int64(uvarintLen(uint64(len(op.Key))<<1) + len(op.Key))
		if !op.Delete {
			size += int64(uvarintLen(uint64(len(op.Value))) + len(op.Value))
		}
	}
	return size
}

// frameSize returns the size of a frame of count operations of the given size.
func frameSize(count int, size int64) int64 {
	return alignUp(frameHeader + int64(uvarintLen(uint64(count))) + size)
}

func uvarintLen(v uint64) int {
	n := 1
	for ; v >= 0x80; v >>= 7 {
		n++
	}
	return n
}

func alignUp(n int64) int64 { return (n + frameAlign - 1) &^ (frameAlign - 1) }
