package client

import (
	"bufio"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// silentServer is a NATS server for one connection, which counts the messages
// to a subject and delivers none.
type silentServer struct {
	subject string
	count   atomic.Int64
}

// InProcessConn returns a connection to the server.
func (s *silentServer) InProcessConn() (net.Conn, error) {
	near, far := net.Pipe()
	go s.serve(far)
	return near, nil
}

// serve answers until the connection is closed.
func (s *silentServer) serve(conn net.Conn) {
	defer conn.Close()
	if _, err := io.WriteString(conn, `INFO {"headers":true,"max_payload":1048576}`+"\r\n"); err != nil {
		return
	}
	for r := bufio.NewReader(conn); ; {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		switch fields := strings.Fields(line); fields[0] {
		case "PING":
			if _, err := io.WriteString(conn, "PONG\r\n"); err != nil {
				return
			}
		case "PUB", "HPUB":
			size, err := strconv.Atoi(fields[len(fields)-1])
			if err != nil {
				return
			}
			if _, err := r.Discard(size + len("\r\n")); err != nil {
				return
			}
			if fields[1] == s.subject {
				s.count.Add(1)
			}
		}
	}
}

// idleSender returns a sender whose step the test calls, and the server that
// gets what it sends and answers nothing.
func idleSender(t *testing.T, opts Options) (*sender, *silentServer) {
	t.Helper()
	server := &silentServer{subject: "silent.batch.0"}
	nc, err := nats.Connect("", nats.InProcessServer(server), nats.NoReconnect())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	opts.Prefix = "silent"
	c, err := New(nc, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return newSender(c, 0), server
}

// countSent returns the number of messages sent.
func countSent(t *testing.T, server *silentServer, s *sender) int64 {
	t.Helper()
	if err := s.c.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return server.count.Load()
}

// Anybody can forge any number of advisories: they cause no more sends of an
// append than refusals would.
func TestForgedAdvisoriesCauseFewSends(t *testing.T) {
	s, sent := idleSender(t, Options{AttemptTimeout: time.Hour, Timeout: time.Hour})
	if err := s.add(&Request{Payload: []byte("x")}, &Future{sender: s, id: "x"}); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for end := now.Add(time.Minute); now.Before(end); now = now.Add(10 * time.Millisecond) {
		s.step(now)
		for range 10 {
			s.onNewLeader(now)
		}
	}
	// Back-offs of 50 ms, 100 ms and so on up to 2 s, each randomized.
	if n := countSent(t, sent, s); n < 20 || n > 70 {
		t.Errorf("%d sends in a minute, want one every second or two", n)
	}
}

// A batch that waits in a back-off because nobody leads is sent once somebody
// does.
func TestANewLeaderEndsTheWaitForOne(t *testing.T) {
	s, sent := idleSender(t, Options{AttemptTimeout: time.Hour, Timeout: time.Hour, MaxBackoff: time.Hour})
	now := time.Now()
	for i := range 2 { // one waits for the sender's back-off, one for its own
		if err := s.add(&Request{Payload: []byte("x")}, &Future{sender: s, id: "x"}); err != nil {
			t.Fatal(err)
		}
		b := s.filling
		s.filling = nil
		if s.failures = 40; i == 0 {
			s.retryAfterBackoff(b, ErrNoLeader, now)
			continue
		}
		b.notBefore = now.Add(time.Hour)
		s.retry(b, ErrNoLeader)
	}
	soon := now.Add(s.c.opts.MinBackoff)
	if s.step(soon); countSent(t, sent, s) != 0 {
		t.Fatal("sent during a back-off")
	}
	s.onNewLeader(now)
	if s.step(soon); countSent(t, sent, s) != 2 {
		t.Errorf("%d of 2 were sent after a leader was heard of", countSent(t, sent, s))
	}
}

// A refusal because of a limit says for how long that allows nothing. Nothing
// is sent before, and what the refusal says can't keep a sender for ever.
func TestNothingIsSentWhileALimitAllowsNothing(t *testing.T) {
	s, sent := idleSender(t, Options{AttemptTimeout: time.Hour, Timeout: 2 * time.Minute})
	if err := s.add(&Request{Payload: []byte("x")}, &Future{sender: s, id: "x"}); err != nil {
		t.Fatal(err)
	}
	refuse := func(seconds string) {
		t.Helper()
		if len(s.inflight) != 1 {
			t.Fatalf("%d attempts are in flight", len(s.inflight))
		}
		s.onAnswer(s.inflight[0], &nats.Msg{Data: []byte(
			`{"partition":0,"error":{"code":429,"reason":"busy","message":"no","limit":"bytes","retry_after":` + seconds + `},"high_water_mark":7}`)}, nil)
	}
	now := time.Now()
	s.step(now)
	refuse("60")
	s.onNewLeader(now)
	s.onReconnected(0)
	if due := s.step(now.Add(59 * time.Second)); countSent(t, sent, s) != 1 || due.Before(now.Add(time.Minute)) {
		t.Errorf("%d were sent, and the next one is due after %v", countSent(t, sent, s), due.Sub(now))
	}
	if s.step(now.Add(61 * time.Second)); countSent(t, sent, s) != 2 {
		t.Fatalf("%d were sent after a minute, want 2", countSent(t, sent, s))
	}
	refuse("1e300")
	if wait := time.Until(s.limitedUntil); wait < time.Minute || wait > 2*time.Minute+time.Second {
		t.Errorf("it would wait for %v, want what a transaction waits at most", wait)
	}
	refused, ok := errors.AsType[*RefusedError](s.queue[0].items[0].future.lastErr)
	if !ok || refused.Limit != "bytes" || refused.RetryAfter != time.Hour {
		t.Errorf("the last attempt's error is %+v", refused)
	}
}
