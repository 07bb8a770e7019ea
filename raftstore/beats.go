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
	beatSize      = 16
	beatReplySize = 21
	// maxBeats bounds what one message carries.
	maxBeats = 1 << 12
	// beatWriteTimeout bounds how long a peer may take to read a message.
	beatWriteTimeout = 5 * time.Second
)

// What a beat is answered with.
const (
	beatRefused byte = iota // the group follows another leader
	beatHeard
	beatNoGroup // there is no replica of the group
)

// beat is a heartbeat on its way.
type beat struct {
	group  uint32
	term   uint64
	due    time.Time // when it is sent at the latest
	answer raft.AppendEntriesResponse
	err    error
	heard  func(raft.AppendEntriesResponse) // called with the answer, however late it comes
	done   chan struct{}                    // closed when there is an answer, or an error
}

var (
	errBeats  = errors.New("malformed heartbeats")
	errNoBeat = errors.New("no answer in time")
)

// beats sends a node's heartbeats to one peer.
type beats struct {
	network *Network
	node    string

	// flushing is held by who dials and writes.
	flushing sync.Mutex
	// mu guards what follows.
	mu      sync.Mutex
	waiting []*beat
	alarm   *time.Timer // sends what waits
	due     time.Time   // when it rings; zero if it isn't set
	conn    *beatConn   // nil while there is none
}

// beatConn is a connection that heartbeats are sent over.
type beatConn struct {
	link  *peernet.Conn
	heard atomic.Int64 // when something last came, Unix nanoseconds

	// mu guards what follows.
	mu      sync.Mutex
	pending map[uint32]*beat
	last    uint32 // the id given last
	err     error  // why no more is taken
}

// beatsTo gives the way of heartbeats to a node.
func (n *Network) beatsTo(node string) *beats {
	n.mu.Lock()
	defer n.mu.Unlock()
	b := n.beats[node]
	if b == nil {
		b = &beats{network: n, node: node}
		b.alarm = time.AfterFunc(time.Hour, b.flush)
		b.alarm.Stop()
		n.beats[node] = b
	}
	return b
}

// put has a heartbeat sent, together with others, before a delay has passed.
func (b *beats) put(group uint32, term uint64, delay time.Duration, heard func(raft.AppendEntriesResponse)) *beat {
	one := &beat{group: group, term: term, due: time.Now().Add(delay), heard: heard, done: make(chan struct{})}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting = append(b.waiting, one)
	if b.due.IsZero() || one.due.Before(b.due) {
		b.due = one.due
		b.alarm.Reset(delay)
	}
	return one
}

// await returns the answer to a heartbeat. It waits for patience after that was
// due, or until ctx ends. At once and after every step it asks whether to go on
// without an answer; the heartbeat is sent all the same.
func (b *beats) await(ctx context.Context, one *beat, patience, step time.Duration, goOn func() bool) (raft.AppendEntriesResponse, error) {
	presumed := raft.AppendEntriesResponse{Term: one.term, Success: true}
	if goOn() {
		return presumed, nil
	}
	tick := time.NewTimer(time.Until(one.due) + min(step, patience))
	defer tick.Stop()
	for {
		select {
		case <-one.done:
			return one.answer, one.err
		case <-ctx.Done():
			return raft.AppendEntriesResponse{}, ctx.Err()
		case now := <-tick.C:
			left := one.due.Add(patience).Sub(now)
			switch {
			case goOn():
				return presumed, nil
			case left <= 0:
				b.doubt(one.due)
				return raft.AppendEntriesResponse{}, errNoBeat
			}
			tick.Reset(min(step, left))
		}
	}
}

// hurry sends what waits at once.
func (b *beats) hurry() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.due.IsZero() {
		b.due = time.Now()
		b.alarm.Reset(0)
	}
}

