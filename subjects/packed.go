package subjects

import "encoding/binary"

// packedHead is the size of a packed transaction's fields before its header
// block.
const packedHead = 8 + 8 + 4 + 4

// Packed is a transaction of a packed read or of the packed feed. If it was
// decoded from a message it aliases that.
type Packed struct {
	Txid uint64
	// Time is when the leader certified it, in Unix nanoseconds.
	Time int64
	// Header is a header block: see [ScanBlock].
	Header  []byte
	Payload []byte
}

// AppendPacked appends the packed form of a transaction to dst.
func AppendPacked(dst []byte, t Packed) []byte {
	dst = binary.BigEndian.AppendUint64(dst, t.Txid)
	dst = binary.BigEndian.AppendUint64(dst, uint64(t.Time))
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(t.Header)))
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(t.Payload)))
	dst = append(dst, t.Header...)
	return append(dst, t.Payload...)
}

// NextPacked returns the first transaction of a packed message, and the rest of
// the message. The error for a malformed message says where it is malformed.
func NextPacked(message []byte) (t Packed, rest []byte, err error) {
	if len(message) < packedHead {
		return t, nil, badf("the message ends within the %d bytes that a transaction begins with", packedHead)
	}
	t.Txid = binary.BigEndian.Uint64(message)
	t.Time = int64(binary.BigEndian.Uint64(message[8:]))
	header, payload := binary.BigEndian.Uint32(message[16:]), binary.BigEndian.Uint32(message[20:])
	rest = message[packedHead:]
	if uint64(header)+uint64(payload) > uint64(len(rest)) {
		return t, nil, badf("transaction %d has %d and %d bytes, %d are left", t.Txid, header, payload, len(rest))
	}
	t.Header, rest = rest[:header:header], rest[header:]
	t.Payload, rest = rest[:payload:payload], rest[payload:]
	return t, rest, nil
}
