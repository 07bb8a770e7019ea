package client_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/cantustest"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

// count returns the transaction that makes the counter n, computed at mark.
func countTo(n int, mark uint64) *client.Request {
	return &client.Request{Kind: "count", Payload: fmt.Append(nil, n), WriteLocks: []string{"counter"}, HighWaterMark: mark}
}

// appendToSession appends those that make the counter from to to, one after
// another without waiting.
func appendToSession(t testing.TB, s *client.Session, from, to int, mark uint64) (futures []*client.Future) {
	t.Helper()
	ctx := soon(t)
	for n := from; n <= to; n++ {
		f, err := s.Append(ctx, countTo(n, mark))
		if err != nil {
			t.Fatalf("append %d: %v", n, err)
		}
		futures = append(futures, f)
	}
	return futures
}

// checkSession checks that a partition has the numbers 1 to n of a session, in
// this order, each once and with its own payload.
func checkSession(t testing.TB, c *client.Client, partition int, name string, n int) {
	t.Helper()
	next := 1
	for _, tx := range readAll(t, c, partition) {
		if tx.Session != name {
			continue
		}
		if tx.SessionSeq != uint64(next) || string(tx.Payload) != fmt.Sprint(next) {
			t.Fatalf("txid %d is number %d of the session, with payload %s, where %d was next", tx.Txid, tx.SessionSeq, tx.Payload, next)
		}
		next++
	}
	if next-1 != n {
		t.Errorf("the log has %d transactions of the session, want %d", next-1, n)
	}
}

// A writer of one hot name sends on without waiting, and meets no conflict with
// itself.
func TestASessionDoesNotConflictWithItself(t *testing.T) {
	const count = 1000
	_, c := newLog(t)
	mark := mustAppend(t, c, client.Request{WriteLocks: []string{"counter"}}).Txid
	s := c.NewSession(0)
	futures := appendToSession(t, s, 1, count, mark)
	for i, r := range waitAll(t, futures) {
		if r.Txid != mark+1+uint64(i) || r.Partition != 0 || r.Duplicate || r.Time.IsZero() {
			t.Fatalf("the receipt of number %d is %+v", i+1, r)
		}
		if f := futures[i]; f.SessionSeq() != uint64(i+1) || f.ID() != "" {
			t.Fatalf("future %d says number %d and id %q", i, f.SessionSeq(), f.ID())
		}
	}
	checkSession(t, c, 0, s.Name(), count)
	one, err := c.Get(soon(t), 0, mark+7)
	if err != nil || one.Session != s.Name() || one.SessionSeq != 7 || one.HighWaterMark != mark || one.ID != "" {
		t.Errorf("%+v, %v", one, err)
	}
	// Without a session they do.
	if _, err := c.Append(soon(t), countTo(count+1, mark)); !errors.Is(err, client.ErrConflict) {
		t.Errorf("outside of the session: %v", err)
	}
	// The first transaction of a session always has a high-water mark.
	other := c.NewSession(1)
	if other.Name() == s.Name() {
		t.Error("two sessions have one name")
	}
	f, err := other.Append(soon(t), &client.Request{Partition: 1})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := f.Wait(soon(t)); err != nil || r.Txid != 1 || r.Partition != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}

// A conflict with another writer ends the session: nothing after it commits.
// The next session begins from a state that has what was committed.
func TestASessionEndsWithAConflict(t *testing.T) {
	_, c := newLog(t)
	s := c.NewSession(0)
	waitAll(t, appendToSession(t, s, 1, 10, 0))
	mustAppend(t, c, client.Request{WriteLocks: []string{"counter"}, HighWaterMark: 10}) // another writer
	futures := appendToSession(t, s, 11, 60, 0)
	for i, f := range futures {
		n := uint64(11 + i)
		_, err := f.Wait(soon(t))
		var conflict *client.ConflictError
		if !errors.As(err, &conflict) || conflict.Txid != 11 || conflict.Session != s.Name() || conflict.SessionSeq != 11 || errors.Is(err, client.ErrUnknown) {
			t.Fatalf("number %d: %v", n, err)
		}
		var ended *client.SessionError
		if isLater := errors.As(err, &ended); isLater != (n > 11) || isLater && (ended.Seq != 11 || ended.Session != s.Name() || !errors.Is(err, client.ErrSessionEnded)) {
			t.Fatalf("number %d: %v", n, err)
		}
	}
	if _, err := s.Append(soon(t), countTo(61, 11)); !errors.Is(err, client.ErrSessionEnded) || !errors.Is(err, client.ErrConflict) {
		t.Errorf("an append to a session that has ended: %v", err)
	}
	checkSession(t, c, 0, s.Name(), 10)
	again := c.NewSession(0)
	waitAll(t, appendToSession(t, again, 1, 50, 11))
	checkSession(t, c, 0, again.Name(), 50)
	await(t, "all released", func() bool { return c.Pending() == 0 })
}

