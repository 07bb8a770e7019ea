package raftstore

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cantuslog/cantus/internal/invariant"
	"github.com/cantuslog/cantus/raftstore/peernet"
	"github.com/cantuslog/cantus/wal"
)

const (
	// fetchBatchBytes is the approximate size, in bytes, of the entries that
	// are stored at once.
	fetchBatchBytes = 1 << 20
	// fetchBatchEntries bounds their number.
	fetchBatchEntries = 256
	// fetchTimeout is how long the other end may take to send a message.
	fetchTimeout = time.Minute
)

// Fetch copies the log of the replica on a node to an empty or outdated log:
// all entries up to the replica's last snapshot, that snapshot, and the FSM's
// metas. After [Open], replication continues from there. Nothing else may use
// the log meanwhile. Fetch uses a bounded amount of memory, however large the
// log.
//
// [Fetching] reports true until Fetch returns nil. After an error or a crash,
// call Fetch again, for the same node or another: it resumes. The errors to
// test for are [ErrStale], ctx's, and those of package wal: [wal.ErrNoSpace] as
// soon as the store is [wal.Store.Tight].
//
// A fetch has one goroutine at each end: Fetch's caller reads from the
// connection and writes to the disk, and the other node's handler reads from
// its disk and writes to the connection, at the catch-up rate. If one is slow,
// the other blocks on the connection. ctx ends the fetch, and so does closing
// the network or, at the other end, the group.
func Fetch(ctx context.Context, n *Network, group uint32, from string, log *wal.Log) error {
	if err := fetch(ctx, n, group, from, log); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("fetch group %d from %s: %w", group, from, err)
	}
	return nil
}

func fetch(ctx context.Context, n *Network, group uint32, from string, log *wal.Log) error {
	state, err := beginFetch(log)
	if err != nil {
		return err
	}
	conn, err := n.dial(ctx, from, peernet.Fetch, group)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, conn.Abort)()
	c := &fetchConn{Conn: conn, r: bufio.NewReaderSize(conn, peernet.MaxFrame), w: bufio.NewWriter(conn)}
	f := fetcher{log: log, conn: c, state: state}
	return f.run()
}

// fetcher is the receiving end of a fetch.
type fetcher struct {
	log      *wal.Log
	conn     *fetchConn
	state    fetchState
	header   fetchHeader
	snapshot storedSnapshot
	had      uint64      // the index of the last entry before this fetch
	entries  []wal.Entry // received and not stored yet
	bytes    int         // about their size
}

func (f *fetcher) run() error {
	if err := f.request(); err != nil {
		return err
	}
	for {
		kind, b, err := f.conn.receive()
		if err != nil {
			return err
		}
		switch kind {
		case msgEntry:
			if err := f.add(b); err != nil {
				return err
			}
		case msgEnd:
			if err := f.store(); err != nil {
				return err
			}
			return f.finish()
		default:
			return fmt.Errorf("%w: got message %q, want an entry", errFetch, kind)
		}
	}
}

// request sends the index of the first entry to send, and receives and checks
// the header.
func (f *fetcher) request() error {
	first := binary.BigEndian.AppendUint64(nil, f.log.LastIndex()+1)
	if err := errors.Join(f.conn.send(msgRequest, first), f.conn.w.Flush()); err != nil {
		return err
	}
	kind, b, err := f.conn.receive()
	if err != nil {
		return err
	}
	if kind != msgHeader {
		return fmt.Errorf("%w: got message %q, want the header", errFetch, kind)
	}
	if err := json.Unmarshal(b, &f.header); err != nil {
		return fmt.Errorf("%w: header: %w", errFetch, err)
	}
	if f.snapshot, err = f.header.snapshot(); err != nil {
		return err
	}
	snap := f.snapshot
	if own := max(storedTerm(f.log), f.state.AckedTerm); implausibleTerm(own, snap.Term) {
		return fmt.Errorf("%w: its snapshot is of term %d, this replica is in term %d: %w", errFetch, snap.Term, own, errImplausibleTerm)
	}
	if snap.Term < f.state.AckedTerm || snap.Term == f.state.AckedTerm && snap.Index < f.state.AckedIndex {
		return fmt.Errorf("%w: its snapshot is at entry %d of term %d, and this replica had entry %d of term %d",
			ErrStale, snap.Index, snap.Term, f.state.AckedIndex, f.state.AckedTerm)
	}
	if first, last := f.log.FirstIndex(), f.log.LastIndex(); last > 0 && f.header.First > last+1 {
		return f.log.TruncateSuffix(first) // there would be a gap before the fetched entries
	}
	f.had = f.log.LastIndex() // what was fetched before may end behind this snapshot
	return nil
}

