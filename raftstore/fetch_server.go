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

// serveFetch serves a connection on which another replica fetches the group's
// log.
func (e *endpoint) serveFetch(conn *peernet.Conn) {
	if !e.addInbound(conn) {
		return
	}
	defer conn.Close()
	c := &fetchConn{Conn: conn, r: bufio.NewReader(conn), w: bufio.NewWriterSize(conn, peernet.MaxFrame)}
	sent, err := e.sendLog(c)
	if err != nil {
		err = errors.Join(err, c.send(msgError, []byte(err.Error())), c.w.Flush())
	}
	g := e.group.Load()
	switch {
	case g == nil || e.ctx.Err() != nil:
	case err != nil:
		g.warn("the log was not sent completely", "to", conn.Peer(), "entries", sent, "err", err)
	default:
		g.info("log sent", "to", conn.Peer(), "entries", sent)
	}
}

// sendLog receives the request and sends the header, the entries from the
// requested one to the snapshot's, and the end. It returns the number of
// entries sent.
func (e *endpoint) sendLog(c *fetchConn) (sent int, err error) {
	kind, b, err := c.receive()
	if err != nil {
		return 0, err
	}
	if kind != msgRequest || len(b) != 8 {
		return 0, fmt.Errorf("%w: got message %q of %d bytes, want a request", errFetch, kind, len(b))
	}
	g := e.group.Load()
	if g == nil {
		return 0, fmt.Errorf("the replica of group %d is not open yet", e.id)
	}
	if err := g.Halted(); err != nil {
		return 0, err
	}
	header, snap, err := g.fetchHeader()
	if err != nil {
		return 0, err
	}
	encoded, err := json.Marshal(header)
	if err != nil {
		return 0, err
	}
	if err := errors.Join(c.send(msgHeader, encoded), c.w.Flush()); err != nil {
		return 0, err
	}
	from := binary.BigEndian.Uint64(b)
	for entry, err := range g.log.log.Entries(max(from, header.First), snap.Index) {
		if err != nil {
			return sent, err
		}
		if err := e.sendEntry(c, &entry); err != nil {
			return sent, err
		}
		sent++
	}
	return sent, errors.Join(c.send(msgEnd), c.w.Flush())
}

func (e *endpoint) sendEntry(c *fetchConn, entry *wal.Entry) error {
	fields := encodeFetched(entry)
	if err := e.network.peers.Throttle(e.ctx, len(fields)+len(entry.Data)); err != nil {
		return err
	}
	return c.send(msgEntry, fields, entry.Data)
}

// fetchBarrierTimeout bounds how long a snapshot for a fetch waits for a
// barrier.
const fetchBarrierTimeout = 5 * time.Second

// snapshotForFetch takes a snapshot. A leader waits for a barrier first: the
// fetching replica may need a snapshot of the current term, and the no-op entry
// with which raft begins a term does not count for a snapshot.
func (g *Group) snapshotForFetch() error {
	if g.Leading() {
		ctx, cancel := context.WithTimeout(g.network.endpoint.ctx, fetchBarrierTimeout)
		defer cancel()
		_ = g.Barrier(ctx) // if it fails, the snapshot may still be new enough
	}
	return g.Snapshot()
}

// fetchHeader takes a snapshot, and returns it with the header for a fetch of
// this replica's log.
func (g *Group) fetchHeader() (fetchHeader, storedSnapshot, error) {
	snapshotErr := g.snapshotForFetch() // if it fails, an older snapshot may be new enough
	log := g.log.log
	header := fetchHeader{First: log.FirstIndex(), Metas: map[string][]byte{}}
	for name, v := range log.Metas("") {
		if isState(name) {
			header.Metas[name] = v
		}
	}
	if header.Metas[metaSnapshot] == nil {
		return header, storedSnapshot{}, errors.Join(errors.New("this replica has no snapshot yet"), snapshotErr)
	}
	snap, err := header.snapshot()
	for _, index := range log.Voids() {
		if index >= header.First && index <= snap.Index {
			header.Voids = append(header.Voids, index)
		}
	}
	return header, snap, err
}
