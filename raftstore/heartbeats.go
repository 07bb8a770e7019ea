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

// The heartbeats of all groups that two nodes share go over one connection in
// each direction of leadership, and those that are due at about the same time
// in one message: what a node with many partitions costs while nothing happens
// is mostly heartbeats.
//
// A message is a count, 4 bytes, and so many beats; what answers is a count
// and so many answers, in any order and grouping.
//
//	beat:   id 4 | group 4 | term 8
//	answer: id 4 | status 1 | term 8 | last entry 8
const (
	heartbeatSize      = 16
	heartbeatReplySize = 21
	// maxBeats bounds what one message carries.
	maxHeartbeatBatch = 1 << 12
	// beatWriteTimeout bounds how long a peer may take to read a message.
	heartbeatWriteTimeout = 5 * time.Second
)

// What a beat is answered with.
const (
	heartbeatRejected byte = iota // the group follows another leader
	heartbeatAccepted
	heartbeatNoGroup // there is no replica of the group
)

// queuedHeartbeat is a heartbeat on its way.
type queuedHeartbeat struct {
	group   uint32
	term    uint64
	due     time.Time // when it is sent at the latest
	reply   raft.AppendEntriesResponse
	err     error
	onReply func(raft.AppendEntriesResponse) // called with the answer, however late it comes
	done    chan struct{}                    // closed when there is an answer, or an error
}

var (
	errMalformedHeartbeats = errors.New("malformed heartbeats")
	errNoHeartbeatReply    = errors.New("no answer in time")
)

// beats sends a node's heartbeats to one peer.
type heartbeatBatcher struct {
	network *Network
	node    string

	// flushing is held by who dials and writes.
	flushing sync.Mutex
	// mu guards what follows.
	mu    sync.Mutex
	queue []*queuedHeartbeat
	timer *time.Timer    // sends what waits
	due   time.Time      // when it rings; zero if it isn't set
	conn  *heartbeatConn // nil while there is none
}

// beatConn is a connection that heartbeats are sent over.
type heartbeatConn struct {
	conn      *peernet.Conn
	lastReply atomic.Int64 // when something last came, Unix nanoseconds

	// mu guards what follows.
	mu      sync.Mutex
	pending map[uint32]*queuedHeartbeat
	lastID  uint32 // the id given last
	err     error  // why no more is taken
}

// beatsTo gives the way of heartbeats to a node.
func (n *Network) heartbeatsTo(node string) *heartbeatBatcher {
	n.mu.Lock()
	defer n.mu.Unlock()
	b := n.batchers[node]
	if b == nil {
		b = &heartbeatBatcher{network: n, node: node}
		b.timer = time.AfterFunc(time.Hour, b.flush)
		b.timer.Stop()
		n.batchers[node] = b
	}
	return b
}

// put has a heartbeat sent, together with others, before a delay has passed.
func (b *heartbeatBatcher) enqueue(group uint32, term uint64, delay time.Duration, heard func(raft.AppendEntriesResponse)) *queuedHeartbeat {
	one := &queuedHeartbeat{group: group, term: term, due: time.Now().Add(delay), onReply: heard, done: make(chan struct{})}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queue = append(b.queue, one)
	if b.due.IsZero() || one.due.Before(b.due) {
		b.due = one.due
		b.timer.Reset(delay)
	}
	return one
}

// await returns the answer to a heartbeat. It waits for patience after that was
// due, or until ctx ends. At once and after every step it asks whether to go on
// without an answer; the heartbeat is sent all the same.
func (b *heartbeatBatcher) await(ctx context.Context, one *queuedHeartbeat, patience, step time.Duration, goOn func() bool) (raft.AppendEntriesResponse, error) {
	presumed := raft.AppendEntriesResponse{Term: one.term, Success: true}
	if goOn() {
		return presumed, nil
	}
	tick := time.NewTimer(time.Until(one.due) + min(step, patience))
	defer tick.Stop()
	for {
		select {
		case <-one.done:
			return one.reply, one.err
		case <-ctx.Done():
			return raft.AppendEntriesResponse{}, ctx.Err()
		case now := <-tick.C:
			left := one.due.Add(patience).Sub(now)
			switch {
			case goOn():
				return presumed, nil
			case left <= 0:
				b.dropIfSilent(one.due)
				return raft.AppendEntriesResponse{}, errNoHeartbeatReply
			}
			tick.Reset(min(step, left))
		}
	}
}

