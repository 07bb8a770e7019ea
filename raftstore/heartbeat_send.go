package raftstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/cantuslog/cantus/raftstore/peernet"
)

// A leader sends a heartbeat to each follower in each of its groups. On an idle
// node with many partitions, heartbeats are most of the work. So the heartbeats
// of all groups that a node leads and a peer follows share one connection, and
// those that are due at about the same time share one message.
//
// Three kinds of goroutines meet here. Raft has one for each group and peer; it
// enqueues a heartbeat (transport.sendHeartbeat) and blocks in await until the
// reply, a timeout, or the group's close. The timer of a peer's batcher runs
// flush when the first heartbeat in the queue is due, or at once if a caller
// waits for confirmation (flushNow); flush may block while it dials and writes.
// A goroutine for each connection reads the replies and completes the
// heartbeats that they answer; it blocks only on the connection. If no reply at
// all arrives on the connection until a timeout, await drops the connection,
// and the next flush dials again.
//
// heartbeatBatcher.flushing lets only one flush run at a time; it may be taken
// for seconds. It is a channel and no mutex, so that a simulation's time goes
// on meanwhile: testing/synctest takes a goroutine that waits for a mutex for
// one that runs. The two locks named mu are held only briefly, and never both
// at once: the batcher's guards the queue and the timer, the connection's
// guards the heartbeats that wait for a reply.
//
// A message is a count (4 bytes, 1 to 4,096), big-endian like all numbers, and
// that many heartbeats. The replies come in messages of the same form, in any
// order and grouping. A heartbeat is
//
//	0     4  id, which the reply repeats
//	4     4  group
//	8     8  term
//
// and a reply
//
//	 0     4  id
//	 4     1  0 the replica is in a newer term, 1 it follows, 2 no replica
//	 5     8  the replica's term
//	13     8  the index of its last entry
const (
	heartbeatSize      = 16
	heartbeatReplySize = 21
	// maxHeartbeatBatch bounds the heartbeats in one message.
	maxHeartbeatBatch = 1 << 12
	// heartbeatWriteTimeout bounds how long a peer may take to read a message.
	heartbeatWriteTimeout = 5 * time.Second
)

// The status in a reply.
const (
	heartbeatRejected byte = iota // the replica is in a newer term
	heartbeatAccepted
	heartbeatNoGroup // the node has no replica of the group, or it is halted
)

// queuedHeartbeat is a heartbeat that waits to be sent, or for its reply.
type queuedHeartbeat struct {
	group   uint32
	term    uint64
	due     time.Time // sent by then at the latest
	reply   raft.AppendEntriesResponse
	err     error
	onReply func(raft.AppendEntriesResponse) // called with the reply, however late; may be nil
	done    chan struct{}                    // closed when reply or err is set
}

var (
	errMalformedHeartbeats = errors.New("malformed heartbeats")
	errNoHeartbeatReply    = errors.New("no reply in time")
)

// heartbeatBatcher sends this node's heartbeats to one peer.
type heartbeatBatcher struct {
	network *Network
	node    string

	// flushing holds a value while a flush dials and writes. Its capacity is 1.
	flushing chan struct{}
	// mu guards the fields below.
	mu    sync.Mutex
	queue []*queuedHeartbeat
	timer *time.Timer    // calls flush
	due   time.Time      // when timer fires; zero if it is stopped
	conn  *heartbeatConn // nil if there is no connection
}

// heartbeatConn is a connection that carries heartbeats to a peer, and the
// replies to them.
type heartbeatConn struct {
	conn      *peernet.Conn
	lastReply atomic.Int64 // when the last replies arrived, Unix nanoseconds

	// mu guards the fields below.
	mu      sync.Mutex
	pending map[uint32]*queuedHeartbeat // sent and not answered, by id
	lastID  uint32
	err     error // why the connection is closed; nil while it is open
}

// heartbeatsTo returns the batcher for a node. It creates it on first use.
func (n *Network) heartbeatsTo(node string) *heartbeatBatcher {
	n.mu.Lock()
	defer n.mu.Unlock()
	b := n.batchers[node]
	if b == nil {
		b = &heartbeatBatcher{network: n, node: node, flushing: make(chan struct{}, 1)}
		b.timer = time.AfterFunc(time.Hour, b.flush)
		b.timer.Stop()
		n.batchers[node] = b
	}
	return b
}

// enqueue queues a heartbeat, to be sent within delay. onReply is called with
// the reply, even if it arrives after await has returned; it may be nil.
func (b *heartbeatBatcher) enqueue(group uint32, term uint64, delay time.Duration, onReply func(raft.AppendEntriesResponse)) *queuedHeartbeat {
	h := &queuedHeartbeat{group: group, term: term, due: time.Now().Add(delay), onReply: onReply, done: make(chan struct{})}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queue = append(b.queue, h)
	if b.due.IsZero() || h.due.Before(b.due) {
		b.due = h.due
		b.timer.Reset(delay)
	}
	return h
}

// await waits for the reply to a heartbeat and returns it. The error is ctx's,
// the connection's, or errNoHeartbeatReply if timeout has passed since the
// heartbeat was due. At the beginning and after every step, await calls
// presumeSuccess; if that returns true, await returns success without waiting
// for the reply. The heartbeat is sent nevertheless.
func (b *heartbeatBatcher) await(ctx context.Context, h *queuedHeartbeat, timeout, step time.Duration, presumeSuccess func() bool) (raft.AppendEntriesResponse, error) {
	presumed := raft.AppendEntriesResponse{Term: h.term, Success: true}
	if presumeSuccess() {
		return presumed, nil
	}
	tick := time.NewTimer(time.Until(h.due) + min(step, timeout))
	defer tick.Stop()
	for {
		select {
		case <-h.done:
			return h.reply, h.err
		case <-ctx.Done():
			return raft.AppendEntriesResponse{}, ctx.Err()
		case now := <-tick.C:
			left := h.due.Add(timeout).Sub(now)
			switch {
			case presumeSuccess():
				return presumed, nil
			case left <= 0:
				b.dropIfSilent(h.due)
				return raft.AppendEntriesResponse{}, errNoHeartbeatReply
			}
			tick.Reset(min(step, left))
		}
	}
}