// next returns the index of the next entry to receive.
func (f *fetcher) next() uint64 {
	if n := len(f.entries); n > 0 {
		return f.entries[n-1].Index + 1
	}
	if last := f.log.LastIndex(); last > 0 {
		return last + 1
	}
	return f.header.First
}

// add decodes an entry and adds it to the batch. It stores a full batch.
func (f *fetcher) add(b []byte) error {
	e, err := decodeFetched(b)
	if err != nil {
		return err
	}
	if next := f.next(); e.Index != next || e.Index > f.snapshot.Index {
		return fmt.Errorf("%w: got entry %d, want %d of %d", errFetch, e.Index, next, f.snapshot.Index)
	}
	f.entries = append(f.entries, e)
	if f.bytes += len(b); f.bytes >= fetchBatchBytes || len(f.entries) == fetchBatchEntries {
		return f.store()
	}
	return nil
}

// store appends the batch to the log.
func (f *fetcher) store() error {
	if len(f.entries) == 0 {
		return nil
	}
	if f.log.Tight() {
		return fmt.Errorf("store fetched entries: %w", wal.ErrNoSpace)
	}
	err := f.log.Append(f.entries...)
	clear(f.entries)
	f.entries, f.bytes = f.entries[:0], 0
	return err
}

// finish checks the log against the snapshot, and stores the snapshot and all
// else that the log needs to be opened.
func (f *fetcher) finish() error {
	snap := f.snapshot
	e, err := f.log.Entry(snap.Index)
	if err != nil {
		return fmt.Errorf("%w: entry %d, the snapshot's: %w", errFetch, snap.Index, err)
	}
	if e.Term != snap.Term {
		return fmt.Errorf("%w: entry %d has term %d in the log, and term %d in the snapshot", errFetch, snap.Index, e.Term, snap.Term)
	}
	if f.log.FirstIndex() < f.header.First {
		if err := f.log.TrimHead(f.header.First - 1); err != nil {
			return err
		}
	}
	for _, index := range f.header.Voids {
		if err := f.log.Void(index); err != nil {
			return err
		}
	}
	end := max(snap.Index, f.had)
	invariant.FetchComplete.Check(f.log.LastIndex() == end, f.log.LastIndex(), end)
	invariant.LogFetched.Reached()
	return f.log.SetMeta(f.metas()...)
}

// metas returns the snapshot and everything that is stored together with it:
// the FSM's metas, the snapshot's term if raft's is older, and the end of the
// fetch.
func (f *fetcher) metas() []wal.Meta {
	var metas []wal.Meta
	for _, name := range stateMetas(f.log) {
		if _, ok := f.header.Metas[name]; !ok {
			metas = append(metas, wal.Meta{Name: name})
		}
	}
	for name, v := range f.header.Metas {
		metas = append(metas, wal.Meta{Name: name, Value: append([]byte{}, v...)})
	}
	if storedTerm(f.log) < f.snapshot.Term {
		term := binary.BigEndian.AppendUint64(nil, f.snapshot.Term)
		metas = append(metas, wal.Meta{Name: stablePrefix + keyTerm, Value: term})
	}
	return append(metas, wal.Meta{Name: metaFetching})
}
