package natslink

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

// scripted is a NATS server whose part the test plays.
type scripted struct{ conns chan net.Conn }

func newScripted() *scripted { return &scripted{make(chan net.Conn, 8)} }

func (s *scripted) dial() (net.Conn, error) {
	client, server := net.Pipe()
	s.conns <- server
	return client, nil
}

// serverEnd is the server's end of one connection.
type serverEnd struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
}

// next returns the next connection, before its handshake.
func (s *scripted) next(t *testing.T) *serverEnd {
	t.Helper()
	conn := <-s.conns
	t.Cleanup(func() { _ = conn.Close() })
	return &serverEnd{t, conn, bufio.NewReader(conn)}
}

// accept returns the next connection, after its handshake.
func (s *scripted) accept(t *testing.T) *serverEnd {
	t.Helper()
	p := s.next(t)
	p.say("INFO {\"nonce\":\"n\"}\r\n")
	if first := p.line(); !strings.HasPrefix(first, "CONNECT {") {
		t.Fatalf("the link began with %q", first)
	}
	p.expect("PING")
	p.say("PONG\r\n")
	return p
}

func (p *serverEnd) say(text string) {
	p.t.Helper()
	if _, err := p.conn.Write([]byte(text)); err != nil {
		p.t.Fatalf("send %q: %v", text, err)
	}
}

func (p *serverEnd) line() string {
	p.t.Helper()
	line, err := p.r.ReadString('\n')
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.TrimRight(line, "\r\n")
}

func (p *serverEnd) expect(want string) {
	p.t.Helper()
	if got := p.line(); got != want {
		p.t.Fatalf("the link sent %q, want %q", got, want)
	}
}

// openLink connects a link to a scripted server.
func openLink(t *testing.T, auth User) (*Link, *scripted, *serverEnd) {
	t.Helper()
	s := newScripted()
	var l *Link
	var err error
	var opening sync.WaitGroup
	opening.Go(func() {
		l, err = Open(Options{Name: "test", Dial: s.dial, User: func() User { return auth }}, slog.New(slog.DiscardHandler))
	})
	p := s.accept(t)
	opening.Wait()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l, s, p
}

// received collects the messages of a subscription.
type received chan Message

func (r received) handle(m *Message) { r <- *m }

func subscribe(t *testing.T, l *Link, p *serverEnd, subject, queue, want string) received {
	t.Helper()
	r := make(received, 16)
	var err error
	var subscribing sync.WaitGroup
	subscribing.Go(func() { _, err = l.Subscribe(subject, queue, r.handle) })
	p.expect(want)
	subscribing.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestLinkReceives(t *testing.T) {
	l, _, p := openLink(t, User{})
	r := subscribe(t, l, p, "a.*", "q", "SUB a.* q 1")
	p.say("MSG a.b 1 5\r\nhello\r\n" +
		"MSG a.c 1 reply.to 0\r\n\r\n" +
		"HMSG a.* 1 12 15\r\nNATS/1.0\r\n\r\nxyz\r\n" +
		"HMSG a.d 1 back 12 12\r\nNATS/1.0\r\n\r\n\r\n" +
		"MSG a.b 99 2\r\nno\r\n" + // for an unknown subscription
		"MSG a.e 1 3\r\nend\r\n")
	for _, want := range []Message{
		{Subject: "a.b", Payload: []byte("hello")},
		{Subject: "a.c", Reply: "reply.to"},
		{Subject: "a.*", Header: []byte("NATS/1.0\r\n\r\n"), Payload: []byte("xyz")},
		{Subject: "a.d", Reply: "back", Header: []byte("NATS/1.0\r\n\r\n")},
		{Subject: "a.e", Payload: []byte("end")},
	} {
		got := <-r
		if got.Subject != want.Subject || got.Reply != want.Reply || !bytes.Equal(got.Header, want.Header) ||
			!bytes.Equal(got.Payload, want.Payload) || (got.Header == nil) != (want.Header == nil) {
			t.Fatalf("got %+v, want %+v", got, want)
		}
	}
}

func TestLinkDialsAgain(t *testing.T) {
	for name, end := range map[string]func(*serverEnd){
		"closed by the server":      func(p *serverEnd) { _ = p.conn.Close() },
		"malformed control line":    func(p *serverEnd) { p.say("MSG a.b\r\n") },
		"not a number":              func(p *serverEnd) { p.say("MSG a.b 1 x\r\n") },
		"negative":                  func(p *serverEnd) { p.say("MSG a.b 1 -1\r\n") },
		"headers longer than total": func(p *serverEnd) { p.say("HMSG a.b 1 13 12\r\n") },
		"too many fields":           func(p *serverEnd) { p.say("MSG a.b 1 r r 1\r\n") },
		"an absurd size":            func(p *serverEnd) { p.say("MSG a.b 1 99999999999999999999\r\n") },
	} {
		t.Run(name, func(t *testing.T) {
			l, s, p := openLink(t, User{})
			r := subscribe(t, l, p, "a.b", "", "SUB a.b 1")
			end(p)
			// The link must close the old connection, or the server would keep
			// sending to it.
			if _, err := p.r.ReadByte(); err == nil {
				t.Fatal("the link sends on a connection that it should have closed")
			}
			p = s.accept(t)
			p.expect("SUB a.b 1")
			p.say("MSG a.b 1 2\r\nok\r\n")
			if m := <-r; string(m.Payload) != "ok" {
				t.Fatalf("got %q", m.Payload)
			}
		})
	}
}

func TestLinkDialsUntilTheServerAnswers(t *testing.T) {
	_, s, p := openLink(t, User{})
	_ = p.conn.Close()
	p = s.next(t)
	p.say("-ERR 'too many connections'\r\n") // not an INFO
	p = s.next(t)
	p.say("INFO {}\r\n")
	p.line()
	p.expect("PING")
	p.say("-ERR 'Authorization Violation'\r\n")
	s.accept(t)
}

func TestLinkFlush(t *testing.T) {
	l, s, p := openLink(t, User{})
	type flush struct {
		cancel context.CancelFunc
		result chan error
	}
	begin := func() flush {
		ctx, cancel := context.WithCancel(t.Context())
		f := flush{cancel, make(chan error, 1)}
		go func() { f.result <- l.Flush(ctx) }()
		p.expect("PING")
		return f
	}
	first, second, third := begin(), begin(), begin()
	first.cancel()
	if err := <-first.result; !errors.Is(err, context.Canceled) {
		t.Fatalf("a canceled flush: %v", err)
	}
	p.say("PONG\r\n") // for the first flush, which was canceled
	p.say("PONG\r\n")
	if err := <-second.result; err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-third.result:
		t.Fatalf("a flush ended before its own PONG: %v", err)
	default:
	}
	_ = p.conn.Close()
	if err := <-third.result; !errors.Is(err, errLost) {
		t.Fatalf("a flush whose connection broke: %v", err)
	}
	p = s.accept(t)
	p.say("PONG\r\n") // without a PING
	fourth := begin()
	p.say("PONG\r\n")
	if err := <-fourth.result; err != nil {
		t.Fatal(err)
	}
}

