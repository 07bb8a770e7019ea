package bench

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/barenats"
)

// echo is a traffic of numbered requests.
type echo struct{ judged chan string }

func (echo) compose(s *pending) int { s.msg.Subject, s.msg.Data = "echo", []byte("request"); return 1 }

func (e echo) judge(_ *pending, m *nats.Msg) outcome {
	e.judged <- string(m.Data)
	return outcome{done: 1}
}

// TestAnAnswerThatNeverComesIsGivenUp drops a request. When it is given up
// another one is sent. A late answer to the first is not counted as the
// second's.
func TestAnAnswerThatNeverComesIsGivenUp(t *testing.T) {
	ns, err := barenats.Run(t.Context(), barenats.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	nc, err := nats.Connect(ns.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	requests, err := nc.SubscribeSync("echo")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	c := newClock(task{limits: limits{count: 1}})
	e := echo{make(chan string, 10)}
	l, err := newPlainWorker(workerConfig{url: ns.ClientURL(), inFlight: 1, clock: c, tally: &tally{}, answered: func(int64, int64) {}, fail: func(err error) { t.Error(err) }}, e)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	if err := l.start(); err != nil {
		t.Fatal(err)
	}
	next := func() *nats.Msg {
		m, err := requests.NextMsgWithContext(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	swallowed := next()
	l.expire()
	if got := l.counts.silent; got != 0 {
		t.Fatalf("%d given up before their time", got)
	}
	l.mu.Lock()
	l.requests[0].at -= int64(answerLimit + time.Second)
	l.mu.Unlock()
	l.expire()
	second := next()
	for _, answer := range []struct {
		to   *nats.Msg
		text string
	}{{swallowed, "late"}, {second, "in time"}} {
		if err := answer.to.Respond([]byte(answer.text)); err != nil {
			t.Fatal(err)
		}
	}
	<-l.done()
	if got := <-e.judged; got != "in time" {
		t.Errorf("judged the answer %q, want the one in time", got)
	}
	if l.counts.silent != 1 || l.counts.done.Load() != 1 {
		t.Errorf("%d given up and %d done, want 1 and 1", l.counts.silent, l.counts.done.Load())
	}
}
