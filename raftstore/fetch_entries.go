package raftstore

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cantuslog/cantus/raftstore/peernet"
	"github.com/cantuslog/cantus/wal"
)

// FetchEntries calls each for the entries first to last of the log of the
// replica on a node, in order. That replica has applied them, so that they are
// the entries of every replica that has applied as much. It returns an error if
// the replica lacks one of them, can't read it, or if each returns one.
func FetchEntries(ctx context.Context, n *Network, group uint32, from string, first, last uint64, each func(wal.Entry) error) error {
	if err := fetchEntries(ctx, n, group, from, first, last, each); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("fetch entries %d to %d of group %d from %s: %w", first, last, group, from, err)
	}
	return nil
}

// Snapshotted returns the index of the last entry that the snapshot in a log
// covers, 0 if there is none: the entries up to there are committed.
func Snapshotted(log *wal.Log) uint64 {
	snap, err := snapshotStore{log}.load()
	if err != nil {
		return 0
	}
	return snap.Index
}

func fetchEntries(ctx context.Context, n *Network, group uint32, from string, first, last uint64, each func(wal.Entry) error) error {
	conn, err := n.dial(ctx, from, peernet.Fetch, group)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, conn.Abort)()
	c := &fetchConn{Conn: conn, r: bufio.NewReaderSize(conn, peernet.MaxFrame), w: bufio.NewWriter(conn)}
	request := binary.BigEndian.AppendUint64(nil, first)
	if err := errors.Join(c.send(msgRequest, request), c.w.Flush()); err != nil {
		return err
	}
	if kind, _, err := c.receive(); err != nil {
		return err
	} else if kind != msgHeader {
		return fmt.Errorf("%w: got message %q, want the header", errFetch, kind)
	}
	for index := first; index <= last; index++ {
		kind, b, err := c.receive()
		if err != nil {
			return err
		}
		if kind != msgEntry {
			return fmt.Errorf("%w: entry %d: the replica's log ends before it", wal.ErrNotFound, index)
		}
		e, err := decodeFetched(b)
		if err != nil {
			return err
		}
		if e.Index != index {
			return fmt.Errorf("%w: got entry %d, want %d", errFetch, e.Index, index)
		}
		if err := each(e); err != nil {
			return err
		}
	}
	return nil
}
