package testkit

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
)

// SlowHTTPClients checks that an HTTP server waits for no client for ever: not
// for the rest of a request, nor for another request, nor until an answer is
// taken. Time is simulated; a server without one of its time-outs hangs, which
// fails the test.
func SlowHTTPClients(t *testing.T, newServer func(http.Handler) *http.Server) {
	const request = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
	long := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for part := make([]byte, 64<<10); ; {
			if _, err := w.Write(part); err != nil {
				return
			}
		}
	})
	short := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "alive") })
	cases := map[string]struct {
		handler http.Handler
		sends   string
		takes   bool // the answer to its request
	}{
		"nothing is sent":        {short, "", false},
		"half a request is sent": {short, request[:20], false},
		"no second request":      {short, request, true},
		"the answer is not read": {long, request, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server, l := newServer(c.handler), &pipeListener{accepted: make(chan net.Conn, 1), closed: make(chan struct{})}
				var serving sync.WaitGroup
				serving.Go(func() { _ = server.Serve(l) })
				client, conn := net.Pipe()
				ended := make(chan struct{})
				l.accepted <- &endingConn{Conn: conn, ended: ended}
				if c.sends != "" {
					if _, err := io.WriteString(client, c.sends); err != nil {
						t.Error(err)
					}
				}
				if c.takes {
					answer, err := http.ReadResponse(bufio.NewReader(client), nil)
					if err != nil {
						t.Fatal(err)
					}
					if err := answer.Body.Close(); err != nil || answer.StatusCode != http.StatusOK {
						t.Errorf("status %d, %v", answer.StatusCode, err)
					}
				}
				<-ended // only time passes
				_, _ = client.Close(), server.Close()
				serving.Wait()
			})
		})
	}
}

// pipeListener is a listener whose connections come from a channel.
type pipeListener struct {
	accepted chan net.Conn
	closed   chan struct{}
	closing  sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accepted:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

func (l *pipeListener) Close() error {
	l.closing.Do(func() { close(l.closed) })
	return nil
}

// endingConn closes a channel when it is closed.
type endingConn struct {
	net.Conn
	ended   chan struct{}
	closing sync.Once
}

func (c *endingConn) Close() error {
	c.closing.Do(func() { close(c.ended) })
	return c.Conn.Close()
}
