package broker

import (
	"net"
	"sync"
)

// limitedListener has at most cap(room) connections open at a time. Others wait
// in the kernel's queue.
type limitedListener struct {
	net.Listener
	room   chan struct{} // a token for each open connection
	closed chan struct{}
	once   sync.Once
}

// Accept waits for room first.
func (l *limitedListener) Accept() (net.Conn, error) {
	select {
	case l.room <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.room
		return nil, err
	}
	return &limitedConn{Conn: c, release: sync.OnceFunc(func() { <-l.room })}, nil
}

// Close ends Accept, also while that waits for room.
func (l *limitedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// limitedConn makes room when it is closed.
type limitedConn struct {
	net.Conn
	release func()
}

func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
