package broker

import (
	"testing"
	"time"

	"github.com/cantuslog/cantus/lockmgr"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// withID returns a request to append a transaction with a message id.
func withID(t *testing.T, id string) *request {
	t.Helper()
	block := subjects.AppendField(subjects.AppendBlockStart(nil), subjects.HeaderMsgID, id)
	r := &request{}
	if err := r.decode(subjects.AppendBlockEnd(block), []byte("x"), 1000); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestHowLongAMessageIDCounts checks that an id counts for exactly its window,
// by the time that the repeat would get: on the leader that has certified the
// first, on a follower that leads now, and after a restart. Whether anything
// was appended or trimmed meanwhile makes no difference, and the answer where
// nothing can be stored is the same.
func TestHowLongAMessageIDCounts(t *testing.T) {
	const window = time.Minute
	first := time.Unix(1000, 0)
	for name, replica := range map[string]func(t *testing.T, clock func() time.Time) *certifier{
		"leader":    leaderWithID,
		"follower":  func(t *testing.T, clock func() time.Time) *certifier { return followerWithID(t, clock, false) },
		"restarted": func(t *testing.T, clock func() time.Time) *certifier { return followerWithID(t, clock, true) },
	} {
		for _, c := range []struct {
			name      string
			clock     time.Duration // after the first
			trimmed   time.Duration // when a trim was recorded, if any
			duplicate bool
		}{
			{"at once", 0, 0, true},
			{"at the window's end", window, 0, true},
			{"later", window + 1, 0, false},
			{"much later", 1000 * window, 0, false},
			{"by a clock that is behind", -time.Hour, 0, true},
			{"behind a trim within the window", window - 1, window - 1, true},
			{"behind a trim at the window's end", 0, window, false},
			{"behind a late trim, by a clock that is behind", -time.Hour, window + 1, false},
		} {
			t.Run(name+"/"+c.name, func(t *testing.T) {
				now := first
				table := replica(t, func() time.Time { return now })
				now = first.Add(c.clock)
				if c.trimmed != 0 {
					table.advance(first.Add(c.trimmed).UnixNano())
				}
				again := withID(t, "i")
				if full := table.repeats([]*request{again})[0].verdict.Outcome == lockmgr.Duplicate; full != c.duplicate {
					t.Errorf("on a full disk it counts: %t", full)
				}
				out := table.certify(2, []*request{again})
				if c.duplicate {
					if len(out.notPassed) != 1 || out.notPassed[0].verdict.Outcome != lockmgr.Duplicate || out.notPassed[0].verdict.Txid != 1 {
						t.Errorf("%+v", out)
					}
					return
				}
				if len(out.passed) != 1 || out.time <= first.Add(window).UnixNano() {
					t.Errorf("passed %d, time %v after the first", len(out.passed), time.Duration(out.time-first.UnixNano()))
				}
			})
		}
	}
}

func certifierWithClock(clock func() time.Time) *certifier {
	return newCertifier(lockmgr.Options{IDWindow: time.Minute}, clock)
}

// leaderWithID returns a certifier that has certified and committed a
// transaction with the id "i".
func leaderWithID(t *testing.T, clock func() time.Time) *certifier {
	t.Helper()
	c := certifierWithClock(clock)
	out := c.certify(1, []*request{withID(t, "i")})
	recordCertified(t, c, out.data)
	return c
}

// followerWithID returns one that has the transaction from the log.
func followerWithID(t *testing.T, clock func() time.Time, restarted bool) *certifier {
	t.Helper()
	data := certifierWithClock(clock).certify(1, []*request{withID(t, "i")}).data
	c := certifierWithClock(clock)
	if !restarted {
		recordCertified(t, c, data)
		return c
	}
	b, err := wal.ParseBatch(data)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.rebuild(1, b.Time, 1, func(older func(*wal.Transaction) bool) error {
		var tx wal.Transaction
		for records := b.Read(); records.Next(&tx); {
			older(&tx)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return c
}

func recordCertified(t *testing.T, c *certifier, data []byte) {
	t.Helper()
	b, err := wal.ParseBatch(data)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.record(data, b); err != nil {
		t.Fatal(err)
	}
}
