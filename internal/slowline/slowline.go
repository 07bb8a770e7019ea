// Package slowline is for tests: a relay that carries a TCP connection as a slow
// line does.
package slowline

import (
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// New returns the address of a relay to a NATS server's URL. It lets rate bytes
// a second through to the client, and ends with the test.
func New(tb testing.TB, url string, rate int) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	var lines sync.WaitGroup
	closed := make(chan struct{})
	lines.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", strings.TrimPrefix(url, "nats://"))
			if err != nil {
				_ = near.Close()
				continue
			}
			_ = far.(*net.TCPConn).SetReadBuffer(64 << 10)
			_ = near.(*net.TCPConn).SetWriteBuffer(64 << 10)
			lines.Go(func() { carry(far, near, 0, closed) })
			lines.Go(func() { carry(near, far, rate, closed) })
		}
	})
	tb.Cleanup(func() {
		close(closed)
		_ = l.Close()
		lines.Wait()
	})
	return "nats://" + l.Addr().String()
}

// carry copies until one end is closed, at no more than rate bytes a second unless
// that is 0.
func carry(to, from net.Conn, rate int, closed <-chan struct{}) {
	defer func() { _, _ = to.Close(), from.Close() }()
	buffer := make([]byte, 16<<10)
	for {
		k, err := from.Read(buffer)
		if _, werr := to.Write(buffer[:k]); err != nil || werr != nil {
			return
		}
		if rate == 0 {
			continue
		}
		select {
		case <-time.After(time.Duration(k) * time.Second / time.Duration(rate)):
		case <-closed:
			return
		}
	}
}
