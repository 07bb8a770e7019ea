package broker_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

// checkCursorIs checks where the cursor c of partition 0 is, and whose.
func checkCursorIs(t *testing.T, nc *nats.Conn, txid uint64, owner string) {
	t.Helper()
	var c subjects.CursorReply
	if err := json.Unmarshal(ask(t, nc, "cantus.cursor.0.c", "").Data, &c); err != nil || c.Txid != txid || c.Owner != owner {
		t.Errorf("the cursor is at %d and %q's, want %d and %q: %v", c.Txid, c.Owner, txid, owner, err)
	}
}

// setCursor sets the cursor c of partition 0.
func setCursor(t *testing.T, nc *nats.Conn, body string) {
	t.Helper()
	var c subjects.CursorReply
	if err := json.Unmarshal(ask(t, nc, "cantus.cursor.0.c", body).Data, &c); err != nil || c.Error != nil {
		t.Fatalf("%s: %+v, %v", body, c.Error, err)
	}
}

// wantStays checks that a transaction was refused because of its cursor.
func wantStays(t *testing.T, r subjects.Reply, reason subjects.Reason, text string) {
	t.Helper()
	if e := r.Error; e == nil || e.Reason != reason || !strings.Contains(e.Message, text) {
		t.Errorf("answer %+v, %+v, want %s and %q", r, e, reason, text)
	}
}

// A transaction moves a cursor of its session as it commits, and with no other
// session does. Neither a restart nor a repeat changes where the cursor is.
func TestACursorMovesWithATransaction(t *testing.T) {
	dir, opts := t.TempDir(), broker.Options{Partitions: 1}
	n, nc := openNode(t, dir, opts)
	fill(t, nc) // up to txid 10
	feed, err := nc.SubscribeSync("cantus.feed.0.>")
	if err != nil {
		t.Fatal(err)
	}

	move := func(session string, seq int, to string) subjects.Reply {
		t.Helper()
		return appendOne(t, nc, inSession(session, seq, 10, "Cantus-Cursor", "c="+to)...)
	}
	wantStays(t, move("s", 1, "3"), subjects.WrongLast, `there is no cursor "c": give it to the session first, by "owner":"session:s"`)
	setCursor(t, nc, `{"txid":2}`)
	wantStays(t, move("s", 1, "3"), subjects.WrongLast, `cursor "c" stands at 2 and has no owner: give it to the session first, by "owner":"session:s","expected_owner":""`)
	setCursor(t, nc, `{"txid":2,"owner":"s","expected_owner":""}`) // a name that is the session's is not the session
	wantStays(t, move("s", 1, "3"), subjects.WrongLast, `cursor "c" stands at 2 and is s's, not the session's`)
	setCursor(t, nc, `{"txid":0}`)
	setCursor(t, nc, `{"txid":0,"expected":0,"owner":"session:s"}`) // nothing is read yet
	checkCursorIs(t, nc, 0, "session:s")
	r := move("t", 1, "3")
	wantStays(t, r, subjects.WrongLast, `cursor "c" stands at 0 and is session:s's, not the session's`)
	if r.Error.SessionSeq == nil || *r.Error.SessionSeq != 0 {
		t.Errorf("a refusal that is not about the number: %+v", r.Error)
	}
	wantStays(t, move("s", 1, "11"), subjects.Ahead, "cursor position 11")

	if r := move("s", 1, "3"); r.Txid != 11 {
		t.Fatalf("%+v", r.Error)
	}
	checkCursorIs(t, nc, 3, "session:s")
	m, err := feed.NextMsg(patience)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []*nats.Msg{m, readAll(t, nc, 0, 11)[0]} {
		if got := m.Header.Get("Cantus-Cursor"); got != "c=3" {
			t.Errorf("Cantus-Cursor is %q", got)
		}
	}
	var c subjects.CursorReply
	if err := json.Unmarshal(ask(t, nc, "cantus.cursor.0.c", "").Data, &c); err != nil || !c.Time.Equal(timeOf(t, nc, 11)) {
		t.Errorf("the cursor has the time %s, and its transaction %s", c.Time, timeOf(t, nc, 11))
	}

	// A repeat is one, whosever the cursor is by then.
	if r := move("s", 2, "5"); r.Txid != 12 {
		t.Fatalf("%+v", r.Error)
	}
	repeat := func() {
		t.Helper()
		if r := move("s", 1, "3"); r.Txid != 11 || !r.Duplicate {
			t.Errorf("a repeat: %+v", r)
		}
	}
	repeat()
	checkCursorIs(t, nc, 5, "session:s")
	n, nc = reopen(t, n, dir, opts) // with a snapshot
	repeat()
	checkCursorIs(t, nc, 5, "session:s")
	if r := move("s", 3, "4"); r.Txid != 13 { // it may go back
		t.Fatalf("%+v", r.Error)
	}
	n, nc = reopen(t, n, dir, opts)
	checkCursorIs(t, nc, 4, "session:s")

	// Another session takes it: the first one moves it no more, and its
	// transactions without the cursor go on.
	setCursor(t, nc, `{"txid":4,"expected":4,"owner":"session:t","expected_owner":"session:s"}`)
	wantStays(t, move("s", 4, "6"), subjects.WrongLast, `is session:t's, not the session's`)
	repeat()
	checkCursorIs(t, nc, 4, "session:t")
	if r := appendOne(t, nc, inSession("s", 4, 10)...); r.Txid != 14 {
		t.Errorf("%+v", r.Error)
	}
	if r := move("t", 1, "6"); r.Txid != 15 {
		t.Errorf("%+v", r.Error)
	}
	checkCursorIs(t, nc, 6, "session:t")
	setCursor(t, nc, `{"txid":0}`)
	checkCursorIs(t, nc, 0, "")
	wantStays(t, move("t", 2, "7"), subjects.WrongLast, "there is no cursor")
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
}

