package raftstore

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"github.com/cantuslog/cantus/wal"
)

// A fetch is an exchange of messages. A message is its kind (1 byte), the
// length of its body (4 bytes, at most 64 MiB), and the body. Integers are
// big-endian. The client sends one message,
//
//	a  request: the index of the first entry to send, 8 bytes
//
// and the server replies with a header, entries, and an end or an error:
//
//	b  header: a fetchHeader in JSON
//	e  entry: index, term, and time (8 bytes each), type (1), length of the
//	   extensions (unsigned varint), extensions, data
//	z  end, without a body
//	x  error: its text
const (
	msgRequest byte = 'a'
	msgHeader  byte = 'b'
	msgEntry   byte = 'e'
	msgEnd     byte = 'z'
	msgError   byte = 'x'
)

// maxMessage bounds the body of a message, in bytes. Entries and headers are
// smaller.
const maxMessage = 64 << 20

var errFetch = errors.New("malformed fetch")

// fetchHeader is everything but the entries that a fetch copies.
type fetchHeader struct {
	// First is the index of the server's first entry.
	First uint64 `json:"first"`
	// Metas are the snapshot and the FSM's metas.
	Metas map[string][]byte `json:"metas"`
	// Voids are the indexes of voided entries.
	Voids []uint64 `json:"voids,omitempty"`
}

// snapshot decodes and checks the snapshot in the header. It returns an error
// if the header has other metas than a snapshot's: another replica must not set
// the term or the vote of this one.
func (h fetchHeader) snapshot() (storedSnapshot, error) {
	var snap storedSnapshot
	for name := range h.Metas {
		if !isState(name) {
			return snap, fmt.Errorf("%w: %q does not belong to a snapshot", errFetch, name)
		}
	}
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
	net.Conn
	r *bufio.Reader
	w *bufio.Writer
}

// send writes a message to the buffer.
func (c *fetchConn) send(kind byte, parts ...[]byte) error {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	prefix := binary.BigEndian.AppendUint32([]byte{kind}, uint32(n))
	_, err := c.w.Write(prefix)
	for _, p := range parts {
		if err == nil {
			_, err = c.w.Write(p)
		}
	}
	return err
}

// receive reads the next message. It returns the text of a msgError as an
// error.
func (c *fetchConn) receive() (kind byte, b []byte, err error) {
	_ = c.SetReadDeadline(time.Now().Add(fetchTimeout))
	var prefix [5]byte
	if _, err := io.ReadFull(c.r, prefix[:]); err != nil {
		return 0, nil, unexpectedEOF(err)
	}
	n := binary.BigEndian.Uint32(prefix[1:])
	if n > maxMessage {
		return 0, nil, fmt.Errorf("%w: a message's length can't be %d", errFetch, n)
	}
	if b, err = readPieces(c.r, int(n)); err != nil {
		return 0, nil, unexpectedEOF(err)
	}
	if prefix[0] == msgError {
		return 0, nil, fmt.Errorf("the other replica: %s", b)
	}
	return prefix[0], b, nil
}

// unexpectedEOF maps io.EOF, which ended a message early, to
// io.ErrUnexpectedEOF.
func unexpectedEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// readPieces reads n bytes. It allocates memory as they arrive, since n is what
// the peer says.
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

// encodeFetched encodes the fields of an entry that precede its data.
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
