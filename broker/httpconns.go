package broker

import (
	"context"
	"net"
	"net/http"
	"sync"
)

// httpListener keeps at most a number of connections open. For one more it
// closes the oldest on which no request is being answered, so that clients that
// connect and send nothing, or half a request, do not keep probes out. If every
// connection has a request, it closes the new one.
type httpListener struct {
	net.Listener
	most int

	mu   sync.Mutex
	open []*httpConn // oldest first: accepted, or answered last
}

// Accept implements net.Listener.
func (l *httpListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if made := l.add(c); made != nil {
			return made, nil
		}
		_ = c.Close()
	}
}

// add takes a connection in, and returns nil if there is no room for it.
func (l *httpListener) add(c net.Conn) *httpConn {
	l.mu.Lock()
	var idle *httpConn
	if len(l.open) >= l.most {
		for i, old := range l.open {
			if !old.answering {
				idle, l.open = old, append(l.open[:i:i], l.open[i+1:]...)
				break
			}
		}
	}
	var made *httpConn
	if len(l.open) < l.most {
		made = &httpConn{Conn: c, listener: l}
		l.open = append(l.open, made)
	}
	l.mu.Unlock()
	if idle != nil {
		_ = idle.Conn.Close()
	}
	return made
}

// remove forgets a connection.
func (l *httpListener) remove(c *httpConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, o := range l.open {
		if o == c {
			l.open = append(l.open[:i:i], l.open[i+1:]...)
			return
		}
	}
}

// mark notes whether a request is being answered on a connection.
func (l *httpListener) mark(c *httpConn, answering bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.answering = answering
	for i, o := range l.open {
		if o == c { // it is the newest now
			l.open = append(append(l.open[:i:i], l.open[i+1:]...), c)
			return
		}
	}
}

// count returns how many connections are open.
func (l *httpListener) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.open)
}

type httpConnKey struct{}

// withConn lets handler mark the connection of a request; see
// http.Server.ConnContext.
func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, httpConnKey{}, c)
}

// marking returns a handler that marks connections while h answers on them.
func marking(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(httpConnKey{}).(*httpConn); ok {
			c.listener.mark(c, true)
			defer c.listener.mark(c, false)
		}
		h.ServeHTTP(w, r)
	})
}

// httpConn is a connection of an httpListener.
type httpConn struct {
	net.Conn
	listener  *httpListener
	answering bool // listener.mu guards it
}

// Close closes the connection and makes room for another.
func (c *httpConn) Close() error {
	c.listener.remove(c)
	return c.Conn.Close()
}
