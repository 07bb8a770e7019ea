package client_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/client"
)

// BenchmarkAppendAsync appends 256-byte payloads with one write lock each,
// from one goroutine a partition.
func BenchmarkAppendAsync(b *testing.B) {
	for _, partitions := range []int{1, 2} {
		b.Run(fmt.Sprintf("partitions=%d", partitions), func(b *testing.B) {
			n := openNode(b, broker.Options{Partitions: partitions})
			c := newClient(b, connect(b, n), client.Options{})
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for p := range partitions {
				wg.Go(func() { appendLoad(b, c, p, b.N/partitions) })
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "appends/s")
		})
	}
}

func appendLoad(b *testing.B, c *client.Client, partition, n int) {
	ctx := context.Background()
	tx := &client.Tx{Partition: partition, Payload: make([]byte, 256), WriteLocks: []string{""}}
	futures := make(chan *client.Future, 1<<16)
	var wg sync.WaitGroup
	wg.Go(func() {
		for f := range futures {
			if _, err := f.Wait(ctx); err != nil {
				b.Error(err)
			}
		}
	})
	for i := range n {
		tx.WriteLocks[0] = fmt.Sprintf("account.%d", i)
		f, err := c.AppendAsync(ctx, tx)
		if err != nil {
			b.Error(err)
			break
		}
		futures <- f
	}
	close(futures)
	wg.Wait()
}

// BenchmarkAppend is one appender that waits for each receipt.
func BenchmarkAppend(b *testing.B) {
	_, c := newLog(b)
	tx := &client.Tx{Payload: make([]byte, 256)}
	for b.Loop() {
		if _, err := c.Append(context.Background(), tx); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFollow catches up with 256-byte payloads.
func BenchmarkFollow(b *testing.B) {
	n := openNode(b, broker.Options{Partitions: 1})
	c := newClient(b, connect(b, n), client.Options{})
	const count = 100_000
	appendLoad(b, c, 0, count)
	b.ReportAllocs()
	b.ResetTimer()
	seen := 0
	for seen < b.N {
		for tx, err := range c.All(context.Background(), 0, 0, client.FollowOptions{}) {
			if err != nil {
				b.Fatal(err)
			}
			if seen++; tx.Txid == count || seen == b.N {
				break
			}
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "reads/s")
}
