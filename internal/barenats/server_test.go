package barenats_test

import (
	"errors"
	"net"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/cantuslog/cantus/internal/barenats"
)

func TestBareServerHasJetStream(t *testing.T) {
	server, err := barenats.Run(t.Context(), barenats.Options{JetStream: true, StoreDir: t.TempDir(), SyncAlways: true})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	closed := make(chan struct{})
	nc, err := nats.Connect(server.ClientURL(), nats.NoReconnect(), nats.ClosedHandler(func(*nats.Conn) { close(closed) }))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "s", Subjects: []string{"s"}}); err != nil {
		t.Fatal(err)
	}
	if ack, err := js.Publish(t.Context(), "s", []byte("x")); err != nil || ack.Sequence != 1 {
		t.Fatalf("publish: %+v, %v", ack, err)
	}
	server.Close()
	server.Close()
	<-closed // Close ends the connection
}

func TestBareServerRefusesBadAddresses(t *testing.T) {
	for _, listen := range []string{"nowhere", "127.0.0.1:x", "127.0.0.1:70000"} {
		if server, err := barenats.Run(t.Context(), barenats.Options{Listen: listen}); err == nil {
			server.Close()
			t.Errorf("%q: no error", listen)
		}
	}
}

func TestBareServerWithATakenPort(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	server, err := barenats.Run(t.Context(), barenats.Options{Listen: taken.Addr().String()})
	if err == nil {
		server.Close()
	}
	if !errors.Is(err, barenats.ErrNotReady) {
		t.Errorf("got %v, want ErrNotReady", err)
	}
}