func TestLinkAnswersPingsAndSurvivesErrors(t *testing.T) {
	l, _, p := openLink(t, User{})
	r := subscribe(t, l, p, "a", "", "SUB a 1")
	p.say("PING\r\n")
	p.expect("PONG")
	p.say("-ERR 'Slow Consumer'\r\n+OK\r\nINFO {}\r\nMSG a 1 1\r\nx\r\n")
	if m := <-r; string(m.Payload) != "x" {
		t.Fatalf("got %q", m.Payload)
	}
}

// Messages that were sent to a subscription before it ended are still handled.
// A new connection does not renew it.
func TestLinkUnsubscribes(t *testing.T) {
	l, s, p := openLink(t, User{})
	a := subscribe(t, l, p, "a", "", "SUB a 1")
	subscribe(t, l, p, "b", "", "SUB b 2")
	result := make(chan error, 1)
	go func() { result <- l.Unsubscribe(t.Context(), 1) }()
	p.expect("UNSUB 1")
	p.say("MSG a 1 4\r\nlate\r\n")
	p.expect("PING")
	p.say("PONG\r\n")
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	if m := <-a; string(m.Payload) != "late" {
		t.Fatalf("got %q", m.Payload)
	}
	p.say("MSG a 1 5\r\nnever\r\nPING\r\n")
	p.expect("PONG")
	_ = p.conn.Close()
	p = s.accept(t)
	p.expect("SUB b 2")
	p.say("PING\r\n")
	p.expect("PONG")
	if len(a) != 0 {
		t.Fatal("a message was handled after Unsubscribe had returned")
	}
}

func TestLinkCloses(t *testing.T) {
	t.Run("while the server reads nothing", func(t *testing.T) {
		l, _, p := openLink(t, User{})
		result := make(chan error, 1)
		go func() { result <- l.Send([]byte("PUB a 1\r\nx\r\n")) }()
		if c, err := p.r.ReadByte(); c != 'P' || err != nil { // the link is writing
			t.Fatal(c, err)
		}
		p.r = nil
		l.Close()
		l.Close()
		<-result
		if err := l.Send([]byte("x")); !errors.Is(err, ErrClosed) {
			t.Fatalf("send: %v", err)
		}
		if err := l.Flush(t.Context()); !errors.Is(err, ErrClosed) {
			t.Fatalf("flush: %v", err)
		}
	})
	t.Run("during the handshake of a new connection", func(t *testing.T) {
		l, s, p := openLink(t, User{})
		_ = p.conn.Close()
		s.next(t) // the server sends nothing
		l.Close()
	})
	t.Run("while it can't dial", func(t *testing.T) {
		l, s, p := openLink(t, User{})
		_ = p.conn.Close()
		_ = s.next(t).conn.Close()
		l.Close()
	})
}

