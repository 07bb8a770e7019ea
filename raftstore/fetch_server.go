package raftstore

import (
	"bufio"
	"context"
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

// A fetch is a conversation of messages: a byte that says what the message is,
// its length in 4 bytes, big-endian, at most 64 MiB, and its body.
//
//	a  to the server: the first index that is wanted, 8 bytes
//	b  from it: what is to come, in JSON: the first index kept, the marker and
//	   the FSM's metas, voided entries
//	e  from it: an entry: index, term, and time (8 bytes each), type (1),
//	   length of the extensions (unsigned varint), extensions, data
//	z  from it: that was all
//	x  from it: what went wrong, in words
const (
	fetchAsk   byte = 'a' // to the server: the index that is wanted first, 8 bytes
	fetchBegin byte = 'b' // from it: a fetchHead in JSON
	fetchEntry byte = 'e' // from it: an entry
	fetchEnd   byte = 'z' // from it: that was the last
	fetchError byte = 'x' // from it: what went wrong, in words
)

// maxMessage bounds a message of a fetch, in bytes. It is more than an entry
// has, or a head.
const maxMessage = 64 << 20

var errFetch = errors.New("malformed fetch")

// fetchHead says what is to come.
type fetchHead struct {
	First uint64 `json:"first"`
	// Metas are the marker and the FSM's.
	Metas map[string][]byte `json:"metas"`
	Voids []uint64          `json:"voids,omitempty"`
}

func (h fetchHead) snapshot() (storedSnapshot, error) {
	var k storedSnapshot
	if err := json.Unmarshal(h.Metas[metaSnapshot], &k); err != nil {
		return k, fmt.Errorf("%w: marker: %w", errFetch, err)
	}
	if h.First == 0 || k.Index < h.First {
		return k, fmt.Errorf("%w: the marker is at entry %d, the log begins at %d", errFetch, k.Index, h.First)
	}
	return k, nil
}

// fetchConn is a link that messages of a fetch go over.
type fetchConn struct {
	*peernet.Conn
	r *bufio.Reader
	w *bufio.Writer
}

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

// receive gives the next message. What the other end says went wrong is an
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

// noEOF says of an end within a message that it came too early.
func unexpectedEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// readPieces reads n bytes, taking memory as they come.
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

// encodeFetched gives all of an entry but its data, which follows.
func encodeFetched(e *wal.Entry) []byte {
	b := binary.BigEndian.AppendUint64(nil, e.Index)
	b = binary.BigEndian.AppendUint64(b, e.Term)
	b = binary.BigEndian.AppendUint64(b, uint64(e.AppendedAt))
	b = append(b, e.Type)
	b = binary.AppendUvarint(b, uint64(len(e.Extensions)))
	return append(b, e.Extensions...)
}

// decodeFetched gives the entry in a message, which it aliases.
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

// serveFetch sends the group's log to a replica that asks for it.
func (e *endpoint) serveFetch(l *peernet.Conn) {
	if !e.addInbound(l) {
		return
	}
	defer l.Close()
	c := &fetchConn{Conn: l, r: bufio.NewReader(l), w: bufio.NewWriterSize(l, peernet.MaxFrame)}
	sent, err := e.sendLog(c)
	if err != nil {
		err = errors.Join(err, c.send(fetchError, []byte(err.Error())), c.w.Flush())
	}
	g := e.group.Load()
	switch {
	case g == nil || e.open.Err() != nil:
	case err != nil:
		g.warn("log not sent as a whole", "to", l.Peer(), "entries", sent, "err", err)
	default:
		g.info("log sent", "to", l.Peer(), "entries", sent)
	}
}

// sendLog answers a fetch: the head, the entries from the one that is asked
// for to the marker, and the end.
func (e *endpoint) sendLog(c *fetchConn) (sent int, err error) {
	kind, b, err := c.receive()
	if err != nil {
		return 0, err
	}
	if kind != fetchAsk || len(b) != 8 {
		return 0, fmt.Errorf("%w: it begins with %q of %d bytes", errFetch, kind, len(b))
	}
	g := e.group.Load()
	if g == nil {
		return 0, fmt.Errorf("the replica of group %d is not open yet", e.id)
	}
	if err := g.Halted(); err != nil {
		return 0, err
	}
	head, k, err := g.fetchHead()
	if err != nil {
		return 0, err
	}
	encoded, err := json.Marshal(head)
	if err != nil {
		return 0, err
	}
	if err := errors.Join(c.send(fetchBegin, encoded), c.w.Flush()); err != nil {
		return 0, err
	}
	from := binary.BigEndian.Uint64(b)
	for entry, err := range g.log.log.Entries(max(from, head.First), k.Index) {
		if err != nil {
			return sent, err
		}
		if err := e.sendEntry(c, &entry); err != nil {
			return sent, err
		}
		sent++
	}
	return sent, errors.Join(c.send(fetchEnd), c.w.Flush())
}

func (e *endpoint) sendEntry(c *fetchConn, entry *wal.Entry) error {
	head := encodeFetched(entry)
	if err := e.network.peers.Throttle(e.open, len(head)+len(entry.Data)); err != nil {
		return err
	}
	return c.send(fetchEntry, head, entry.Data)
}

// markBarrierTimeout bounds how long a marker waits for a barrier.
const fetchBarrierTimeout = 5 * time.Second

// markNow takes a marker; on a leader behind a barrier, since Raft's own entry
// that begins a term leaves no trace in one, and a fetch may need one of this
// term.
func (g *Group) snapshotForFetch() error {
	if g.Leading() {
		ctx, cancel := context.WithTimeout(g.network.end.open, fetchBarrierTimeout)
		defer cancel()
		_ = g.Barrier(ctx) // without it, the marker may do too
	}
	return g.Snapshot()
}

// fetchHead marks the state, and gives what a fetch of this replica's log is
// to begin with.
func (g *Group) fetchHead() (fetchHead, storedSnapshot, error) {
	markErr := g.snapshotForFetch() // the newer the better; an older one does too
	log := g.log.log
	head := fetchHead{First: log.FirstIndex(), Metas: map[string][]byte{}}
	for name, v := range log.Metas("") {
		if isState(name) {
			head.Metas[name] = v
		}
	}
	if head.Metas[metaSnapshot] == nil {
		return head, storedSnapshot{}, errors.Join(errors.New("this replica has no marker yet"), markErr)
	}
	k, err := head.snapshot()
	for _, index := range log.Voids() {
		if index >= head.First && index <= k.Index {
			head.Voids = append(head.Voids, index)
		}
	}
	return head, k, err
}
