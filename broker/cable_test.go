package broker_test

import (
	"io"
	"net"
	"sync"
	"testing"

	"github.com/cantuslog/cantus/broker"
)

// cable is a TCP connection's way that can be cut: what goes through it ends,
// and nothing more gets through until it is mended.
type cable struct {
	listener net.Listener
	to       string

	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]bool
}

func newCable(t *testing.T) *cable {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cable{listener: l, conns: map[net.Conn]bool{}}
	done := make(chan struct{})
	go func() { defer close(done); c.run() }()
	t.Cleanup(func() {
		_ = l.Close()
		c.set(true)
		<-done
	})
	return c
}

func (c *cable) run() {
	var carrying sync.WaitGroup
	defer carrying.Wait()
	for {
		near, err := c.listener.Accept()
		if err != nil {
			return
		}
		c.mu.Lock()
		to := c.to
		c.mu.Unlock()
		far, err := net.Dial("tcp", to)
		if err != nil {
			_ = near.Close()
			continue
		}
		c.mu.Lock()
		if c.cut {
			_, _ = near.Close(), far.Close()
		} else {
			c.conns[near], c.conns[far] = true, true
		}
		c.mu.Unlock()
		for _, pair := range [][2]net.Conn{{near, far}, {far, near}} {
			carrying.Go(func() {
				_, _ = io.Copy(pair[0], pair[1])
				_, _ = pair[0].Close(), pair[1].Close()
			})
		}
	}
}

func (c *cable) set(cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = cut
	if cut {
		for conn := range c.conns {
			_ = conn.Close()
		}
		clear(c.conns)
	}
}

// cableTo puts cables between a node and each other one, both ways, for
// replication only, and gives what cuts and mends them. It is called before
// the nodes are started.
func (c *nodes) cableTo(name string) (cut func(bool)) {
	var all []*cable
	ways := map[[2]string]*cable{}
	for _, from := range c.names {
		for _, to := range c.names {
			if from != to && (from == name || to == name) {
				ways[[2]string{from, to}] = newCable(c.t)
				all = append(all, ways[[2]string{from, to}])
			}
		}
	}
	c.change = func(from string, o *broker.Options) {
		broker.Reroute(o, func(to, address string) string {
			way := ways[[2]string{from, to}]
			if way == nil {
				return address
			}
			way.mu.Lock()
			defer way.mu.Unlock()
			way.to = address
			return way.listener.Addr().String()
		})
	}
	return func(is bool) {
		for _, way := range all {
			way.set(is)
		}
	}
}