// timeOf returns the time of a transaction of partition 0.
func timeOf(t *testing.T, nc *nats.Conn, txid uint64) (at time.Time) {
	t.Helper()
	at, err := subjects.ParseTime(readAll(t, nc, 0, txid)[0].Header.Get("Cantus-Time"))
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// In batch messages each transaction may move the cursor, and in an atomic
// batch the whole does.
func TestACursorMovesWithABatch(t *testing.T) {
	dir, opts := t.TempDir(), broker.Options{Partitions: 1}
	n, nc := openNode(t, dir, opts)
	fill(t, nc)
	setCursor(t, nc, `{"txid":1,"owner":"session:s"}`)
	var batch [][]byte
	for i, of := range []struct {
		session string
		seq     int
	}{{"s", 1}, {"s", 2}, {"t", 1}, {"s", 3}} {
		batch = append(batch, item(of.session, inSession(of.session, of.seq, 10, "Cantus-Cursor", fmt.Sprint("c=", i+3))...))
	}
	var reply subjects.BatchReply
	if err := json.Unmarshal(ask(t, nc, "cantus.batch.0", string(slices.Concat(batch...))).Data, &reply); err != nil {
		t.Fatal(err)
	}
	if rs := reply.Results; len(rs) != 3 || rs[0].Count != 2 || rs[1].Error == nil || rs[1].Error.Reason != subjects.WrongLast || rs[2].Txid != 13 {
		t.Errorf("batch: %+v", reply)
	}
	checkCursorIs(t, nc, 6, "session:s")

	items := [][]byte{item("a"), item("b")}
	wantAtomicRefusal(t, atomicBatch(t, nc, items, inSession("t", 1, 10, "Cantus-Cursor", "c=7")...), subjects.WrongLast, "not the session's")
	wantCommitted(t, atomicBatch(t, nc, items, inSession("s", 4, 10, "Cantus-Cursor", "c=7")...), 14, 2, false)
	wantCommitted(t, atomicBatch(t, nc, items, inSession("s", 4, 10, "Cantus-Cursor", "c=7")...), 14, 2, true)
	checkCursorIs(t, nc, 7, "session:s")
	wantAtomicRefusal(t, atomicBatch(t, nc, [][]byte{item("a", "Cantus-Cursor", "c=7")}, inSession("s", 5, 10)...), subjects.BadRequest, "is given for the whole batch")
	_, nc = reopen(t, n, dir, opts)
	checkCursorIs(t, nc, 7, "session:s")
	for i, want := range []string{"c=7", ""} {
		if got := readAll(t, nc, 0, 14)[i].Header.Get("Cantus-Cursor"); got != want {
			t.Errorf("transaction %d of the atomic batch has Cantus-Cursor %q, want %q", i, got, want)
		}
	}
}

// What can't be a move is refused with what would be right.
func TestMoveForm(t *testing.T) {
	_, nc := one(t, broker.Options{})
	for _, c := range []struct {
		headers []string
		text    string
	}{
		{[]string{"Cantus-Cursor", "c=1"}, "Cantus-Session is missing: Cantus-Cursor moves a cursor of the transaction's session"},
		{inSession("s", 1, 0, "Cantus-Cursor", "c"), `Cantus-Cursor "c": give a cursor and the txid it moves to, such as billing=812`},
		{inSession("s", 1, 0, "Cantus-Cursor", "c=0"), "the position is a txid from 1 on"},
		{inSession("s", 1, 0, "Cantus-Cursor", "c=-1"), "the position is a txid from 1 on"},
		{inSession("s", 1, 0, "Cantus-Cursor", "c="), "the position is a txid from 1 on"},
		{inSession("s", 1, 0, "Cantus-Cursor", "c=18446744073709551616"), "the position is a txid from 1 on"},
		{inSession("s", 1, 0, "Cantus-Cursor", "=1"), `Cantus-Cursor: cursor "`},
		{inSession("s", 1, 0, "Cantus-Cursor", "a.b=1"), `Cantus-Cursor: cursor "`},
		{inSession("s", 1, 0, "Cantus-Cursor", "c=1", "Cantus-Cursor", "d=1"), "Cantus-Cursor is given twice"},
	} {
		wantStays(t, appendOne(t, nc, c.headers...), subjects.BadRequest, c.text)
	}
	for _, owner := range []string{"session:", "session:a.b", "session:" + strings.Repeat("x", 65)} {
		wantRefusal(t, ask(t, nc, "cantus.cursor.0.c", fmt.Sprintf(`{"txid":0,"owner":%q}`, owner)), subjects.BadRequest)
	}
}
