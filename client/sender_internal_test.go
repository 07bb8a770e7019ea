package client

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
)

// idleSender returns a sender whose step the test calls, and the messages that
// it sends, which nobody answers.
func idleSender(t *testing.T, opts Options) (*sender, *nats.Subscription) {
	t.Helper()
	n, err := broker.Open(t.Context(), t.TempDir(), broker.Options{Partitions: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	nc, err := n.Conn()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	sent, err := nc.SubscribeSync("silent.batch.0")
	if err != nil {
		t.Fatal(err)
	}
	opts.Prefix = "silent"
	c, err := New(nc, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return newSender(c, 0), sent
}

// countSent returns the number of messages sent.
func countSent(t *testing.T, sent *nats.Subscription, s *sender) int {
	t.Helper()
	if err := s.c.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	n, _, err := sent.Pending()
	if err != nil {
		t.Fatal(err)
	}
	return n
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
