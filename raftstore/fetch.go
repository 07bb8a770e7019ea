package raftstore

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/cantuslog/cantus/wal"
)

// metaFetching is there while a log is fetched, and not one to vote with.
const metaFetching = "fetching"

// ErrFetching is returned for a log that was not fetched to its end: see
// [Fetch].
var ErrFetching = errors.New("raftstore: the log is being fetched")

// Fetching tells whether a log was begun to be fetched, or reset, and has not
// been fetched since.
func Fetching(log *wal.Log) bool { return log.Meta(metaFetching) != nil }

// Reset throws a log's entries and its small state away, for a replica that
// is removed or rebuilt; Raft's term and vote stay. When it returns nil that is
// durable. After a crash in between, or an error, [Fetching] is true and it can be
// called again.
func Reset(log *wal.Log) error {
	if err := log.SetMeta(wal.Meta{Name: metaFetching, Value: []byte{1}}); err != nil {
		return err
	}
	var gone []wal.Meta
	for name := range log.Metas("") {
		if !kept(name) {
			gone = append(gone, wal.Meta{Name: name})
		}
	}
	if len(gone) > 0 {
		if err := log.SetMeta(gone...); err != nil {
			return err
		}
	}
	if first := log.FirstIndex(); first != 0 {
		return log.TruncateSuffix(first)
	}
	return nil
}

// kept tells whether a part of a log's small state is the replica's own.
func kept(name string) bool { return strings.HasPrefix(name, stablePrefix) || name == metaFetching }

// The stream of a fetch: the fetching side sends fetchAsk as a JSON line, the
// other fetchHead as one, and then each entry in turn.
type fetchAsk struct {
	Last uint64 `json:"last"` // index of the newest entry that is here
	Term uint64 `json:"term"` // its term
}

type fetchHead struct {
	Error string            `json:"error,omitempty"`
	From  uint64            `json:"from"` // index of the first entry that follows
	Last  uint64            `json:"last"` // and of the last
	Metas map[string][]byte `json:"metas"`
	Voids []uint64          `json:"voids,omitempty"`
}

const (
	// fetchTime bounds the silence of the other side.
	fetchTime = 30 * time.Second
	// maxEntry bounds an entry's parts: a batch is a few MiB at most.
	maxEntry = 64 << 20
	// fetchBytes is about how much is stored at once.
	fetchBytes = 2 << 20
)