// hurry sends what waits at once.
func (b *heartbeatBatcher) flushNow() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.due.IsZero() {
		b.due = time.Now()
		b.timer.Reset(0)
	}
}

// flush sends what waits.
func (b *heartbeatBatcher) flush() {
	b.flushing.Lock()
	defer b.flushing.Unlock()
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
		some := batch[:min(len(batch), maxHeartbeatBatch)]
		if err := conn.send(some); err != nil {
			b.dropConn(conn, err)
			failAll(batch, err)
			return
		}
		batch = batch[len(some):]
	}
}

func failAll(batch []*queuedHeartbeat, err error) {
	for _, one := range batch {
		one.complete(err)
	}
}

// fail settles a beat unless it is settled. The lock of the connection that it
// was given to is held, or it was given to none.
func (one *queuedHeartbeat) complete(err error) {
	select {
	case <-one.done:
	default:
		one.err = err
		close(one.done)
	}
}

// close sends no more, and waits for what is being sent. The network is closed
// already.
func (b *heartbeatBatcher) close() {
	b.timer.Stop()
	b.flushing.Lock()
	defer b.flushing.Unlock()
}

// connect dials the peer.
func (b *heartbeatBatcher) connect() (*heartbeatConn, error) {
	l, err := b.network.dial(b.network.ctx, b.node, peernet.Heartbeats, 0)
	if err != nil {
		return nil, err
	}
	c := &heartbeatConn{conn: l, pending: map[uint32]*queuedHeartbeat{}}
	b.network.running.Go(func() { b.dropConn(c, c.readReplies()) })
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conn = c
	return c, nil
}

// lose gives a connection up, and what waits for its answers.
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
	for id, one := range c.pending {
		one.complete(c.err)
		delete(c.pending, id)
	}
}

// doubt gives the connection up if nothing has come over it since.
func (b *heartbeatBatcher) dropIfSilent(since time.Time) {
	b.mu.Lock()
	c := b.conn
	b.mu.Unlock()
	if c != nil && c.lastReply.Load() < since.UnixNano() {
		b.dropConn(c, errNoHeartbeatReply)
	}
}

// write sends some beats.
func (c *heartbeatConn) send(batch []*queuedHeartbeat) error {
	out := binary.BigEndian.AppendUint32(make([]byte, 0, 4+heartbeatSize*len(batch)), uint32(len(batch)))
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return c.err
	}
	for _, one := range batch {
		c.lastID++
		c.pending[c.lastID] = one
		out = binary.BigEndian.AppendUint32(out, c.lastID)
		out = binary.BigEndian.AppendUint32(out, one.group)
		out = binary.BigEndian.AppendUint64(out, one.term)
	}
	c.mu.Unlock()
	_ = c.conn.SetWriteDeadline(time.Now().Add(heartbeatWriteTimeout))
	_, err := c.conn.Write(out)
	return err
}

// read settles beats as their answers come, until the connection breaks.
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

// settle settles the beat that is answered, unless nobody waits any more.
func (c *heartbeatConn) handleReply(r []byte) {
	id := binary.BigEndian.Uint32(r)
	c.mu.Lock()
	defer c.mu.Unlock()
	one := c.pending[id]
	if one == nil {
		return
	}
	delete(c.pending, id)
	if r[4] == heartbeatNoGroup {
		one.complete(peernet.NoGroupError(one.group))
		return
	}
	one.reply = raft.AppendEntriesResponse{
		Success: r[4] == heartbeatAccepted, Term: binary.BigEndian.Uint64(r[5:]), LastLog: binary.BigEndian.Uint64(r[13:]),
	}
	if one.onReply != nil {
		one.onReply(one.reply)
	}
	one.complete(nil)
}

// readRecords reads a message of records of a size.
func readRecords(r io.Reader, size int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > maxHeartbeatBatch {
		return nil, fmt.Errorf("%w: there can't be %d in a message", errMalformedHeartbeats, n)
	}
	records := make([]byte, int(n)*size)
	if _, err := io.ReadFull(r, records); err != nil {
		return nil, unexpectedEOF(err)
	}
	return records, nil
}

