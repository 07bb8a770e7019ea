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

// endpoint is a group's end of its node's network: the connections that raft
// uses, and those of fetches that are served.
type endpoint struct {
	network          *Network
	id               uint32
	group            atomic.Pointer[Group] // nil until it is open
	accepted         chan net.Conn
	heartbeatHandler atomic.Pointer[func(raft.RPC)] // raft's handler, set by raft
	halt             *halt
	// bypass decides which heartbeats may go to heartbeatHandler.
	bypass heartbeatBypass

	dialing  context.Context // ends with stopDialing
	stopDial context.CancelFunc
	open     context.Context // ends with close
	stop     context.CancelFunc
	// users counts the open inbound connections and the heartbeats that are
	// being handled. close waits for them.
	users sync.WaitGroup

	// mu guards what follows. Nothing is added to outbound once dialing has
	// ended, nor to inbound once open has.
	mu       sync.Mutex
	outbound map[*peernet.Conn]string // the node at the other end
	inbound  map[*peernet.Conn]struct{}
}

// attach returns the endpoint of a group that is being opened.
func (n *Network) attach(id uint32, h *halt) (*endpoint, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ctx.Err() != nil {
		return nil, ErrClosed
	}
	if n.groups[id] != nil {
		return nil, fmt.Errorf("group %d is open on this network already", id)
	}
	e := &endpoint{
		network: n, id: id, halt: h, accepted: make(chan net.Conn),
		outbound: map[*peernet.Conn]string{}, inbound: map[*peernet.Conn]struct{}{},
	}
	e.open, e.stop = context.WithCancel(n.ctx)
	e.dialing, e.stopDial = context.WithCancel(e.open)
	n.groups[id] = e
	return e, nil
}

// deliver hands a connection from a peer to raft, which closes it.
func (e *endpoint) deliver(c *peernet.Conn) {
	if !e.addInbound(c) {
		return
	}
	select {
	case e.accepted <- c:
	case <-e.open.Done():
		_ = c.Close()
	}
}

// addInbound adds a connection to inbound, and to users, until it is closed. If
// the endpoint is closed, it closes the connection and returns false.
func (e *endpoint) addInbound(c *peernet.Conn) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.open.Err() != nil {
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
	ctx, cancel := context.WithTimeout(e.dialing, timeout)
	defer cancel()
	c, err := e.network.dial(ctx, node, peernet.Raft, e.id)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.dialing.Err() != nil {
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

// abortTo breaks the connections that were dialed to a node: it does not
// answer, and requests on them would wait for long.
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
	e.stopDial()
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

// close takes the endpoint off the network, breaks its connections and waits
// for their users.
func (e *endpoint) close() {
	n := e.network
	n.mu.Lock()
	if n.groups[e.id] == e {
		delete(n.groups, e.id)
	}
	n.mu.Unlock()
	e.stop()
	e.abort()
	e.users.Wait()
}

// streamLayer is an endpoint in the form that raft's transport uses. Of the
// group's two transports only one listens for connections from peers; both
// dial.
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
	case <-s.open.Done():
		return nil, net.ErrClosed
	}
}

func (s streamLayer) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return s.dial(string(to), timeout)
}

// Close ends Accept of both transports, if this is the one that listens.
func (s streamLayer) Close() error {
	if s.listens {
		s.stop()
	}
	return nil
}

func (s streamLayer) Addr() net.Addr { return nodeAddr(s.network.peers.Node()) }

// nodeAddr is a node's name as a network address.
type nodeAddr string

func (nodeAddr) Network() string  { return "cantus" }
func (a nodeAddr) String() string { return string(a) }
