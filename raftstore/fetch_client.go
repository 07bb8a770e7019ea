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
	// fetchPiece is about how many bytes of entries are stored at once.
	fetchPiece = 1 << 20
	// fetchEntries is how many entries are, at most.
	fetchEntries = 256
	// fetchTimeout is how long the other end may take over a message.
	fetchTimeout = time.Minute
)

// Fetch brings an empty or outdated log to what the replica on a node keeps:
// all entries from its first to its last marker, and the marker with the FSM's
// metas, so that Open then goes on by ordinary replication. The log may not be
// open. Memory does not grow with the log.
//
// Until it has ended [Fetching] is true. After an error, or a crash, call it
// again, for the same node or another: it goes on where it was. The errors to
// test for are [ErrStale], ctx's, and those of package wal.
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
	l, err := n.dial(ctx, from, peernet.Fetch, group)
	if err != nil {
		return err
	}
	defer l.Close()
	defer context.AfterFunc(ctx, l.Abort)()
	c := &fetchConn{Conn: l, r: bufio.NewReaderSize(l, peernet.MaxFrame), w: bufio.NewWriter(l)}
	f := fetcher{log: log, conn: c, state: state}
	return f.run()
}

// fetcher is the end of a fetch that wants entries.
type fetcher struct {
	log      *wal.Log
	conn     *fetchConn
	state    fetchState
	head     fetchHead
	snapshot storedSnapshot
	entries  []wal.Entry // not stored yet
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
			return fmt.Errorf("%w: %q in place of an entry", errFetch, kind)
		}
	}
}

// ask tells where to begin, and takes the other end's head.
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
		return fmt.Errorf("%w: %q in place of the head", errFetch, kind)
	}
	if err := json.Unmarshal(b, &f.head); err != nil {
		return fmt.Errorf("%w: head: %w", errFetch, err)
	}
	if f.snapshot, err = f.head.snapshot(); err != nil {
		return err
	}
	k := f.snapshot
	if own := max(storedTerm(f.log), f.state.OwedTerm); implausibleTerm(own, k.Term) {
		return fmt.Errorf("%w: its marker is of term %d, this replica is in term %d: %w", errFetch, k.Term, own, errImplausibleTerm)
	}
	if k.Term < f.state.OwedTerm || k.Term == f.state.OwedTerm && k.Index < f.state.OwedIndex {
		return fmt.Errorf("%w: its marker is at entry %d of term %d, and this replica had entry %d of term %d",
			ErrStale, k.Index, k.Term, f.state.OwedIndex, f.state.OwedTerm)
	}
	if first, last := f.log.FirstIndex(), f.log.LastIndex(); last > 0 && f.head.First > last+1 {
		return f.log.TruncateSuffix(first) // what comes does not continue it
	}
	return nil
}

// next is the index that comes next.
func (f *fetcher) next() uint64 {
	if n := len(f.entries); n > 0 {
		return f.entries[n-1].Index + 1
	}
	if last := f.log.LastIndex(); last > 0 {
		return last + 1
	}
	return f.head.First
}

// take takes an entry, and stores what has come if it is enough.
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

func (f *fetcher) store() error {
	if len(f.entries) == 0 {
		return nil
	}
	err := f.log.Append(f.entries...)
	clear(f.entries)
	f.entries, f.bytes = f.entries[:0], 0
	return err
}

// finish makes the log one to be opened.
func (f *fetcher) finish() error {
	k := f.snapshot
	e, err := f.log.Entry(k.Index)
	if err != nil {
		return fmt.Errorf("%w: entry %d, which the marker is at: %w", errFetch, k.Index, err)
	}
	if e.Term != k.Term {
		return fmt.Errorf("%w: entry %d is of term %d here, and of %d there", errFetch, k.Index, e.Term, k.Term)
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

// metas gives the marker and all that goes with it: the log is whole when it
// is stored.
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
