package client

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
)

// stillLane returns a lane whose clock is the test, and the messages that it
// sends, which nobody answers.
func stillLane(t *testing.T, opts Options) (*lane, *nats.Subscription) {
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
	return newLane(c, 0), sent
}

// countSent returns how many messages have come.
func countSent(t *testing.T, sent *nats.Subscription, l *lane) int {
	t.Helper()
	if err := l.c.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	n, _, err := sent.Pending()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Advisories can be forged, as many as somebody likes: an append is sent no more
// often for them than refusals would have it.
func TestForgedAdvisoriesCauseFewSends(t *testing.T) {
	l, sent := stillLane(t, Options{AttemptTimeout: time.Hour, Timeout: time.Hour})
	if err := l.add(&Tx{Payload: []byte("x")}, &Future{lane: l, id: "x"}); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for end := now.Add(time.Minute); now.Before(end); now = now.Add(10 * time.Millisecond) {
		l.step(now)
		for range 10 {
			l.newLeader(now)
		}
	}
	// Back-offs of 50 ms, 100 ms and so on up to 2 s, of each half to all.
	if n := countSent(t, sent, l); n < 20 || n > 70 {
		t.Errorf("%d sends in a minute, want one every second or two", n)
	}
}

// What waits in a back-off because nobody leads is sent once somebody does.
func TestANewLeaderEndsTheWaitForOne(t *testing.T) {
	l, sent := stillLane(t, Options{AttemptTimeout: time.Hour, Timeout: time.Hour, MaxBackoff: time.Hour})
	now := time.Now()
	for i := range 2 { // one waits behind the lane's back-off, one behind its own
		if err := l.add(&Tx{Payload: []byte("x")}, &Future{lane: l, id: "x"}); err != nil {
			t.Fatal(err)
		}
		ch := l.filling
		l.filling = nil
		if l.failures = 40; i == 0 {
			l.again(ch, ErrNoLeader, now)
			continue
		}
		ch.due = now.Add(time.Hour)
		l.retry(ch, ErrNoLeader)
	}
	soon := now.Add(l.c.opts.MinBackoff)
	if l.step(soon); countSent(t, sent, l) != 0 {
		t.Fatal("sent during a back-off")
	}
	l.newLeader(now)
	if l.step(soon); countSent(t, sent, l) != 2 {
		t.Errorf("%d of 2 were sent after a leader was heard of", countSent(t, sent, l))
	}
}