// flush sends what waits.
func (b *beats) flush() {
	b.flushing.Lock()
	defer b.flushing.Unlock()
	b.mu.Lock()
	batch, conn := b.waiting, b.conn
	b.waiting, b.due = nil, time.Time{}
	b.mu.Unlock()
	for len(batch) > 0 {
		if conn == nil {
			var err error
			if conn, err = b.connect(); err != nil {
				settle(batch, err)
				return
			}
		}
		some := batch[:min(len(batch), maxBeats)]
		if err := conn.write(some); err != nil {
			b.lose(conn, err)
			settle(batch, err)
			return
		}
		batch = batch[len(some):]
	}
}

func settle(batch []*beat, err error) {
	for _, one := range batch {
		one.fail(err)
	}
}

// fail settles a beat unless it is settled. The lock of the connection that it
// was given to is held, or it was given to none.
func (one *beat) fail(err error) {
	select {
	case <-one.done:
	default:
		one.err = err
		close(one.done)
	}
}

// close sends no more, and waits for what is being sent. The network is closed
// already.
func (b *beats) close() {
	b.alarm.Stop()
	b.flushing.Lock()
	defer b.flushing.Unlock()
}

// connect dials the peer.
func (b *beats) connect() (*beatConn, error) {
	l, err := b.network.dial(b.network.ctx, b.node, peernet.Heartbeats, 0)
	if err != nil {
		return nil, err
	}
	c := &beatConn{link: l, pending: map[uint32]*beat{}}
	b.network.running.Go(func() { b.lose(c, c.read()) })
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conn = c
	return c, nil
}

// lose gives a connection up, and what waits for its answers.
func (b *beats) lose(c *beatConn, err error) {
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
	_ = c.link.Close()
	for id, one := range c.pending {
		one.fail(c.err)
		delete(c.pending, id)
	}
}

// doubt gives the connection up if nothing has come over it since.
func (b *beats) doubt(since time.Time) {
	b.mu.Lock()
	c := b.conn
	b.mu.Unlock()
	if c != nil && c.heard.Load() < since.UnixNano() {
		b.lose(c, errNoBeat)
	}
}

// write sends some beats.
func (c *beatConn) write(batch []*beat) error {
	out := binary.BigEndian.AppendUint32(make([]byte, 0, 4+beatSize*len(batch)), uint32(len(batch)))
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return c.err
	}
	for _, one := range batch {
		c.last++
		c.pending[c.last] = one
		out = binary.BigEndian.AppendUint32(out, c.last)
		out = binary.BigEndian.AppendUint32(out, one.group)
		out = binary.BigEndian.AppendUint64(out, one.term)
	}
	c.mu.Unlock()
	_ = c.link.SetWriteDeadline(time.Now().Add(beatWriteTimeout))
	_, err := c.link.Write(out)
	return err
}

// read settles beats as their answers come, until the connection breaks.
func (c *beatConn) read() error {
	for {
		records, err := readRecords(c.link, beatReplySize)
		if err != nil {
			return err
		}
		c.heard.Store(time.Now().UnixNano())
		for r := range slices.Chunk(records, beatReplySize) {
			c.settle(r)
		}
	}
}

// settle settles the beat that is answered, unless nobody waits any more.
func (c *beatConn) settle(r []byte) {
	id := binary.BigEndian.Uint32(r)
	c.mu.Lock()
	defer c.mu.Unlock()
	one := c.pending[id]
	if one == nil {
		return
	}
	delete(c.pending, id)
	if r[4] == beatNoGroup {
		one.fail(peernet.NoGroupError(one.group))
		return
	}
	one.answer = raft.AppendEntriesResponse{
		Success: r[4] == beatHeard, Term: binary.BigEndian.Uint64(r[5:]), LastLog: binary.BigEndian.Uint64(r[13:]),
	}
	if one.heard != nil {
		one.heard(one.answer)
	}
	one.fail(nil)
}

