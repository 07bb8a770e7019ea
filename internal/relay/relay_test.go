package relay_test

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/relay"
	"github.com/cantuslog/cantus/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// echo returns the address of a server that sends back what it receives.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	return l.Addr().String()
}

func dial(t *testing.T, r *relay.Relay, dialer string) net.Conn {
	t.Helper()
	address, err := r.Entry(dialer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(testkit.Patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

// exchange sends text and reads it back.
func exchange(c net.Conn, text string) error {
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, len(text)))
	return err
}

func TestOneDialerIsRefusedAndTheOtherIsNot(t *testing.T) {
	r := relay.New(t, echo(t))
	a, b := dial(t, r, "a"), dial(t, r, "b")
	if err := errors.Join(exchange(a, "x"), exchange(b, "x")); err != nil {
		t.Fatal(err)
	}
	r.Refuse(func(dialer string) bool { return dialer == "a" })
	if exchange(a, "x") == nil || exchange(dial(t, r, "a"), "x") == nil {
		t.Error("a refused dialer is connected")
	}
	if err := exchange(b, "x"); err != nil {
		t.Errorf("the other dialer: %v", err)
	}
	r.Refuse(func(string) bool { return false })
	if err := exchange(dial(t, r, "a"), "x"); err != nil {
		t.Errorf("a dialer that is no longer refused: %v", err)
	}
}

func TestStallHoldsReplies(t *testing.T) {
	r := relay.New(t, echo(t))
	c := dial(t, r, "a")
	r.Stall(relay.Replies)
	result := make(chan error, 1)
	go func() { result <- exchange(c, "x") }()
	testkit.Until(t, "the reply is held", func() bool { return r.Held() == 1 })
	if len(result) > 0 {
		t.Error("a reply arrived during the stall")
	}
	r.Resume(relay.Replies)
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func TestLimitEndsConnections(t *testing.T) {
	r := relay.New(t, echo(t))
	c := dial(t, r, "a")
	r.Limit(3)
	if err := exchange(c, "xyz"); err != nil {
		t.Fatal(err)
	}
	if exchange(c, "x") == nil {
		t.Error("more bytes than the limit were forwarded")
	}
	r.Limit(0)
	if err := exchange(dial(t, r, "a"), "xyzxyz"); err != nil {
		t.Errorf("without a limit: %v", err)
	}
}

func TestClosedRelayHasNoNewEntries(t *testing.T) {
	r := relay.New(t, echo(t))
	c := dial(t, r, "a")
	r.Close()
	if exchange(c, "x") == nil {
		t.Error("the connection is still open")
	}
	if _, err := r.Entry("b"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("another entry: %v", err)
	}
}

func TestSlow(t *testing.T) {
	url := relay.Slow(t, "nats://"+echo(t), 1<<20)
	c, err := net.Dial("tcp", url[len("nats://"):])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := exchange(c, string(make([]byte, 100_000))); err != nil {
		t.Error(err)
	}
}

// TestHold holds one of two dialers of the same address, which say in their
// first byte who they are. What the held one sends arrives later, and is whole.
func TestHold(t *testing.T) {
	r := relay.Delay(t, echo(t), time.Millisecond, func(near, _ net.Conn) (string, []byte, error) {
		read := make([]byte, 1)
		_, err := io.ReadFull(near, read)
		return string(read), read, err
	})
	a, b := dial(t, r, ""), dial(t, r, "")
	if err := errors.Join(exchange(a, "a"), exchange(b, "b")); err != nil {
		t.Fatal(err)
	}
	r.Hold(func(dialer string, _ relay.Direction) bool { return dialer == "a" })
	text := strings.Repeat("what a sends while it is held ", 10_000)
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(a, text)
		sent <- err
	}()
	for range 10 {
		if err := exchange(b, "x"); err != nil {
			t.Fatalf("the other dialer: %v", err)
		}
	}
	if err := a.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := a.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("a held dialer reads %d bytes, %v", n, err)
	}
	r.Hold(func(string, relay.Direction) bool { return false })
	if err := a.SetReadDeadline(time.Now().Add(testkit.Patience)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(a, got); err != nil || string(got) != text {
		t.Errorf("after the hold: %v, the same bytes: %t", err, string(got) == text)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}