// flushNow makes the timer fire at once, if the queue is not empty.
func (b *heartbeatBatcher) flushNow() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.due.IsZero() {
		b.due = time.Now()
		b.timer.Reset(0)
	}
}

// flush sends the queue. It dials if there is no connection.
func (b *heartbeatBatcher) flush() {
	b.flushing <- struct{}{}
	defer func() { <-b.flushing }()
	b.mu.Lock()
	batch, conn := b.queue, b.conn
	b.queue, b.due = nil, time.Time{}
	b.mu.Unlock()
	for len(batch) > 0 {
		if conn == nil {
			var err error
			if conn, err = b.connect(); err != nil {
				failAll(batch, err)
				return
			}
		}
		part := batch[:min(len(batch), maxHeartbeatBatch)]
		if err := conn.send(part); err != nil {
			b.dropConn(conn, err)
			failAll(batch, err)
			return
		}
		batch = batch[len(part):]
	}
}

func failAll(batch []*queuedHeartbeat, err error) {
	for _, h := range batch {
		h.complete(err)
	}
}

// complete sets the outcome of a heartbeat, unless it has one. If the heartbeat
// was passed to a connection, the caller holds the connection's mu.
func (h *queuedHeartbeat) complete(err error) {
	select {
	case <-h.done:
	default:
		h.err = err
		close(h.done)
	}
}

// close stops the timer and waits for a running flush. It is called after the
// network is closed, so a later flush can't dial.
func (b *heartbeatBatcher) close() {
	b.timer.Stop()
	b.flushing <- struct{}{}
	<-b.flushing
}

// connect dials the peer and starts the goroutine that reads its replies.
func (b *heartbeatBatcher) connect() (*heartbeatConn, error) {
	conn, err := b.network.dial(b.network.ctx, b.node, peernet.Heartbeats, 0)
	if err != nil {
		return nil, err
	}
	c := &heartbeatConn{conn: conn, pending: map[uint32]*queuedHeartbeat{}}
	b.network.running.Go(func() { b.dropConn(c, c.readReplies()) })
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conn = c
	return c, nil
}

// dropConn closes a connection and fails the heartbeats that wait for a reply
// on it.
func (b *heartbeatBatcher) dropConn(c *heartbeatConn, err error) {
	b.mu.Lock()
	if b.conn == c {
		b.conn = nil
	}
	b.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
	_ = c.conn.Close()
	for id, h := range c.pending {
		h.complete(c.err)
		delete(c.pending, id)
	}
}

// dropIfSilent drops the connection if no reply has arrived on it since a time.
func (b *heartbeatBatcher) dropIfSilent(since time.Time) {
	b.mu.Lock()
	c := b.conn
	b.mu.Unlock()
	if c != nil && c.lastReply.Load() < since.UnixNano() {
		b.dropConn(c, errNoHeartbeatReply)
	}
}

// send writes heartbeats as one message.
func (c *heartbeatConn) send(batch []*queuedHeartbeat) error {
	out := binary.BigEndian.AppendUint32(make([]byte, 0, 4+heartbeatSize*len(batch)), uint32(len(batch)))
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return c.err
	}
	for _, h := range batch {
		c.lastID++
		c.pending[c.lastID] = h
		out = binary.BigEndian.AppendUint32(out, c.lastID)
		out = binary.BigEndian.AppendUint32(out, h.group)
		out = binary.BigEndian.AppendUint64(out, h.term)
	}
	c.mu.Unlock()
	_ = c.conn.SetWriteDeadline(time.Now().Add(heartbeatWriteTimeout))
	_, err := c.conn.Write(out)
	return err
}

// readReplies handles replies until the connection breaks. It returns the
// connection's error.
func (c *heartbeatConn) readReplies() error {
	for {
		records, err := readRecords(c.conn, heartbeatReplySize)
		if err != nil {
			return err
		}
		c.lastReply.Store(time.Now().UnixNano())
		for r := range slices.Chunk(records, heartbeatReplySize) {
			c.handleReply(r)
		}
	}
}

// handleReply completes the heartbeat that a reply answers, if it is pending.
func (c *heartbeatConn) handleReply(r []byte) {
	id := binary.BigEndian.Uint32(r)
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.pending[id]
	if h == nil {
		return
	}
	delete(c.pending, id)
	if r[4] == heartbeatNoGroup {
		h.complete(peernet.NoGroupError(h.group))
		return
	}
	h.reply = raft.AppendEntriesResponse{
		Success: r[4] == heartbeatAccepted, Term: binary.BigEndian.Uint64(r[5:]), LastLog: binary.BigEndian.Uint64(r[13:]),
	}
	if h.onReply != nil {
		h.onReply(h.reply)
	}
	h.complete(nil)
}

// readRecords reads a message of records of one size.
func readRecords(r io.Reader, size int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > maxHeartbeatBatch {
		return nil, fmt.Errorf("%w: a message can't have %d records", errMalformedHeartbeats, n)
	}
	records := make([]byte, int(n)*size)
	if _, err := io.ReadFull(r, records); err != nil {
		return nil, unexpectedEOF(err)
	}
	return records, nil
}