// Fetch brings an empty or outdated log to what the replica on node from
// keeps: the entries from its first one to its last marker, and the marker.
// Opening the group then goes on by ordinary replication. The group must not be
// open here. After an error or a crash, calling it again goes on where it
// was; until it has returned nil, [Open] refuses the log with [ErrFetching], so
// that a replica that lacks entries does not vote. Cancelling ctx ends it.
func Fetch(ctx context.Context, n *Network, group uint32, from string, log *wal.Log) error {
	conn, err := n.dial(kindFetch, group, from, handshakeTime, nil)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	err = fetch(log, conn)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func fetch(log *wal.Log, conn net.Conn) error {
	ask := fetchAsk{Last: log.LastIndex()}
	if ask.Last != 0 {
		e, err := log.Entry(ask.Last)
		if err != nil {
			return err
		}
		ask.Term = e.Term
	}
	r := bufio.NewReaderSize(&deadlined{conn}, 64<<10)
	if err := json.NewEncoder(conn).Encode(ask); err != nil {
		return err
	}
	var head fetchHead
	line, err := r.ReadBytes('\n')
	if err != nil {
		return err
	}
	if err := json.Unmarshal(line, &head); err != nil {
		return fmt.Errorf("malformed answer to a fetch: %w", err)
	}
	switch {
	case head.Error != "":
		return fmt.Errorf("%w: %q", ErrRefused, head.Error)
	case head.From != ask.Last+1 && ask.Last != 0:
		if err := Reset(log); err != nil {
			return err
		}
	default:
		if err := log.SetMeta(wal.Meta{Name: metaFetching, Value: []byte{1}}); err != nil {
			return err
		}
	}
	if err := fetchEntries(log, r, head); err != nil {
		return err
	}
	return finishFetch(log, head)
}

// fetchEntries stores what comes.
func fetchEntries(log *wal.Log, r *bufio.Reader, head fetchHead) error {
	var entries []wal.Entry
	size := 0
	for index := head.From; index <= head.Last; index++ {
		e, err := readEntry(r)
		if err != nil {
			return err
		}
		if e.Index != index {
			return fmt.Errorf("%w: entry %d came in the place of %d", errFrame, e.Index, index)
		}
		entries, size = append(entries, e), size+len(e.Data)
		if size < fetchBytes && index < head.Last {
			continue
		}
		if err := log.Append(entries...); err != nil {
			return err
		}
		entries, size = entries[:0], 0
	}
	return nil
}

// finishFetch takes over the other replica's small state, and with it the
// marker; in the same write the log ceases to be one that is fetched.
func finishFetch(log *wal.Log, head fetchHead) error {
	for _, v := range head.Voids {
		if err := log.Void(v); err != nil {
			return err
		}
	}
	metas := []wal.Meta{{Name: metaFetching}}
	for name := range log.Metas("") {
		if _, has := head.Metas[name]; !has && !kept(name) {
			metas = append(metas, wal.Meta{Name: name})
		}
	}
	for name, value := range head.Metas {
		metas = append(metas, wal.Meta{Name: name, Value: value})
	}
	return log.SetMeta(metas...)
}

// serveFetch sends what another replica lacks.
func (e *endpoint) serveFetch(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	if err := e.sendFetch(conn); err != nil {
		e.network.complain("a replica that fetches", err)
	}
}

func (e *endpoint) sendFetch(conn net.Conn) error {
	w := bufio.NewWriterSize(&deadlined{conn}, 128<<10)
	line, err := bufio.NewReaderSize(&deadlined{conn}, 4<<10).ReadSlice('\n')
	if err != nil {
		return err
	}
	var ask fetchAsk
	if err := json.Unmarshal(line, &ask); err != nil {
		return fmt.Errorf("malformed fetch: %w", err)
	}
	head, err := e.fetchHead(ask)
	if err != nil {
		head = fetchHead{Error: err.Error()}
	}
	if err := json.NewEncoder(w).Encode(head); err != nil || head.Error != "" {
		return errors.Join(err, w.Flush())
	}
	if head.From <= head.Last {
		for entry, err := range e.log.Entries(head.From, head.Last) {
			if err != nil {
				return err
			}
			if err := e.network.waitCatchUp(len(entry.Data), e.closed); err != nil {
				return err
			}
			if err := writeEntry(w, entry); err != nil {
				return err
			}
		}
	}
	return w.Flush()
}

// fetchHead decides from where on the other replica lacks entries.
func (e *endpoint) fetchHead(ask fetchAsk) (fetchHead, error) {
	state := e.log.State()
	head := fetchHead{From: max(state.First, 1), Metas: map[string][]byte{}}
	for name, v := range state.Metas {
		if !kept(name) {
			head.Metas[name] = v
		}
	}
	if v := state.Metas[metaMarker]; v != nil {
		var k marker
		if err := json.Unmarshal(v, &k); err != nil {
			return head, fmt.Errorf("%w: marker: %w", wal.ErrDamaged, err)
		}
		head.Last = k.Index
	}
	for _, v := range state.Voids {
		if v <= head.Last {
			head.Voids = append(head.Voids, v)
		}
	}
	switch {
	case ask.Last > state.Last: // it may hold what others count on
		return head, fmt.Errorf("this replica ends at entry %d, the one that asks at %d", state.Last, ask.Last)
	case ask.Last < state.First || ask.Last == 0:
		return head, nil
	}
	same, err := e.log.Entry(ask.Last)
	if err == nil && same.Term == ask.Term { // then all before is the same, too
		head.From, head.Last = ask.Last+1, max(head.Last, ask.Last)
	}
	return head, err
}

// waitCatchUp waits until n more bytes may be sent to replicas that are
// behind.
func (n *Network) waitCatchUp(bytes int, stop <-chan struct{}) error {
	for bytes > 0 {
		part := min(bytes, catchUpBurst)
		bytes -= part
		if d := n.catchUp.ReserveN(time.Now(), part).Delay(); d > 0 {
			select {
			case <-time.After(d):
			case <-stop:
				return ErrClosed
			}
		}
	}
	return nil
}

// An entry on the wire: index, term, time (8 bytes each), type (1), and the
// lengths (4 each) of extensions and data, which follow.
const entryHead = 33

func writeEntry(w *bufio.Writer, e wal.Entry) error {
	var head [entryHead]byte
	binary.BigEndian.PutUint64(head[0:], e.Index)
	binary.BigEndian.PutUint64(head[8:], e.Term)
	binary.BigEndian.PutUint64(head[16:], uint64(e.AppendedAt))
	head[24] = e.Type
	binary.BigEndian.PutUint32(head[25:], uint32(len(e.Extensions)))
	binary.BigEndian.PutUint32(head[29:], uint32(len(e.Data)))
	for _, part := range [][]byte{head[:], e.Extensions, e.Data} {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	return nil
}

func readEntry(r io.Reader) (e wal.Entry, err error) {
	var head [entryHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return e, err
	}
	e = wal.Entry{
		Index: binary.BigEndian.Uint64(head[0:]), Term: binary.BigEndian.Uint64(head[8:]),
		AppendedAt: int64(binary.BigEndian.Uint64(head[16:])), Type: head[24],
	}
	extensions, data := binary.BigEndian.Uint32(head[25:]), binary.BigEndian.Uint32(head[29:])
	if extensions > maxEntry || data > maxEntry {
		return e, fmt.Errorf("%w: an entry of %d and %d bytes", errFrame, extensions, data)
	}
	b := make([]byte, extensions+data)
	if _, err := io.ReadFull(r, b); err != nil {
		return e, err
	}
	if extensions > 0 {
		e.Extensions = b[:extensions:extensions]
	}
	e.Data = b[extensions:]
	return e, nil
}

// deadlined bounds the silence of the other side.
type deadlined struct{ net.Conn }

func (d *deadlined) Read(p []byte) (int, error) {
	if err := d.SetReadDeadline(time.Now().Add(fetchTime)); err != nil {
		return 0, err
	}
	return d.Conn.Read(p)
}

func (d *deadlined) Write(p []byte) (int, error) {
	if err := d.SetWriteDeadline(time.Now().Add(fetchTime)); err != nil {
		return 0, err
	}
	return d.Conn.Write(p)
}
