package raftstore

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/cantuslog/cantus/raftstore/peernet"
)

// endpoint is a group's end of its node's network. It owns the group's
// connections: those of raft, inbound and outbound, and those of fetches that
// the group serves. Raft's goroutines use the former, the goroutines of
// peernet's handlers deliver them or serve the latter.
type endpoint struct {
	network          *Network
	id               uint32
	group            atomic.Pointer[Group]          // nil until the group is open
	accepted         chan net.Conn                  // from deliver to raft's Accept
	heartbeatHandler atomic.Pointer[func(raft.RPC)] // raft's handler, set by raft
	halt             *halt
	// bypass decides which heartbeats may go to heartbeatHandler.
	bypass heartbeatBypass

	ctx        context.Context // done after close; parent of dialCtx
	cancel     context.CancelFunc
	dialCtx    context.Context // done after stopDialing
	cancelDial context.CancelFunc
	// users counts the open inbound connections and the heartbeats that are
	// being handled. close waits for them.
	users sync.WaitGroup

	// mu guards the fields below. No connection is added to outbound after
	// dialCtx is done, nor to inbound after ctx is.
	mu       sync.Mutex
	outbound map[*peernet.Conn]string // the node at the other end
	inbound  map[*peernet.Conn]struct{}
}

// attach creates the endpoint of a group that is being opened.
func (n *Network) attach(id uint32, h *halt) (*endpoint, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ctx.Err() != nil {
		return nil, ErrClosed
	}
	if n.groups[id] != nil {
		return nil, fmt.Errorf("group %d is already open on this network", id)
	}
	e := &endpoint{
		network: n, id: id, halt: h, accepted: make(chan net.Conn),
		outbound: map[*peernet.Conn]string{}, inbound: map[*peernet.Conn]struct{}{},
	}
	e.ctx, e.cancel = context.WithCancel(n.ctx)
	e.dialCtx, e.cancelDial = context.WithCancel(e.ctx)
	n.groups[id] = e
	return e, nil
}

// deliver passes an inbound connection to raft, which closes it. It blocks
// until raft accepts it or the endpoint is closed.
func (e *endpoint) deliver(c *peernet.Conn) {
	if !e.addInbound(c) {
		return
	}
	select {
	case e.accepted <- c:
	case <-e.ctx.Done():
		_ = c.Close()
	}
}

// addInbound adds a connection to inbound and users, until the connection is
// closed. If the endpoint is closed, addInbound closes the connection and
// returns false.
func (e *endpoint) addInbound(c *peernet.Conn) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx.Err() != nil {
		_ = c.Close()
		return false
	}
	e.users.Add(1)
	e.inbound[c] = struct{}{}
	c.OnClose(func() {
		e.mu.Lock()
		delete(e.inbound, c)
		e.mu.Unlock()
		e.users.Done()
	})
	return true
}

// dial connects to the group's replica on a node.
func (e *endpoint) dial(node string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(e.dialCtx, timeout)
	defer cancel()
	c, err := e.network.dial(ctx, node, peernet.Raft, e.id)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.dialCtx.Err() != nil {
		_ = c.Close()
		return nil, ErrClosed
	}
	e.outbound[c] = node
	c.OnClose(func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.outbound, c)
	})
	return c, nil
}

// abortTo breaks the connections to a node that does not reply to heartbeats:
// requests on them would wait for their timeout.
func (e *endpoint) abortTo(node string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for c, to := range e.outbound {
		if to == node {
			c.Abort()
		}
	}
}

// stopDialing breaks all dialed connections, and prevents new ones.
func (e *endpoint) stopDialing() {
	e.cancelDial()
	e.mu.Lock()
	defer e.mu.Unlock()
	for c := range e.outbound {
		c.Abort()
	}
}

// abort breaks all connections, and prevents dialing.
func (e *endpoint) abort() {
	e.stopDialing()
	e.mu.Lock()
	defer e.mu.Unlock()
	for c := range e.inbound {
		c.Abort()
	}
}

// close removes the endpoint from the network, breaks its connections and waits
// for users.
func (e *endpoint) close() {
	n := e.network
	n.mu.Lock()
	if n.groups[e.id] == e {
		delete(n.groups, e.id)
	}
	n.mu.Unlock()
	e.cancel()
	e.abort()
	e.users.Wait()
}

// streamLayer adapts an endpoint to raft.StreamLayer. A group has two of raft's
// transports: both dial, but only one accepts the peers' connections.
type streamLayer struct {
	*endpoint
	listens bool
}

var _ raft.StreamLayer = streamLayer{}

func (s streamLayer) Accept() (net.Conn, error) {
	var accepted chan net.Conn
	if s.listens {
		accepted = s.accepted
	}
	select {
	case c := <-accepted:
		return c, nil
	case <-s.ctx.Done():
		return nil, net.ErrClosed
	}
}

func (s streamLayer) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return s.dial(string(to), timeout)
}

// Close unblocks Accept of both transports, if this is the one that listens.
func (s streamLayer) Close() error {
	if s.listens {
		s.cancel()
	}
	return nil
}

func (s streamLayer) Addr() net.Addr { return nodeAddr(s.network.peers.Node()) }

// nodeAddr is a node's name as a network address.
type nodeAddr string

func (nodeAddr) Network() string  { return "cantus" }
func (a nodeAddr) String() string { return string(a) }
