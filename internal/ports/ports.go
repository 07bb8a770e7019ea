// Package ports finds free ports for tests in which nodes restart on the same
// port.
package ports

import (
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"testing"
)

// The range is below that of ephemeral ports. Otherwise a client that redials a
// dead node could get the node's port as its own local port, and keep it.
const lowest, highest = 10_000, 30_000

// returned has the addresses that Free has returned.
var returned sync.Map

// Free returns a host:port on the loopback interface that is free at the
// moment. It returns each port only once in a process.
func Free(tb testing.TB) string {
	tb.Helper()
	for range 1000 {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(lowest+rand.IntN(highest-lowest)))
		if _, before := returned.LoadOrStore(address, true); before {
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
