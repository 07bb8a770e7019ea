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

// endpoint is a group's end on its node's network: raft's connections, and who
// is being served a fetch.
type endpoint struct {
	network          *Network
	id               uint32
	group            atomic.Pointer[Group] // nil until it is open
	accepted         chan net.Conn
	heartbeatHandler atomic.Pointer[func(raft.RPC)] // raft's way to hear heartbeats
	halt             *halt
	// following says which heartbeats may take that way.
	bypass heartbeatBypass

	dialing  context.Context // ends with interrupt: no more is dialed
	stopDial context.CancelFunc
	open     context.Context // ends with close
	stop     context.CancelFunc
	// users is who uses inbound links, or passes a heartbeat on.
	users sync.WaitGroup

	// mu guards what follows; no more is added to it once its context has
	// ended.
	mu       sync.Mutex
	outbound map[*peernet.Conn]string // and the node it leads to
	inbound  map[*peernet.Conn]struct{}
}

// attach makes the end of a group that is being opened.
func (n *Network) attach(id uint32) (*endpoint, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ctx.Err() != nil {
		return nil, ErrClosed
	}
	if n.groups[id] != nil {
		return nil, fmt.Errorf("group %d is open on this network already", id)
	}
	e := &endpoint{
		network: n, id: id, accepted: make(chan net.Conn),
		outbound: map[*peernet.Conn]string{}, inbound: map[*peernet.Conn]struct{}{},
	}
	e.open, e.stop = context.WithCancel(n.ctx)
	e.dialing, e.stopDial = context.WithCancel(e.open)
	n.groups[id] = e
	return e, nil
}

// deliver gives a connection from a peer to raft, which closes it.
func (e *endpoint) deliver(l *peernet.Conn) {
	if !e.addInbound(l) {
		return
	}
	select {
	case e.accepted <- l:
	case <-e.open.Done():
		_ = l.Close()
	}
}

// enter counts who uses an inbound link until it closes it. False says that
// the end was closed, and the link with it.
func (e *endpoint) addInbound(l *peernet.Conn) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.open.Err() != nil {
		_ = l.Close()
		return false
	}
	e.users.Add(1)
	e.inbound[l] = struct{}{}
	l.OnClose(func() {
		e.mu.Lock()
		delete(e.inbound, l)
		e.mu.Unlock()
		e.users.Done()
	})
	return true
}

// dial connects to the group's replica on a node.
func (e *endpoint) dial(node string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(e.dialing, timeout)
	defer cancel()
	l, err := e.network.dial(ctx, node, peernet.Raft, e.id)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.dialing.Err() != nil {
		_ = l.Close()
		return nil, ErrClosed
	}
	e.outbound[l] = node
	l.OnClose(func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.outbound, l)
	})
	return l, nil
}

// drop breaks the connections that were made to a node: it doesn't answer, and
// what waits on them would wait for long.
func (e *endpoint) abortTo(node string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for l, to := range e.outbound {
		if to == node {
			l.Abort()
		}
	}
}

// interrupt breaks all connections that were made, and lets no more be made.
func (e *endpoint) stopDialing() {
	e.stopDial()
	e.mu.Lock()
	defer e.mu.Unlock()
	for l := range e.outbound {
		l.Abort()
	}
}

// abort breaks all connections.
func (e *endpoint) abort() {
	e.stopDialing()
	e.mu.Lock()
	defer e.mu.Unlock()
	for l := range e.inbound {
		l.Abort()
	}
}

// close takes the end off the network and waits for who uses it.
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

// stream is an end as raft's transport wants it: a listener of connections
// from peers, if it listens, and a dialer.
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

// Close stops Accept, also of the streams that don't listen.
func (s streamLayer) Close() error {
	if s.listens {
		s.stop()
	}
	return nil
}

func (s streamLayer) Addr() net.Addr { return nodeAddr(s.network.peers.Node()) }

// nodeAddr is a node's name as an address.
type nodeAddr string

func (nodeAddr) Network() string  { return "cantus" }
func (a nodeAddr) String() string { return string(a) }
