//go:build unix

package raftstore_test

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/cantuslog/cantus/raftstore"
)

// BenchmarkReplicate proposes entries, three in flight, to a group of three
// replicas in this process.
func BenchmarkReplicate(b *testing.B) {
	for _, size := range []int{256, 64 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			leader := benchCluster(b)
			data := make([]byte, size)
			b.SetBytes(int64(size))
			b.ResetTimer()
			before := cpu(b)
			var inflight []raftstore.Proposal
			for i := range b.N + min(b.N, 3) {
				if len(inflight) == 3 || i >= b.N {
					if _, err := inflight[0].Wait(); err != nil {
						b.Fatal(err)
					}
					inflight = inflight[1:]
				}
				if i < b.N {
					inflight = append(inflight, leader.group.Propose(data))
				}
			}
			b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
		})
	}
}

// cpu returns the processor time that this process has used.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// direct returns three nodes without proxies between them.
func direct(b *testing.B) *cluster {
	c := newCluster(b, "n1", "n2", "n3")
	for name, n := range c.nodes {
		c.addresses[name] = n.network.Addr().String()
	}
	return c
}

// benchCluster opens a group of three replicas and returns its leader.
func benchCluster(b *testing.B) *node {
	c := direct(b)
	c.heartbeat = 2 * time.Second // the leader must not step down on a busy machine
	for _, n := range c.nodes {
		n.open(c.names...)
		n.fsm.mu.Lock()
		n.fsm.forget = true
		n.fsm.mu.Unlock()
	}
	return c.leader()
}

// BenchmarkIdle measures the processor time of 16 idle groups of three replicas
// in this process. An iteration lasts a tenth of a second.
func BenchmarkIdle(b *testing.B) {
	c := direct(b)
	for id := range uint32(16) {
		for _, name := range c.names {
			n := c.nodes[name]
			opts := n.options(c.names...)
			opts.ID, opts.Log, opts.HeartbeatTimeout = id, n.store.Log(id), 0
			g, err := raftstore.Open(opts)
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = g.Close() })
			until(b, "a leader", func() bool { return name != "n3" || g.Status().Leader != "" })
		}
	}
	before := cpu(b)
	began := time.Now()
	for range b.N {
		<-time.After(100 * time.Millisecond)
	}
	b.ReportMetric(100*float64(cpu(b)-before)/float64(time.Since(began)), "cpu-%")
}