func TestLinkDoesNotOpen(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	errDial := errors.New("connection refused")
	if _, err := Open(Options{Name: "test", Dial: func() (net.Conn, error) { return nil, errDial }, User: func() User { return User{} }}, slog.New(slog.DiscardHandler)); !errors.Is(err, errDial) {
		t.Fatalf("got %v", err)
	}
	for name, greeting := range map[string]string{
		"not NATS":        "HTTP/1.1 400 Bad Request\r\n",
		"not JSON":        "INFO {\r\n",
		"an unended line": "INFO ",
		"a long line":     strings.Repeat("x", 200<<10),
	} {
		s := newScripted()
		var talking sync.WaitGroup
		talking.Go(func() {
			conn := <-s.conns
			_, _ = conn.Write([]byte(greeting))
			_ = conn.Close()
		})
		l, err := Open(Options{Name: "test", Dial: s.dial, User: func() User { return User{} }}, slog.New(slog.DiscardHandler))
		if err == nil {
			l.Close()
			t.Errorf("%s: no error", name)
		}
		talking.Wait()
	}
	s := newScripted()
	missing := User{File: filepath.Join(t.TempDir(), "none.creds")}
	var talking sync.WaitGroup
	talking.Go(func() { s.next(t).say("INFO {\"nonce\":\"x\"}\r\n") })
	if _, err := Open(Options{Name: "test", Dial: s.dial, User: func() User { return missing }}, slog.New(slog.DiscardHandler)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing credentials: %v", err)
	}
	talking.Wait()
}

// The link reads while it writes. The server reads from a link only if the link
// reads from it, so otherwise both would block.
func TestLinkReadsWhileItWrites(t *testing.T) {
	l, _, p := openLink(t, User{})
	const messages, size = 200, 100_000
	got := make(chan struct{}, messages)
	var err error
	var subscribing sync.WaitGroup
	subscribing.Go(func() { _, err = l.Subscribe("a", "", func(*Message) { got <- struct{}{} }) })
	p.expect("SUB a 1")
	subscribing.Wait()
	if err != nil {
		t.Fatal(err)
	}
	payload := bytes.Repeat([]byte("x"), size)
	var writing sync.WaitGroup
	writing.Go(func() {
		for range messages {
			if err := l.Send(AppendPub(nil, "b", payload)); err != nil {
				t.Error(err)
			}
		}
	})
	writing.Go(func() { // a server that writes before it reads
		for range messages {
			p.say(fmt.Sprintf("MSG a 1 %d\r\n%s\r\n", size, payload))
			p.expect(fmt.Sprintf("PUB b %d", size))
			if _, err := p.r.Discard(size + 2); err != nil {
				t.Error(err)
			}
		}
	})
	writing.Wait()
	for range messages {
		<-got
	}
}

func FuzzReceive(f *testing.F) {
	f.Add("MSG a 1 5\r\nhello\r\n")
	f.Add("HMSG a 1 r 12 15\r\nNATS/1.0\r\n\r\nxyz\r\n")
	f.Add("HMSG a 1 12 11\r\n")
	f.Add("MSG a 1 999999999999\r\n")
	f.Add("PING\r\nPONG\r\n-ERR 'x'\r\nINFO {}\r\n")
	f.Fuzz(func(t *testing.T, input string) {
		if len(input) > 1<<12 || strings.Contains(input, "PING") {
			return // the link would answer on a connection, and has none
		}
		for _, line := range strings.SplitAfter(input, "\n") {
			if c, ok := parseControl([]byte(line), true); ok && c.total > 1<<20 {
				return // the link allocates the size that the server announces
			}
			if c, ok := parseControl([]byte(line), false); ok && c.total > 1<<20 {
				return
			}
		}
		total := 0
		l := &Link{log: slog.New(slog.DiscardHandler), handlers: map[int]subscription{}}
		l.handlers[1] = subscription{subject: "a", handle: func(m *Message) {
			total += len(m.Header) + len(m.Payload)
			if len(m.Header)+len(m.Payload) > len(input) {
				t.Fatalf("a message of %d bytes out of %d", len(m.Header)+len(m.Payload), len(input))
			}
		}}
		if err := l.read(bufio.NewReaderSize(strings.NewReader(input), 128<<10)); err == nil {
			t.Fatal("read ended without an error")
		}
		if total > len(input) {
			t.Fatalf("%d bytes of messages out of %d", total, len(input))
		}
	})
}

// FuzzInfo parses what a server says of itself.
func FuzzInfo(f *testing.F) {
	f.Add([]byte(`INFO {"nonce":"x","client_id":5,"max_payload":1048576}`))
	f.Add([]byte(`INFO {"max_payload":-1}`))
	f.Add([]byte(`INFO null`))
	f.Add([]byte(`INFO{"client_id":18446744073709551616}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		l := &Link{log: slog.New(slog.DiscardHandler)}
		if _, ok := l.info(line); !ok && l.MaxPayload() != 0 || l.MaxPayload() < 0 {
			t.Fatalf("%q gives the limit %d", line, l.MaxPayload())
		}
	})
}