// serveBeats passes a peer's heartbeats to their groups, and the answers back.
func (n *Network) serveHeartbeats(l *peernet.Conn) {
	from := l.Peer()
	n.countHeartbeatConns(from, +1)
	n.handleHeartbeats(l, from)
	n.countHeartbeatConns(from, -1)
	n.heartbeatConnEnded(from)
}

func (n *Network) handleHeartbeats(l *peernet.Conn, from string) {
	defer l.Close()
	var writing sync.Mutex
	answer := func(records []byte) {
		out := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(records)), uint32(len(records)/heartbeatReplySize))
		writing.Lock()
		defer writing.Unlock()
		if _, err := l.Write(append(out, records...)); err != nil {
			l.Abort()
		}
	}
	for {
		records, err := readRecords(l, heartbeatSize)
		if err != nil {
			return
		}
		n.starved.recordArrival(from, time.Now())
		var answers []byte
		for r := range slices.Chunk(records, heartbeatSize) {
			id, group, term := binary.BigEndian.Uint32(r), binary.BigEndian.Uint32(r[4:]), binary.BigEndian.Uint64(r[8:])
			if done := n.handleNow(&answers, id, from, group, term); !done {
				n.running.Go(func() { // raft may be busy: others don't wait
					if late := n.handleInMain(id, from, group, term); len(late) > 0 {
						answer(late)
					}
				})
			}
		}
		if len(answers) > 0 {
			answer(answers)
		}
	}
}

// heartbeat returns a group's heartbeat as raft's request.
func heartbeatRequest(from string, term uint64) *raft.AppendEntriesRequest {
	return &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(from), Addr: []byte(from)},
		Term:      term,
	}
}

// hear appends the answer to a heartbeat if there is one at once; false says
// that raft's main goroutine is to give it.
func (n *Network) handleNow(to *[]byte, id uint32, from string, group uint32, term uint64) bool {
	e := n.endpoint(group)
	if e == nil || !e.acquire() {
		*to = appendHeartbeatReply(*to, id, heartbeatNoGroup, raft.AppendEntriesResponse{})
		return true
	}
	defer e.users.Done()
	if e.halt.err() != nil || e.rejectsTerm(term) {
		*to = appendHeartbeatReply(*to, id, heartbeatNoGroup, raft.AppendEntriesResponse{})
		return true
	}
	a, ok := e.bypassMain(from, heartbeatRequest(from, term))
	if ok {
		*to = appendHeartbeatReply(*to, id, heartbeatStatus(a), a)
	}
	return ok
}

// hearThrough returns the answer that raft's main goroutine gives to a
// heartbeat, nil if it gives none.
func (n *Network) handleInMain(id uint32, from string, group uint32, term uint64) []byte {
	e := n.endpoint(group)
	if e == nil || !e.acquire() {
		return appendHeartbeatReply(nil, id, heartbeatNoGroup, raft.AppendEntriesResponse{})
	}
	defer e.users.Done()
	a, ok := e.askMain(from, heartbeatRequest(from, term))
	if !ok {
		return nil
	}
	return appendHeartbeatReply(nil, id, heartbeatStatus(a), a)
}

func heartbeatStatus(a raft.AppendEntriesResponse) byte {
	if a.Success {
		return heartbeatAccepted
	}
	return heartbeatRejected
}

func appendHeartbeatReply(to []byte, id uint32, status byte, a raft.AppendEntriesResponse) []byte {
	to = append(binary.BigEndian.AppendUint32(to, id), status)
	to = binary.BigEndian.AppendUint64(to, a.Term)
	return binary.BigEndian.AppendUint64(to, a.LastLog)
}

// busy counts a user of the endpoint; false says that it was closed.
func (e *endpoint) acquire() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.open.Err() != nil {
		return false
	}
	e.users.Add(1)
	return true
}

// listen counts the connections over which a node sends heartbeats.
func (n *Network) countHeartbeatConns(node string, change int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.heartbeatConns[node] += change; n.heartbeatConns[node] == 0 {
		delete(n.heartbeatConns, node)
		n.starved.forgetPeer(node)
	}
}
