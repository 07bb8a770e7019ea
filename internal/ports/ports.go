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
//
// It is divided into blocks. A process takes a block by listening on its first
// port until the process ends, so that the tests of two packages never get the
// same port: a node that has stopped, or has not started yet, does not hold its
// own.
const lowest, highest, block = 10_000, 30_000, 200

var (
	mu    sync.Mutex
	taken []net.Listener // the first ports of this process's blocks
	next  = block        // in the newest block
)

// Free returns a host:port on the loopback interface that is free at the
// moment. It returns each port only once in a process, and never one that
// another process gets from it.
func Free(tb testing.TB) string {
	tb.Helper()
	mu.Lock()
	defer mu.Unlock()
	for {
		if next == block {
			takeBlock(tb)
		}
		first := taken[len(taken)-1].Addr().(*net.TCPAddr).Port
		address := address(first + next)
		next++
		l, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			tb.Fatal(err)
		}
		return address
	}
}

// takeBlock takes a block that no process has.
func takeBlock(tb testing.TB) {
	tb.Helper()
	for _, i := range rand.Perm((highest - lowest) / block) {
		if l, err := net.Listen("tcp", address(lowest+i*block)); err == nil {
			taken, next = append(taken, l), 1
			return
		}
	}
	tb.Fatalf("every block of ports between %d and %d is taken", lowest, highest)
}

func address(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
