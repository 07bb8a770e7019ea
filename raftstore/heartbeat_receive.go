package raftstore

import (
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/cantuslog/cantus/raftstore/peernet"
)

// serveHeartbeats serves a connection that carries a peer's heartbeats. If the
// peer has no other such connection when it breaks, the peer's process may have
// died: see failover.go.
func (n *Network) serveHeartbeats(conn *peernet.Conn) {
	from := conn.Peer()
	n.countHeartbeatConns(from, +1)
	n.handleHeartbeats(conn, from)
	n.countHeartbeatConns(from, -1)
	n.heartbeatConnEnded(from)
}

// handleHeartbeats passes a peer's heartbeats to their groups and sends the
// replies. The handler's goroutine reads the messages. It answers in one
// message the heartbeats that bypass raft's main goroutine. Each of the others
// waits for its main goroutine, which may be busy, in a new goroutine, so that
// it does not delay the rest. It waits for replyTimeout at most.
func (n *Network) handleHeartbeats(conn *peernet.Conn, from string) {
	defer conn.Close()
	var writing sync.Mutex // held while a reply is written
	reply := func(records []byte) {
		out := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(records)), uint32(len(records)/heartbeatReplySize))
		writing.Lock()
		defer writing.Unlock()
		if _, err := conn.Write(append(out, records...)); err != nil {
			conn.Abort()
		}
	}
	for {
		records, err := readRecords(conn, heartbeatSize)
		if err != nil {
			return
		}
		n.starved.recordArrival(from, time.Now())
		var replies []byte
		for r := range slices.Chunk(records, heartbeatSize) {
			id, group, term := binary.BigEndian.Uint32(r), binary.BigEndian.Uint32(r[4:]), binary.BigEndian.Uint64(r[8:])
			if done := n.handleNow(&replies, id, from, group, term); !done {
				n.running.Go(func() {
					if late := n.handleInMain(id, from, group, term); len(late) > 0 {
						reply(late)
					}
				})
			}
		}
		if len(replies) > 0 {
			reply(replies)
		}
	}
}

// heartbeatRequest returns raft's form of a heartbeat.
func heartbeatRequest(from string, term uint64) *raft.AppendEntriesRequest {
	return &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(from), Addr: []byte(from)},
		Term:      term,
	}
}

// handleNow appends the reply to a heartbeat. It returns false if raft's main
// goroutine has to answer the heartbeat.
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

// handleInMain returns the reply of raft's main goroutine to a heartbeat, or
// nil after a timeout.
func (n *Network) handleInMain(id uint32, from string, group uint32, term uint64) []byte {
	e := n.endpoint(group)
	if e == nil || !e.acquire() {
		return appendHeartbeatReply(nil, id, heartbeatNoGroup, raft.AppendEntriesResponse{})
	}
	defer e.users.Done()
	a, ok := e.sendToMain(from, heartbeatRequest(from, term))
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

// acquire adds a user to the endpoint; the caller calls users.Done. It returns
// false if the endpoint is closed.
func (e *endpoint) acquire() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx.Err() != nil {
		return false
	}
	e.users.Add(1)
	return true
}

// countHeartbeatConns adds change to the number of connections on which a node
// sends heartbeats.
func (n *Network) countHeartbeatConns(node string, change int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.heartbeatConns[node] += change; n.heartbeatConns[node] == 0 {
		delete(n.heartbeatConns, node)
		n.starved.forgetPeer(node)
	}
}