// readRecords reads a message of records of a size.
func readRecords(r io.Reader, size int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > maxBeats {
		return nil, fmt.Errorf("%w: there can't be %d in a message", errBeats, n)
	}
	records := make([]byte, int(n)*size)
	if _, err := io.ReadFull(r, records); err != nil {
		return nil, noEOF(err)
	}
	return records, nil
}

// serveBeats passes a peer's heartbeats to their groups, and the answers back.
func (n *Network) serveBeats(l *peernet.Conn) {
	from := l.Peer()
	n.listen(from, +1)
	n.passBeats(l, from)
	n.listen(from, -1)
	n.lost(from)
}

func (n *Network) passBeats(l *peernet.Conn, from string) {
	defer l.Close()
	var writing sync.Mutex
	answer := func(records []byte) {
		out := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(records)), uint32(len(records)/beatReplySize))
		writing.Lock()
		defer writing.Unlock()
		if _, err := l.Write(append(out, records...)); err != nil {
			l.Abort()
		}
	}
	for {
		records, err := readRecords(l, beatSize)
		if err != nil {
			return
		}
		n.starved.heard(from, time.Now())
		var answers []byte
		for r := range slices.Chunk(records, beatSize) {
			id, group, term := binary.BigEndian.Uint32(r), binary.BigEndian.Uint32(r[4:]), binary.BigEndian.Uint64(r[8:])
			if done := n.hear(&answers, id, from, group, term); !done {
				n.running.Go(func() { // raft may be busy: others don't wait
					if late := n.hearThrough(id, from, group, term); len(late) > 0 {
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
func heartbeat(from string, term uint64) *raft.AppendEntriesRequest {
	return &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(from), Addr: []byte(from)},
		Term:      term,
	}
}

// hear appends the answer to a heartbeat if there is one at once; false says
// that raft's main goroutine is to give it.
func (n *Network) hear(to *[]byte, id uint32, from string, group uint32, term uint64) bool {
	e := n.endpoint(group)
	if e == nil || !e.busy() {
		*to = appendBeatAnswer(*to, id, beatNoGroup, raft.AppendEntriesResponse{})
		return true
	}
	defer e.users.Done()
	if e.halt.err() != nil || e.refusesTerm(term) {
		*to = appendBeatAnswer(*to, id, beatNoGroup, raft.AppendEntriesResponse{})
		return true
	}
	a, ok := e.beside(from, heartbeat(from, term))
	if ok {
		*to = appendBeatAnswer(*to, id, beatStatus(a), a)
	}
	return ok
}

// hearThrough returns the answer that raft's main goroutine gives to a
// heartbeat, nil if it gives none.
func (n *Network) hearThrough(id uint32, from string, group uint32, term uint64) []byte {
	e := n.endpoint(group)
	if e == nil || !e.busy() {
		return appendBeatAnswer(nil, id, beatNoGroup, raft.AppendEntriesResponse{})
	}
	defer e.users.Done()
	a, ok := e.through(from, heartbeat(from, term))
	if !ok {
		return nil
	}
	return appendBeatAnswer(nil, id, beatStatus(a), a)
}

func beatStatus(a raft.AppendEntriesResponse) byte {
	if a.Success {
		return beatHeard
	}
	return beatRefused
}

func appendBeatAnswer(to []byte, id uint32, status byte, a raft.AppendEntriesResponse) []byte {
	to = append(binary.BigEndian.AppendUint32(to, id), status)
	to = binary.BigEndian.AppendUint64(to, a.Term)
	return binary.BigEndian.AppendUint64(to, a.LastLog)
}

// busy counts a user of the endpoint; false says that it was closed.
func (e *endpoint) busy() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.open.Err() != nil {
		return false
	}
	e.users.Add(1)
	return true
}

// listen counts the connections over which a node sends heartbeats.
func (n *Network) listen(node string, change int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hearing[node] += change; n.hearing[node] == 0 {
		delete(n.hearing, node)
		n.starved.lost(node)
	}
}
