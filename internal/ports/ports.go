// Package ports finds ports for tests of nodes that come back on theirs.
package ports

import (
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"testing"
)

// Ports are looked for below what the kernel gives to outgoing connections:
// clients that redial a dead node would some day get its very port, and sit on
// it.
const lowest, highest = 10_000, 30_000

// given are those that Free has given away.
var given sync.Map

// Free returns a host:port on loopback that nobody listens on now, and that it
// gives only once in a process.
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
