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

// serveFetch serves a connection on which a replica fetches the group's log.
func (e *endpoint) serveFetch(conn *peernet.Conn) {
	if !e.addInbound(conn) {
		return
	}
	defer conn.Close()
	c := &fetchConn{Conn: conn, r: bufio.NewReader(conn), w: bufio.NewWriterSize(conn, peernet.MaxFrame)}
	sent, err := e.sendLog(c)
	if err != nil {
		err = errors.Join(err, c.send(fetchError, []byte(err.Error())), c.w.Flush())
	}
	g := e.group.Load()
	switch {
	case g == nil || e.open.Err() != nil:
	case err != nil:
		g.warn("log not sent completely", "to", conn.Peer(), "entries", sent, "err", err)
	default:
		g.info("log sent", "to", conn.Peer(), "entries", sent)
	}
}

// sendLog answers a fetch: with the head, the entries from the requested one to
// the snapshot, and the end. It returns the number of entries sent.
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
	head, snap, err := g.fetchHead()
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
	for entry, err := range g.log.log.Entries(max(from, head.First), snap.Index) {
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

// fetchBarrierTimeout bounds how long a snapshot for a fetch waits for a barrier.
const fetchBarrierTimeout = 5 * time.Second

// snapshotForFetch takes a snapshot. A leader waits for a barrier first: raft's
// own entry that begins a term leaves no trace in a snapshot, and a fetch may
// need one of this term.
func (g *Group) snapshotForFetch() error {
	if g.Leading() {
		ctx, cancel := context.WithTimeout(g.network.end.open, fetchBarrierTimeout)
		defer cancel()
		_ = g.Barrier(ctx) // without it, the snapshot may still be new enough
	}
	return g.Snapshot()
}

// fetchHead takes a snapshot, and returns the head for a fetch of this
// replica's log.
func (g *Group) fetchHead() (fetchHead, storedSnapshot, error) {
	snapshotErr := g.snapshotForFetch() // if this fails, an older one may still do
	log := g.log.log
	head := fetchHead{First: log.FirstIndex(), Metas: map[string][]byte{}}
	for name, v := range log.Metas("") {
		if isState(name) {
			head.Metas[name] = v
		}
	}
	if head.Metas[metaSnapshot] == nil {
		return head, storedSnapshot{}, errors.Join(errors.New("this replica has no snapshot yet"), snapshotErr)
	}
	snap, err := head.snapshot()
	for _, index := range log.Voids() {
		if index >= head.First && index <= snap.Index {
			head.Voids = append(head.Voids, index)
		}
	}
	return head, snap, err
}