func TestSessionsRefuseWhatHasNoPlaceInThem(t *testing.T) {
	_, c := newLog(t)
	s := c.NewSession(1)
	for text, req := range map[string]*client.Request{
		"so leave ID out":               {ID: "mine"},
		"and that of the session 1":     {Partition: 2},
		"WriteLocks[0] is empty":        {WriteLocks: []string{""}},
		"set the field of Request":      {Header: nats.Header{subjects.HeaderSession: {"x"}}},
		`header "Cantus-Session-Seq"`:   {Header: nats.Header{subjects.HeaderSessionSeq: {"1"}}},
		"a value must not contain CR, ": {Header: nats.Header{"X": {"a\r\nb"}}},
	} {
		if _, err := s.Append(soon(t), req); !errors.Is(err, client.ErrBadRequest) || !strings.Contains(err.Error(), text) {
			t.Errorf("want %q: %v", text, err)
		}
	}
	// Nothing of it has ended the session.
	waitAll(t, appendToSession(t, s, 1, 3, 0)[:3])
	checkSession(t, c, 1, s.Name(), 3)
	if _, err := c.NewSession(7).Append(soon(t), &client.Request{Partition: 7}); err != nil && !errors.Is(err, client.ErrNoPartition) {
		t.Error(err)
	}
}

// Whatever happens to messages and answers, each transaction of a session
// commits once and in order.
func TestASessionUnderEachFault(t *testing.T) {
	for f := pass; f < faults; f++ {
		for _, skipped := range []int{0, 2} { // with nothing committed before, and with something
			t.Run(fmt.Sprint(faultNames[f], " after ", skipped), func(t *testing.T) {
				n := 0
				_, faulty, direct := newProxy(t, quick, func(*nats.Msg) fault {
					if n++; n > skipped && n <= skipped+3 {
						return f
					}
					return pass
				})
				const count = 200
				s := faulty.NewSession(0)
				receipts := waitAll(t, appendToSession(t, s, 1, count, 0))
				for i, r := range receipts {
					if r.Txid != uint64(i+1) {
						t.Fatalf("number %d has txid %d", i+1, r.Txid)
					}
				}
				checkSession(t, direct, 0, s.Name(), count)
			})
		}
	}
}

func TestASessionUnderRandomFaultsAndReconnects(t *testing.T) {
	p, nc := openFaultyProxy(t)
	opts := quick
	opts.Prefix, opts.MaxInFlight = proxied, 100
	faulty, direct := newClient(t, nc, opts), p.direct()
	const count = 1000
	s := faulty.NewSession(1)
	for i, r := range waitAll(t, appendToSession(t, s, 1, count, 0)) {
		if r.Txid != uint64(i+1) {
			t.Fatalf("number %d has txid %d", i+1, r.Txid)
		}
	}
	checkSession(t, direct, 1, s.Name(), count)
}

// A transaction that has no outcome in time ends its session: those after it
// that were not sent are not committed, and the others may be.
func TestADeadlineEndsASession(t *testing.T) {
	opts := client.Options{Timeout: 300 * time.Millisecond, AttemptTimeout: patience, MaxBatch: 10}
	p, faulty, direct := newProxy(t, opts, always(swallow))
	s := faulty.NewSession(0)
	unknown, not := 0, 0
	for i, f := range appendToSession(t, s, 1, 50, 0) {
		_, err := f.Wait(soon(t))
		switch {
		case errors.Is(err, client.ErrUnknown):
			unknown++
			var u *client.UnknownOutcomeError
			if !errors.As(err, &u) || u.Session != s.Name() || u.SessionSeq != uint64(i+1) || unknown != i+1 {
				t.Errorf("number %d: %v", i+1, err)
			}
		case errors.Is(err, client.ErrSessionEnded) && errors.Is(err, client.ErrTimeout):
			not++
		default:
			t.Errorf("number %d: %v", i+1, err)
		}
	}
	sent := p.messages()
	if unknown < sent || not == 0 {
		t.Errorf("%d are unknown and %d were not sent, want some of each: there were %d messages", unknown, not, sent)
	}
	p.fail(always(pass))
	if _, err := s.Append(soon(t), countTo(51, 0)); !errors.Is(err, client.ErrSessionEnded) || errors.Is(err, client.ErrUnknown) {
		t.Errorf("an append after the end: %v", err)
	}
	mustAppend(t, faulty, client.Request{})
	if n := p.messages(); n != sent+1 {
		t.Errorf("%d messages were sent after the end, want the append's", n-sent)
	}
	checkSession(t, direct, 0, s.Name(), 0)
}

