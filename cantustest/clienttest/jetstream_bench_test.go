package client_test

import (
	"encoding/binary"
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

// newStream returns a new stream.
func newStream(b *testing.B) jetstream.JetStream {
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
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(8192))
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

func BenchmarkJetStreamAppendAsync(b *testing.B) {
	js := newStream(b)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		publish(b, js, make([]byte, 256))
	}
	<-js.PublishAsyncComplete()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "appends/s")
}

func BenchmarkJetStreamFollow(b *testing.B) {
	js := newStream(b)
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
	js := newStream(b)
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
