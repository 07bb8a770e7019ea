package raftstore

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cantuslog/cantus/raftstore/peernet"
	"github.com/cantuslog/cantus/wal"
)

const (
	// fetchPiece is about the size of the entries that are stored at once, in bytes.
	fetchPiece = 1 << 20
	// fetchEntries bounds their number.
	fetchEntries = 256
	// fetchTimeout is how long the other end may take to send a message.
	fetchTimeout = time.Minute
)

// Fetch brings an empty or outdated log to what the replica on a node keeps:
// all entries from its first to its last snapshot, and that snapshot with the
// FSM's metas. [Open] then continues by ordinary replication. Nothing else may
// use the log. The memory that Fetch takes does not grow with the log.
//
// Until Fetch has returned nil, [Fetching] is true. After an error, or a crash,
// call it again, for the same node or another: it continues where it was. The
// errors to test for are [ErrStale], ctx's, and those of package wal.
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

// fetcher is the end of a fetch that receives the log.
type fetcher struct {
	log      *wal.Log
	conn     *fetchConn
	state    fetchState
	head     fetchHead
	snapshot storedSnapshot
	entries  []wal.Entry // received and not stored yet
	bytes    int
}

func (f *fetcher) run() error {
	if err := f.ask(); err != nil {
		return err
	}
	for {
		kind, b, err := f.conn.receive()
		if err != nil {
			return err
		}
		switch kind {
		case fetchEntry:
			if err := f.take(b); err != nil {
				return err
			}
		case fetchEnd:
			if err := f.store(); err != nil {
				return err
			}
			return f.finish()
		default:
			return fmt.Errorf("%w: %q instead of an entry", errFetch, kind)
		}
	}
}

// ask sends the index to begin at, and receives and checks the head.
func (f *fetcher) ask() error {
	want := binary.BigEndian.AppendUint64(nil, f.log.LastIndex()+1)
	if err := errors.Join(f.conn.send(fetchAsk, want), f.conn.w.Flush()); err != nil {
		return err
	}
	kind, b, err := f.conn.receive()
	if err != nil {
		return err
	}
	if kind != fetchBegin {
		return fmt.Errorf("%w: %q instead of the head", errFetch, kind)
	}
	if err := json.Unmarshal(b, &f.head); err != nil {
		return fmt.Errorf("%w: head: %w", errFetch, err)
	}
	if f.snapshot, err = f.head.snapshot(); err != nil {
		return err
	}
	snap := f.snapshot
	if own := max(storedTerm(f.log), f.state.OwedTerm); implausibleTerm(own, snap.Term) {
		return fmt.Errorf("%w: its snapshot is of term %d, this replica is in term %d: %w", errFetch, snap.Term, own, errImplausibleTerm)
	}
	if snap.Term < f.state.OwedTerm || snap.Term == f.state.OwedTerm && snap.Index < f.state.OwedIndex {
		return fmt.Errorf("%w: its snapshot is at entry %d of term %d, and this replica had entry %d of term %d",
			ErrStale, snap.Index, snap.Term, f.state.OwedIndex, f.state.OwedTerm)
	}
	if first, last := f.log.FirstIndex(), f.log.LastIndex(); last > 0 && f.head.First > last+1 {
		return f.log.TruncateSuffix(first) // the entries to come don't continue it
	}
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
	return f.head.First
}

// take takes an entry, and stores the received entries once there are enough.
func (f *fetcher) take(b []byte) error {
	e, err := decodeFetched(b)
	if err != nil {
		return err
	}
	if next := f.next(); e.Index != next || e.Index > f.snapshot.Index {
		return fmt.Errorf("%w: entry %d came, and %d of %d is next", errFetch, e.Index, next, f.snapshot.Index)
	}
	f.entries = append(f.entries, e)
	if f.bytes += len(b); f.bytes >= fetchPiece || len(f.entries) == fetchEntries {
		return f.store()
	}
	return nil
}

// store appends the received entries to the log.
func (f *fetcher) store() error {
	if len(f.entries) == 0 {
		return nil
	}
	err := f.log.Append(f.entries...)
	clear(f.entries)
	f.entries, f.bytes = f.entries[:0], 0
	return err
}

// finish makes the log complete: it can be opened.
func (f *fetcher) finish() error {
	snap := f.snapshot
	e, err := f.log.Entry(snap.Index)
	if err != nil {
		return fmt.Errorf("%w: entry %d, which the snapshot is at: %w", errFetch, snap.Index, err)
	}
	if e.Term != snap.Term {
		return fmt.Errorf("%w: entry %d is of term %d here, and of %d there", errFetch, snap.Index, e.Term, snap.Term)
	}
	if f.log.FirstIndex() < f.head.First {
		if err := f.log.TrimHead(f.head.First - 1); err != nil {
			return err
		}
	}
	for _, index := range f.head.Voids {
		if err := f.log.Void(index); err != nil {
			return err
		}
	}
	return f.log.SetMeta(f.metas()...)
}

// metas returns the snapshot and all that is stored with it. The log is
// complete once they are stored.
func (f *fetcher) metas() []wal.Meta {
	var metas []wal.Meta
	for _, name := range stateMetas(f.log) {
		if _, stays := f.head.Metas[name]; !stays {
			metas = append(metas, wal.Meta{Name: name})
		}
	}
	for name, v := range f.head.Metas {
		metas = append(metas, wal.Meta{Name: name, Value: append([]byte{}, v...)})
	}
	if storedTerm(f.log) < f.snapshot.Term {
		term := binary.BigEndian.AppendUint64(nil, f.snapshot.Term)
		metas = append(metas, wal.Meta{Name: stablePrefix + keyTerm, Value: term})
	}
	return append(metas, wal.Meta{Name: metaFetching})
}