// A transaction in the middle that can never be appended ends the session too.
// What is before it commits, also if that was sent in the same message.
func TestASessionEndsWithATransactionThatIsTooLarge(t *testing.T) {
	_, c := newLog(t)
	s := c.NewSession(0)
	futures := appendToSession(t, s, 1, 20, 0)
	f, err := s.Append(soon(t), &client.Request{Payload: make([]byte, 1_100_000)})
	if err != nil {
		t.Fatal(err)
	}
	futures = append(futures, f)
	for n := 22; n <= 40; n++ {
		f, err := s.Append(soon(t), countTo(n, 0))
		if err != nil {
			wantErr(t, err, client.ErrTooLarge)
			break
		}
		futures = append(futures, f)
	}
	waitAll(t, futures[:20])
	for _, f := range futures[20:] {
		_, err := f.Wait(soon(t))
		if wantErr(t, err, client.ErrTooLarge); errors.Is(err, client.ErrUnknown) {
			t.Error(err)
		}
	}
	checkSession(t, c, 0, s.Name(), 20)
}

// A partition that does not know a session, and may have forgotten it, ends it.
func TestASessionThatIsForgotten(t *testing.T) {
	p, faulty, direct := newProxy(t, quick, always(pass))
	s := faulty.NewSession(0)
	waitAll(t, appendToSession(t, s, 1, 5, 0))
	p.log.FailNext(1, cantustest.Append, cantustest.Refuse(subjects.Errorf(subjects.WrongLast, "it is not known")))
	for _, f := range appendToSession(t, s, 6, 6, 0) {
		_, err := f.Wait(soon(t))
		var refused *client.RefusedError
		if !errors.As(err, &refused) || !errors.Is(err, client.ErrWrongLast) || errors.Is(err, client.ErrUnknown) || refused.LastAccepted != nil {
			t.Errorf("number 6 was sent once and refused: %v", err)
		}
	}
	checkSession(t, direct, 0, s.Name(), 5)

	// Its answer was lost, and then it is forgotten: nobody knows.
	s = faulty.NewSession(0)
	waitAll(t, appendToSession(t, s, 1, 5, 5))
	p.log.FailNext(1, cantustest.Append, cantustest.Drop())
	p.log.FailNext(1, cantustest.Append, cantustest.Refuse(subjects.Errorf(subjects.WrongLast, "it is not known")))
	for _, f := range appendToSession(t, s, 6, 6, 5) {
		_, err := f.Wait(soon(t))
		if !errors.Is(err, client.ErrUnknown) || !errors.Is(err, client.ErrWrongLast) {
			t.Errorf("number 6 was sent twice: %v", err)
		}
	}
}

// A number that was committed before, too long ago to say where, has a receipt
// without a txid.
func TestANumberThatWasCommittedBefore(t *testing.T) {
	p, faulty, direct := newProxy(t, quick, always(pass))
	s := faulty.NewSession(0)
	waitAll(t, appendToSession(t, s, 1, 5, 0))
	six := uint64(6)
	e := subjects.Errorf(subjects.WrongLast, "it was committed before")
	e.SessionSeq = &six
	p.log.FailNext(1, cantustest.Append, cantustest.LoseAnswer())
	p.log.FailNext(1, cantustest.Append, cantustest.Refuse(e))
	for _, r := range waitAll(t, appendToSession(t, s, 6, 6, 0)) {
		if !r.Duplicate || r.Txid != 0 {
			t.Errorf("%+v", r)
		}
	}
	waitAll(t, appendToSession(t, s, 7, 9, 0))
	checkSession(t, direct, 0, s.Name(), 9)
}

