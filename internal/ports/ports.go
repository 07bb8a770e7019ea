// Package ports finds ports for tests of nodes that restart on the same port.
package ports

import (
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"testing"
)

// Ports are chosen below the range of outgoing connections: a client that redials a
// dead node could otherwise get the node's own port, and keep it.
const lowest, highest = 10_000, 30_000

// given are the ports that Free has returned.
var given sync.Map

// Free returns a host:port on loopback that is free now. It returns each port only
// once in a process.
func Free(tb testing.TB) string {
	tb.Helper()
	for range 1000 {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(lowest+rand.IntN(highest-lowest)))
		if _, taken := given.LoadOrStore(address, true); taken {
			continue
		}
		l, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			tb.Fatal(err)
		}
		return address
	}
	tb.Fatalf("no free port between %d and %d", lowest, highest)
	return ""
}
