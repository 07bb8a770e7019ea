package raftstore

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/cantuslog/cantus/raftstore/peernet"
	"github.com/cantuslog/cantus/wal"
)

// A fetch is an exchange of messages. A message has a byte that says what it
// is, the length of its body (4 bytes, at most 64 MiB), and the body. Integers
// are big-endian.
//
//	a  to the server: the index of the first entry that is wanted, 8 bytes
//	b  from it: a fetchHead in JSON, which says what is to come
//	e  from it: an entry: index, term, and time (8 bytes each), type (1),
//	   length of the extensions (unsigned varint), extensions, data
//	z  from it: the end
//	x  from it: an error, as a text
const (
	fetchAsk   byte = 'a'
	fetchBegin byte = 'b'
	fetchEntry byte = 'e'
	fetchEnd   byte = 'z'
	fetchError byte = 'x'
)

// maxMessage bounds the body of a message, in bytes. It is more than an entry
// or a head has.
const maxMessage = 64 << 20

var errFetch = errors.New("malformed fetch")

// fetchHead says what a fetch is to bring.
type fetchHead struct {
	// First is the index of the first entry that is kept.
	First uint64 `json:"first"`
	// Metas are the snapshot and the FSM's metas.
	Metas map[string][]byte `json:"metas"`
	// Voids are the indexes of voided entries.
	Voids []uint64 `json:"voids,omitempty"`
}

// snapshot returns the snapshot in the head, checked.
func (h fetchHead) snapshot() (storedSnapshot, error) {
	var snap storedSnapshot
	if err := json.Unmarshal(h.Metas[metaSnapshot], &snap); err != nil {
		return snap, fmt.Errorf("%w: snapshot: %w", errFetch, err)
	}
	if h.First == 0 || snap.Index < h.First {
		return snap, fmt.Errorf("%w: the snapshot is at entry %d, the log begins at %d", errFetch, snap.Index, h.First)
	}
	return snap, nil
}

// fetchConn is a connection that carries the messages of a fetch.
type fetchConn struct {
	*peernet.Conn
	r *bufio.Reader
	w *bufio.Writer
}

// send writes a message. It is buffered.
func (c *fetchConn) send(kind byte, parts ...[]byte) error {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	head := binary.BigEndian.AppendUint32([]byte{kind}, uint32(n))
	_, err := c.w.Write(head)
	for _, p := range parts {
		if err == nil {
			_, err = c.w.Write(p)
		}
	}
	return err
}

// receive returns the next message. A fetchError from the other end is an
// error.
func (c *fetchConn) receive() (kind byte, b []byte, err error) {
	_ = c.SetReadDeadline(time.Now().Add(fetchTimeout))
	var head [5]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return 0, nil, unexpectedEOF(err)
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxMessage {
		return 0, nil, fmt.Errorf("%w: a message's length can't be %d", errFetch, n)
	}
	if b, err = readPieces(c.r, int(n)); err != nil {
		return 0, nil, unexpectedEOF(err)
	}
	if head[0] == fetchError {
		return 0, nil, fmt.Errorf("the other replica says: %s", b)
	}
	return head[0], b, nil
}

// unexpectedEOF turns io.EOF, within a message, into io.ErrUnexpectedEOF.
func unexpectedEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// readPieces reads n bytes. It allocates memory as they arrive, since n may be
// wrong.
func readPieces(r io.Reader, n int) ([]byte, error) {
	const piece = 1 << 20
	b := make([]byte, 0, min(n, piece))
	for len(b) < n {
		more := min(n-len(b), piece)
		b = slices.Grow(b, more)
		if _, err := io.ReadFull(r, b[len(b):len(b)+more]); err != nil {
			return nil, err
		}
		b = b[:len(b)+more]
	}
	return b, nil
}

// encodeFetched encodes all of an entry but its data, which follows.
func encodeFetched(e *wal.Entry) []byte {
	b := binary.BigEndian.AppendUint64(nil, e.Index)
	b = binary.BigEndian.AppendUint64(b, e.Term)
	b = binary.BigEndian.AppendUint64(b, uint64(e.AppendedAt))
	b = append(b, e.Type)
	b = binary.AppendUvarint(b, uint64(len(e.Extensions)))
	return append(b, e.Extensions...)
}

// decodeFetched decodes an entry. The entry aliases b.
func decodeFetched(b []byte) (wal.Entry, error) {
	if len(b) < 25 {
		return wal.Entry{}, fmt.Errorf("%w: an entry of %d bytes", errFetch, len(b))
	}
	e := wal.Entry{
		Index: binary.BigEndian.Uint64(b), Term: binary.BigEndian.Uint64(b[8:]),
		AppendedAt: int64(binary.BigEndian.Uint64(b[16:])), Type: b[24],
	}
	n, size := binary.Uvarint(b[25:])
	rest := b[25+max(size, 0):]
	if size <= 0 || n > uint64(len(rest)) {
		return wal.Entry{}, fmt.Errorf("%w: an entry ends early", errFetch)
	}
	e.Extensions, e.Data = rest[:n], rest[n:]
	return e, nil
}
