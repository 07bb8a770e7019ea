package broker

import (
	"errors"
	"fmt"
	"testing"

	"github.com/cantuslog/cantus/lockmgr"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// moving returns a request that moves the cursor c in session s.
func moving() *request {
	return &request{tx: wal.Transaction{Session: []byte("s"), SessionSeq: 1, Cursor: []byte("c"), CursorTxid: 1}}
}

// A follower may have shown a transaction that its leader has not applied yet.
// A cursor that is to be set or moved there is not ahead of the log.
func TestAPositionInFlightIsNotAhead(t *testing.T) {
	s := newTestReplica()
	s.cursors["c"] = cursor{1, 1, "session:s"}
	refusals := func() (moved, set *subjects.Error) {
		t.Helper()
		set, _ = errors.AsType[*subjects.Error](s.checkCursor(cursorCall{name: "c", Cursor: wal.Cursor{Txid: 1}}, nil))
		return s.staysWhere(moving(), 0), set
	}
	if moved, set := refusals(); moved.Reason != subjects.Ahead || set.Reason != subjects.Ahead {
		t.Errorf("past the end: %v, %v", moved, set)
	}
	tx := lockmgr.Transaction{}
	s.certifier.table.Check(&tx, 1)
	s.certifier.table.Enter(&tx, 1)
	if moved, set := refusals(); moved.Reason != subjects.Unavailable || set.Reason != subjects.Unavailable {
		t.Errorf("in flight: %v, %v", moved, set)
	}
}

// A cursor write is in flight until it is applied, or is known not to be in the
// log. One whose outcome is unknown is until another tenure begins.
func TestCursorWritesInFlight(t *testing.T) {
	s := newTestReplica()
	s.mark.Store(1)
	s.cursors["c"] = cursor{1, 1, "session:s"}
	o := newCursorOrder(s)
	check := func(what string, free bool) {
		t.Helper()
		r := moving()
		o.hold()
		o.check([]*request{r}, 0)
		o.release()
		if (r.stays == nil) != free {
			t.Errorf("%s: %v", what, r.stays)
		}
	}
	check("none in flight", true)
	write := func(name string, err error) func() {
		p := o.write([]byte(name), []string{"b", name}, func([]byte) proposal { return outcomeIs{applied{}, err} })
		return func() {
			if _, got := p.Wait(); !errors.Is(got, err) {
				t.Errorf("%v, want %v", got, err)
			}
		}
	}
	for _, err := range []error{raftstore.ErrNotLeader, raftstore.ErrClosed, wal.ErrNoSpace} {
		wait := write("c", err)
		check("one in flight", false)
		wait()
		check("one that was not appended", true)
	}
	write("other", nil)
	check("one of another cursor", true)

	write("c", raftstore.ErrUnknown)()
	check("one with an unknown outcome", false)
	o.begin()
	check("another tenure", true)

	write("c", nil)()
	write("c", nil)() // of the same bytes
	s.endWrite([]byte("c"))
	check("the first of two is applied", false)
	s.endWrite([]byte("c"))
	check("both are applied", true)
}

// Writes that are committed in one entry don't make more cursors than a
// partition may have.
func TestCursorLimitWithinAnEntry(t *testing.T) {
	s := newTestReplica()
	s.mark.Store(1)
	for i := range subjects.MaxCursors - 2 {
		s.cursors[fmt.Sprint(i)] = cursor{1, 1, ""}
	}
	write := func(name string, txid uint64) cursorCall {
		return cursorCall{name: name, write: true, Cursor: wal.Cursor{Name: []byte(name), Txid: txid}}
	}
	var calls []cursorCall
	for i, c := range []struct {
		cursorCall
		fits bool
	}{
		{write("7", 1), true}, {write("new", 1), true}, {write("new", 1), true}, {write("gone", 0), true},
		{cursorCall{name: "read"}, true}, {write("last", 1), true}, {write("more", 1), false}, {write("new", 1), true},
	} {
		err := s.checkCursor(c.cursorCall, calls)
		if (err == nil) != c.fits {
			t.Errorf("write %d, of %q: %v", i, c.name, err)
		}
		if err == nil {
			calls = append(calls, c.cursorCall)
		}
	}
}
