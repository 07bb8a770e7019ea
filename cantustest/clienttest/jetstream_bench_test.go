package client_test

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// These benchmarks do what BenchmarkAppendAsync, BenchmarkFollow and
// BenchmarkLatency do, in JetStream: asynchronous publish and ordered consumer,
// a file stream with one replica and the server's default of syncing every two
// minutes, within the process as well.

// newStream returns a new stream, and its client.
func newStream(b *testing.B, inFlight int) jetstream.JetStream {
	s, err := server.NewServer(&server.Options{DontListen: true, JetStream: true, StoreDir: b.TempDir(), NoSigs: true})
	if err != nil {
		b.Fatal(err)
	}
	s.Start()
	b.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	if !s.ReadyForConnections(time.Minute) {
		b.Fatal("the server is not ready")
	}
	nc, err := nats.Connect("", nats.InProcessServer(s))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(nc.Close)
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(inFlight))
	if err != nil {
		b.Fatal(err)
	}
	if _, err := js.CreateStream(soon(b), jetstream.StreamConfig{Name: "log", Subjects: []string{"log"}}); err != nil {
		b.Fatal(err)
	}
	return js
}

func publish(b *testing.B, js jetstream.JetStream, payload []byte) {
	if _, err := js.PublishAsync("log", payload, jetstream.WithStallWait(time.Minute)); err != nil {
		b.Error(err)
	}
}

// BenchmarkJetStreamSession does what BenchmarkSession does, as far as it can
// be done: each publish expects the sequence number of the one before it, and
// does not wait for its answer.
func BenchmarkJetStreamSession(b *testing.B) {
	for _, inFlight := range []int{1, 16, 256, 4096} {
		b.Run(fmt.Sprintf("in-flight=%d", inFlight), func(b *testing.B) {
			js := newStream(b, inFlight)
			b.ResetTimer()
			payload := make([]byte, 256)
			var last jetstream.PubAckFuture
			for i := range b.N {
				f, err := js.PublishAsync("log", payload, jetstream.WithStallWait(time.Minute), jetstream.WithExpectLastSequence(uint64(i)))
				if err != nil {
					b.Fatal(err)
				}
				last = f
			}
			<-js.PublishAsyncComplete()
			select {
			case err := <-last.Err():
				b.Error(err)
			case a := <-last.Ok():
				if a.Sequence != uint64(b.N) {
					b.Errorf("the last of %d has the number %d", b.N, a.Sequence)
				}
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "session/s")
		})
	}
}

func BenchmarkJetStreamAppendAsync(b *testing.B) {
	js := newStream(b, 8192)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		publish(b, js, make([]byte, 256))
	}
	<-js.PublishAsyncComplete()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "appends/s")
}

func BenchmarkJetStreamFollow(b *testing.B) {
	js := newStream(b, 8192)
	const count = 100_000
	for range count {
		publish(b, js, make([]byte, 256))
	}
	<-js.PublishAsyncComplete()
	b.ReportAllocs()
	b.ResetTimer()
	for seen := 0; seen < b.N; {
		consumer, err := js.OrderedConsumer(soon(b), "log", jetstream.OrderedConsumerConfig{})
		if err != nil {
			b.Fatal(err)
		}
		done, n, want := make(chan struct{}), 0, min(count, b.N-seen)
		consuming, err := consumer.Consume(func(jetstream.Msg) {
			if n++; n == want {
				close(done)
			}
		})
		if err != nil {
			b.Fatal(err)
		}
		<-done
		consuming.Stop()
		<-consuming.Closed()
		seen += want
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "reads/s")
}

func BenchmarkJetStreamLatency(b *testing.B) {
	js := newStream(b, 8192)
	consumer, err := js.OrderedConsumer(soon(b), "log", jetstream.OrderedConsumerConfig{})
	if err != nil {
		b.Fatal(err)
	}
	handled := make(chan time.Duration, b.N)
	consuming, err := consumer.Consume(func(m jetstream.Msg) {
		handled <- time.Since(time.Unix(0, int64(binary.BigEndian.Uint64(m.Data()))))
	})
	if err != nil {
		b.Fatal(err)
	}
	pace(b, func(payload []byte) {
		binary.BigEndian.PutUint64(payload, uint64(time.Now().UnixNano()))
		publish(b, js, payload)
	})
	reportLatency(b, handled)
	consuming.Stop()
	<-consuming.Closed()
}
