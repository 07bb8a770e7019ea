package client

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// idleSession returns a session of an idle sender, with n transactions of which
// each is a batch.
func idleSession(t *testing.T, n int) (*Session, *sender, *silentServer, []*Future) {
	t.Helper()
	s, sent := idleSender(t, Options{AttemptTimeout: time.Hour, Timeout: time.Hour, MaxBatch: 1})
	ss := s.c.NewSession(0)
	var futures []*Future
	for range n {
		f := &Future{sender: s, session: ss}
		if err := s.c.limiter.acquire(t.Context(), 0, true, nil); err != nil {
			t.Fatal(err)
		}
		if err := s.add(&Request{Payload: []byte("x")}, f); err != nil {
			t.Fatal(err)
		}
		futures = append(futures, f)
	}
	return ss, s, sent, futures
}

// numbers returns the numbers of the attempts in flight, in the order sent.
func (s *sender) numbers() (all []uint64) {
	for _, a := range s.inflight {
		for _, i := range a.batch.items {
			all = append(all, i.future.number)
		}
	}
	return all
}

func answerWith(s *sender, a *attempt, body string, args ...any) {
	s.onAnswer(a, &nats.Msg{Data: fmt.Appendf(nil, body, args...)}, nil)
}

const (
	accepted   = `{"partition":0,"results":[{"index":0,"count":1,"txid":%d,"time":"2026-11-30T00:00:00Z"}],"high_water_mark":9}`
	refusedOne = `{"partition":0,"results":[{"index":0,"count":1,"error":{"code":409,"reason":"%s","message":"no"%s}}],"high_water_mark":9}`
	refusedAll = `{"partition":0,"error":{"code":429,"reason":"busy","message":"no"},"high_water_mark":9}`
)

func checkInFlight(t *testing.T, s *sender, want ...uint64) {
	t.Helper()
	if got := s.numbers(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("in flight are the numbers %v, want %v", got, want)
	}
}

// A message that was refused takes those after it along, and their answers make
// nothing go back again.
func TestASessionGoesBack(t *testing.T) {
	_, s, sent, futures := idleSession(t, 5)
	now := time.Now()
	s.step(now)
	checkInFlight(t, s, 1, 2, 3)
	stale := append([]*attempt(nil), s.inflight...)
	answerWith(s, stale[0], refusedAll)
	checkInFlight(t, s)
	now = now.Add(time.Minute) // after the back-off
	s.step(now)
	checkInFlight(t, s, 1, 2, 3)
	again := append([]*attempt(nil), s.inflight...)
	answerWith(s, stale[1], refusedOne, "wrong_last", `,"session_seq":0`)
	answerWith(s, stale[2], refusedOne, "conflict", "")
	checkInFlight(t, s, 1, 2, 3)
	answerWith(s, again[0], accepted, 1)
	answerWith(s, again[1], accepted, 2)
	s.step(now)
	checkInFlight(t, s, 3, 4, 5)
	if n := countSent(t, sent, s); n != 8 {
		t.Errorf("%d messages were sent, want 8", n)
	}
	for i, f := range futures {
		if f.completed.Load() != (i < 2) {
			t.Errorf("number %d is complete: %v", i+1, f.completed.Load())
		}
	}
}

// What is missing may be under way: then the session awaits its answer, and
// does not send it again.
func TestASessionAwaitsWhatIsMissing(t *testing.T) {
	_, s, sent, _ := idleSession(t, 4)
	now := time.Now()
	s.step(now)
	first, second := s.inflight[0], s.inflight[1]
	answerWith(s, second, refusedOne, "wrong_last", `,"session_seq":0`)
	s.step(now)
	checkInFlight(t, s, 1)
	answerWith(s, first, accepted, 1)
	s.step(now)
	checkInFlight(t, s, 2, 3, 4)
	if n := countSent(t, sent, s); n != 6 {
		t.Errorf("%d messages were sent, want 6", n)
	}
}

// If nothing is under way that could be missing, it is sent again after a
// back-off, which grows.
func TestASessionThatIsNotAccepted(t *testing.T) {
	ss, s, sent, _ := idleSession(t, 1)
	ss.last, ss.chain[0].items[0].future.number = 5, 5
	now := time.Now()
	for i := range 4 {
		s.step(now)
		answerWith(s, s.inflight[0], refusedOne, "wrong_last", `,"session_seq":2`)
		if wait := time.Until(ss.notBefore); wait > s.c.opts.MinBackoff<<i || wait < s.c.opts.MinBackoff<<i/4 {
			t.Errorf("after %d refusals it waits for %v", i+1, wait)
		}
		if s.step(ss.notBefore.Add(-1)); len(s.inflight) > 0 {
			t.Error("it was sent during the back-off")
		}
		now = ss.notBefore
	}
	if n := countSent(t, sent, s); n != 4 {
		t.Errorf("%d messages were sent, want 4", n)
	}
}

// A transaction whose message was lost with a later one refused for good is
// still sent: it is before the end.
func TestWhatIsBeforeTheEndIsSentOn(t *testing.T) {
	ss, s, _, futures := idleSession(t, 5)
	now := time.Now()
	s.step(now)
	answerWith(s, s.inflight[1], refusedOne, "conflict", "")
	checkInFlight(t, s, 1)
	for i, f := range futures[1:] {
		if !f.completed.Load() || !errors.Is(f.err, ErrConflict) || errors.Is(f.err, ErrSessionEnded) != (i > 0) {
			t.Errorf("number %d: %v", i+2, f.err)
		}
	}
	answerWith(s, s.inflight[0], refusedAll)
	s.step(now.Add(time.Minute))
	checkInFlight(t, s, 1)
	answerWith(s, s.inflight[0], accepted, 1)
	if r, err := futures[0].Wait(t.Context()); err != nil || r.Txid != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if s.step(now); len(ss.chain)+len(s.sessions)+s.c.limiter.inUse() > 0 {
		t.Errorf("left over: %d batches, %d sessions, %d in use", len(ss.chain), len(s.sessions), s.c.limiter.inUse())
	}
}

func TestVerdictsOnRefusals(t *testing.T) {
	ss, _, _, futures := idleSession(t, 1)
	refused := func(reason subjects.Reason, last ...uint64) *subjects.Error {
		e := subjects.Errorf(reason, "no")
		if len(last) > 0 {
			e.SessionSeq = &last[0]
		}
		return e
	}
	check := func(number uint64, e *subjects.Error, want sessionVerdict) {
		t.Helper()
		if got := ss.judge(number, e); got != want {
			t.Errorf("number %d, %s with %v: verdict %d, want %d", number, e.Reason, e.SessionSeq, got, want)
		}
	}
	check(5, refused(subjects.Conflict), sessionRefused)
	check(5, refused(subjects.Busy), sessionAgain)
	check(5, refused(subjects.Unknown), sessionUnsure)
	check(5, refused(subjects.WrongLast, 3), sessionMissing)
	check(5, refused(subjects.WrongLast, 4), sessionRefused)
	check(5, refused(subjects.WrongLast, 5), sessionCommitted)
	check(5, refused(subjects.WrongLast, 6), sessionCommitted)
	// A partition that does not know the session may yet learn of it, as long
	// as number 1 has no outcome.
	check(5, refused(subjects.WrongLast), sessionMissing)
	check(1, refused(subjects.WrongLast), sessionRefused)
	futures[0].complete(Receipt{}, nil)
	check(5, refused(subjects.WrongLast), sessionRefused)
}