// Several goroutines append to a session, and a program uses several sessions
// besides plain appends.
func TestSessionsSideBySide(t *testing.T) {
	_, c := newLog(t)
	const sessions, each = 20, 50
	var all []*client.Session
	done := make(chan error)
	for range sessions {
		s := c.NewSession(0)
		all = append(all, s)
		for g := range 2 {
			go func() {
				var err error
				for range each {
					f, e := s.Append(t.Context(), &client.Request{AppendLocks: []string{"x"}, WriteLocks: []string{"own." + s.Name()}})
					if e == nil && g == 0 {
						_, e = f.Wait(t.Context())
					}
					err = errors.Join(err, e)
				}
				done <- err
			}()
		}
	}
	appendMany(t, c, 0, 100)
	for range 2 * sessions {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	await(t, "all have an outcome", func() bool { return c.Pending() == 0 })
	next := map[string]uint64{}
	for _, tx := range readAll(t, c, 0) {
		if tx.Session == "" {
			continue
		}
		if next[tx.Session]++; tx.SessionSeq != next[tx.Session] {
			t.Fatalf("number %d where %d was next", tx.SessionSeq, next[tx.Session])
		}
	}
	for _, s := range all {
		if next[s.Name()] != 2*each {
			t.Errorf("%d of %d", next[s.Name()], 2*each)
		}
	}
}

func TestCloseEndsASession(t *testing.T) {
	p, faulty, _ := newProxy(t, client.Options{MaxBatch: 1}, always(swallow))
	s := faulty.NewSession(0)
	futures := appendToSession(t, s, 1, 10, 0)
	if err := p.log.Await(soon(t), cantustest.Append, 3); err != nil {
		t.Fatal(err)
	}
	if err := faulty.Close(); err != nil {
		t.Fatal(err)
	}
	for i, f := range futures {
		_, err := f.Wait(soon(t))
		if !errors.Is(err, client.ErrClosed) || errors.Is(err, client.ErrUnknown) != (i < 3) {
			t.Errorf("number %d: %v", i+1, err)
		}
	}
	if _, err := s.Append(soon(t), countTo(11, 0)); !errors.Is(err, client.ErrClosed) {
		t.Error(err)
	}
}

// A node that starts again knows its sessions.
func TestASessionOutlivesRestarts(t *testing.T) {
	restarts := testkit.Sized(3, 10, 200)
	ctx, log := newOneNode(t)
	c := log.NewClient(t, client.Options{MaxInFlight: 500})
	s := c.NewSession(0)
	var futures []*client.Future
	for range restarts {
		restarted := make(chan error, 1)
		go func() { restarted <- log.Restart(ctx) }()
		for running := true; running; {
			f, err := s.Append(ctx, countTo(len(futures)+1, 0))
			if err != nil {
				t.Fatal(err)
			}
			futures = append(futures, f)
			select {
			case err := <-restarted:
				if running = false; err != nil {
					t.Fatal(err)
				}
			default:
			}
		}
	}
	for i, f := range futures {
		if r, err := f.Wait(ctx); err != nil || r.Txid != uint64(i+1) {
			t.Fatalf("number %d: %+v, %v", i+1, r, err)
		}
	}
	checkSession(t, log.NewClient(t, client.Options{}), 0, s.Name(), len(futures))
	t.Logf("%d transactions", len(futures))
}

// Transactions whose marks are below the floor are looked up in the log, and
// those sent after them overtake them: the session puts them in order.
func TestASessionWithMarksBelowTheFloor(t *testing.T) {
	n := openNode(t, broker.Options{Partitions: 1, MaxLocks: 50})
	c := newClient(t, connect(t, n), client.Options{MaxBatch: 20})
	var others []*client.Future
	for i := range 2000 {
		f, err := c.AppendAsync(soon(t), &client.Request{AppendLocks: []string{fmt.Sprint("other.", i)}})
		if err != nil {
			t.Fatal(err)
		}
		others = append(others, f)
	}
	waitAll(t, others)
	const count = 500
	s := c.NewSession(0)
	var futures []*client.Future
	for i := range count {
		req := countTo(i+1, 0)
		req.WriteLocks = append(req.WriteLocks, fmt.Sprint("own.", i)) // which nobody has recorded
		f, err := s.Append(soon(t), req)
		if err != nil {
			t.Fatal(err)
		}
		futures = append(futures, f)
	}
	for i, r := range waitAll(t, futures) {
		if r.Txid != uint64(2001+i) {
			t.Fatalf("number %d has txid %d", i+1, r.Txid)
		}
	}
	checkSession(t, c, 0, s.Name(), count)
}
