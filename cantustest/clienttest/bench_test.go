package client_test

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/subjects"
)

// BenchmarkAppendAsync appends 256-byte payloads with one write lock each, from
// one goroutine per partition.
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
	req := &client.Request{Partition: partition, Payload: make([]byte, 256), WriteLocks: []string{""}}
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
		req.WriteLocks[0] = fmt.Sprintf("account.%d", i)
		f, err := c.AppendAsync(ctx, req)
		if err != nil {
			b.Error(err)
			break
		}
		futures <- f
	}
	close(futures)
	wg.Wait()
}

// BenchmarkAppend measures one appender that waits for each receipt.
func BenchmarkAppend(b *testing.B) {
	_, c := newLog(b)
	req := &client.Request{Payload: make([]byte, 256)}
	for b.Loop() {
		if _, err := c.Append(context.Background(), req); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFollow measures a follower that starts 100,000 transactions of 256
// bytes behind.
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

// BenchmarkLatency measures the time from an append, its sync and commit
// included, to the handler of a follower that has caught up. Appends come at
// -latency.rate.
func BenchmarkLatency(b *testing.B) {
	n := openNode(b, broker.Options{Partitions: 1})
	appender, c := newClient(b, connect(b, n), client.Options{}), newClient(b, connect(b, n), client.Options{})
	handled := make(chan time.Duration, b.N)
	f, err := c.NewFollower(map[int]uint64{0: 0}, func(_ context.Context, tx *client.Transaction) error {
		handled <- time.Since(time.Unix(0, int64(binary.BigEndian.Uint64(tx.Payload))))
		return nil
	}, client.FollowOptions{})
	if err != nil {
		b.Fatal(err)
	}
	run(b, f)
	pace(b, func(payload []byte) {
		binary.BigEndian.PutUint64(payload, uint64(time.Now().UnixNano()))
		if _, err := appender.AppendAsync(context.Background(), &client.Request{Payload: payload}); err != nil {
			b.Error(err)
		}
	})
	reportLatency(b, handled)
}

// latencyRate is the rate of appends while latency is measured: about a tenth
// of what the machine can do.
var latencyRate = flag.Int("latency.rate", 10_000, "appends a second while latency is measured")

// pace calls send b.N times, evenly spaced.
func pace(b *testing.B, send func(payload []byte)) {
	payload := make([]byte, 256)
	began := time.Now()
	for i := range b.N {
		due := began.Add(time.Duration(i) * time.Second / time.Duration(*latencyRate))
		if d := time.Until(due); d > 0 {
			time.Sleep(d)
		}
		send(payload)
	}
}

func reportLatency(b *testing.B, handled <-chan time.Duration) {
	all := make([]time.Duration, b.N)
	for i := range all {
		all[i] = <-handled
	}
	slices.Sort(all)
	b.ReportMetric(float64(all[b.N/2].Microseconds()), "median-us")
	b.ReportMetric(float64(all[b.N*99/100].Microseconds()), "p99-us")
}

// BenchmarkSession appends transactions with one write lock in a session, and
// as many with locks of their own outside of one, in turns.
func BenchmarkSession(b *testing.B) {
	for _, inFlight := range []int{1, 16, 256, 4096} {
		b.Run(fmt.Sprintf("in-flight=%d", inFlight), func(b *testing.B) {
			n := openNode(b, broker.Options{Partitions: 1})
			c := newClient(b, connect(b, n), client.Options{MaxInFlight: inFlight})
			s := c.NewSession(0)
			hot := &client.Request{Payload: make([]byte, 256), WriteLocks: []string{"counter"}}
			own := &client.Request{Payload: make([]byte, 256), WriteLocks: []string{""}}
			var inSession, plain time.Duration
			const turns = 20
			each := max(1, b.N/turns)
			for turn := range turns {
				inSession += timeAppends(b, each, func(int) (*client.Future, error) { return s.Append(b.Context(), hot) })
				plain += timeAppends(b, each, func(i int) (*client.Future, error) {
					own.WriteLocks[0] = fmt.Sprintf("account.%d", turn*each+i)
					return c.AppendAsync(b.Context(), own)
				})
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(turns*float64(each)/inSession.Seconds(), "session/s")
			b.ReportMetric(turns*float64(each)/plain.Seconds(), "plain/s")
		})
	}
}

// servers, if not "", are measured by BenchmarkSessions instead of a node in
// this process.
var servers = flag.String("sessions.servers", "", "URLs of a cluster's servers, with commas, for BenchmarkSessions")

// BenchmarkSessions appends from 16 writers, each with a session and one name
// that it writes each time, and as many with locks of their own outside of
// sessions, in turns. All are on partition 0.
func BenchmarkSessions(b *testing.B) {
	const writers, turns = 16, 10
	for _, inFlight := range []int{16, 256} {
		b.Run(fmt.Sprintf("in-flight=%d", inFlight), func(b *testing.B) {
			url := *servers
			if url == "" {
				url = openNode(b, broker.Options{Partitions: 1}).ClientURL()
			}
			each, run := max(1, b.N/writers/turns), time.Now().UnixNano() // a cluster has the names of earlier runs
			var inSession, plain [writers]func(turn int) time.Duration
			for w := range writers {
				nc, err := nats.Connect(url)
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(nc.Close)
				c := newClient(b, nc, client.Options{MaxInFlight: inFlight})
				s := c.NewSession(0)
				hot := &client.Request{Payload: make([]byte, 256), WriteLocks: []string{fmt.Sprintf("counter.%d.%d", run, w)}}
				own := &client.Request{Payload: make([]byte, 256), WriteLocks: []string{""}}
				inSession[w] = func(int) time.Duration {
					return timeAppends(b, each, func(int) (*client.Future, error) { return s.Append(b.Context(), hot) })
				}
				plain[w] = func(turn int) time.Duration {
					return timeAppends(b, each, func(i int) (*client.Future, error) {
						own.WriteLocks[0] = fmt.Sprintf("account.%d.%d.%d", run, w, turn*each+i)
						return c.AppendAsync(b.Context(), own)
					})
				}
			}
			all := func(turn int, one [writers]func(int) time.Duration) time.Duration {
				begun := time.Now()
				var wg sync.WaitGroup
				for w := range writers {
					wg.Go(func() { one[w](turn) })
				}
				wg.Wait()
				return time.Since(begun)
			}
			var sessions, others time.Duration
			for turn := range turns {
				sessions += all(turn, inSession)
				others += all(turn, plain)
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(turns*writers*each)/sessions.Seconds(), "sessions/s")
			b.ReportMetric(float64(turns*writers*each)/others.Seconds(), "plain/s")
		})
	}
}

// timeAppends returns how long n appends take, receipts included.
func timeAppends(b *testing.B, n int, appendOne func(i int) (*client.Future, error)) time.Duration {
	begun := time.Now()
	futures := make(chan *client.Future, 1<<16)
	var wg sync.WaitGroup
	wg.Go(func() {
		for f := range futures {
			if _, err := f.Wait(b.Context()); err != nil {
				b.Error(err)
			}
		}
	})
	for i := range n {
		f, err := appendOne(i)
		if err != nil {
			b.Error(err)
			break
		}
		futures <- f
	}
	close(futures)
	wg.Wait()
	return time.Since(begun)
}

var queried = flag.Int("queried", 300_000, "transactions in the log that is queried")

// BenchmarkQuery reads the 17 transactions that recorded one name, among many
// that recorded others. The more are in flight while they are appended, the
// larger are the batches in the log.
func BenchmarkQuery(b *testing.B) {
	for _, inFlight := range []int{64, 2048, 1 << 16} {
		b.Run(fmt.Sprintf("appended=%d", inFlight), func(b *testing.B) {
			n := openNode(b, broker.Options{Partitions: 1})
			c := newClient(b, connect(b, n), client.Options{})
			const wanted = 17
			appendWithNames(b, c, inFlight, *queried, func(i int) string {
				if i%(*queried/wanted) == 0 && i/(*queried/wanted) < wanted {
					return "room.12"
				}
				return fmt.Sprintf("room.12.%d", i)
			})
			q := client.Query{Items: []subjects.QueryItem{{Locks: []string{"room.12"}}}}
			var took []time.Duration
			for b.Loop() {
				began := time.Now()
				found, err := c.Query(context.Background(), 0, q)
				if err != nil || len(found.Transactions) != wanted {
					b.Fatal(len(found.Transactions), err)
				}
				took = append(took, time.Since(began))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "median-us")
		})
	}
}

// appendWithNames appends transactions with an append lock each, of which some
// are in flight at a time.
func appendWithNames(b *testing.B, c *client.Client, inFlight, n int, name func(i int) string) {
	b.Helper()
	req := &client.Request{Payload: make([]byte, 256), AppendLocks: []string{""}}
	futures := make(chan *client.Future, inFlight)
	var wg sync.WaitGroup
	wg.Go(func() {
		for f := range futures {
			if _, err := f.Wait(context.Background()); err != nil {
				b.Error(err)
			}
		}
	})
	for i := range n {
		req.AppendLocks[0] = name(i)
		f, err := c.AppendAsync(context.Background(), req)
		if err != nil {
			b.Error(err)
			break
		}
		futures <- f
	}
	close(futures)
	wg.Wait()
}
