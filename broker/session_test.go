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

// inSession returns the headers of a transaction in a session.
func inSession(name string, seq, mark int, more ...string) []string {
	return append([]string{"Cantus-Session", name, "Cantus-Session-Seq", fmt.Sprint(seq), "Cantus-High-Water-Mark", fmt.Sprint(mark)}, more...)
}

// wantWrongSeq checks that a transaction was refused because of its number in
// its session, with the last one that counts; -1 is none.
func wantWrongSeq(t *testing.T, r subjects.Reply, last int, text string) {
	t.Helper()
	switch e := r.Error; {
	case e == nil || e.Reason != subjects.WrongLast || !strings.Contains(e.Message, text):
		t.Errorf("answer %+v, %+v, want wrong_last and %q", r, e, text)
	case (e.SessionSeq == nil) != (last < 0) || last >= 0 && *e.SessionSeq != uint64(last):
		t.Errorf("%s: the last number is %v, want %d", e.Message, e.SessionSeq, last)
	}
}

func TestSessions(t *testing.T) {
	dir, opts := t.TempDir(), broker.Options{Partitions: 1}
	n, nc := openNode(t, dir, opts)
	feed, err := nc.SubscribeSync("cantus.feed.0.>")
	if err != nil {
		t.Fatal(err)
	}

	// Three transactions with one lock and an old mark, without waiting: they
	// don't conflict with each other.
	var answers []*nats.Subscription
	for seq := 1; seq <= 3; seq++ {
		m := message("cantus.append.0", fmt.Sprint("n", seq), inSession("s", seq, 0, "Cantus-Write-Lock", "hot", "Cantus-Unless", `{"locks":["hot"]}`)...)
		m.Reply = nats.NewInbox()
		sub, err := nc.SubscribeSync(m.Reply)
		if err == nil {
			err = nc.PublishMsg(m)
		}
		if err != nil {
			t.Fatal(err)
		}
		answers = append(answers, sub)
	}
	for i, sub := range answers {
		m, err := sub.NextMsg(patience)
		if err != nil {
			t.Fatal(err)
		}
		var r subjects.Reply
		if err := json.Unmarshal(m.Data, &r); err != nil || r.Txid != uint64(i+1) {
			t.Errorf("number %d: %s %v", i+1, m.Data, err)
		}
	}
	all := readAll(t, nc, 0, 1)
	for i := range 3 {
		m, err := feed.NextMsg(patience)
		if err != nil {
			t.Fatal(err)
		}
		for _, got := range []*nats.Msg{all[i], m} {
			if h := got.Header; h.Get("Cantus-Session") != "s" || h.Get("Cantus-Session-Seq") != fmt.Sprint(i+1) || h.Get("Cantus-Msg-Id") != "" {
				t.Errorf("header %v", h)
			}
		}
	}

	checks := func() {
		t.Helper()
		// A repeat is known by its number, and compared by its payload.
		if r, _ := tryAppend(nc, "n2", inSession("s", 2, 0)...); r.Txid != 2 || !r.Duplicate {
			t.Errorf("a repeat: %+v, %v", r, r.Error)
		}
		if r, _ := tryAppend(nc, "other", inSession("s", 2, 0)...); r.Error == nil || r.Error.Reason != subjects.IDReused || r.Error.Txid != 2 || !strings.Contains(r.Error.Message, `number 2 of session "s" has another payload`) {
			t.Errorf("another payload: %+v", r.Error)
		}
		wantWrongSeq(t, appendOne(t, nc, inSession("s", 5, 0)...), 3, `number 5 of session "s" does not follow 3, the last one that was accepted: send 4 first`)
		wantWrongSeq(t, appendOne(t, nc, inSession("never", 2, 0)...), 0, `number 2 of session "never" does not follow 0, the last one that was accepted: send 1 first`)
		if r := appendOne(t, nc, inSession("s", 9, 1000)...); r.Error == nil || r.Error.Reason != subjects.Ahead {
			t.Errorf("a mark beyond the end: %+v", r.Error)
		}
		// Others conflict with the session, and it with them.
		r := appendOne(t, nc, "Cantus-High-Water-Mark", "2", "Cantus-Write-Lock", "hot")
		if r.Error == nil || r.Error.Txid != 3 {
			t.Errorf("without a session: %+v", r)
		}
		r = appendOne(t, nc, inSession("another", 1, 2, "Cantus-Read-Lock", "hot")...)
		if r.Error == nil || r.Error.Reason != subjects.Conflict || r.Error.Txid != 3 {
			t.Errorf("another session: %+v", r)
		}
	}
	checks()
	n, nc = reopen(t, n, dir, opts)
	checks()

	getNumber := func(seq int, name string) string {
		t.Helper()
		return ask(t, nc, "cantus.get.0", fmt.Sprintf(`{"session":%q,"session_seq":%d}`, name, seq)).Header.Get("Cantus-Txid")
	}
	if txid := getNumber(2, "s"); txid != "2" {
		t.Errorf("number 2 of s is txid %q", txid)
	}
	if m := ask(t, nc, "cantus.get.0", `{"session":"s","session_seq":4}`); !strings.Contains(m.Header.Get(subjects.HeaderError), `not_found: no transaction is number 4 of session "s"`) {
		t.Errorf("number 4 of s: %v", m.Header)
	}
	for _, body := range []string{`{"session":"s"}`, `{"session_seq":1}`, `{"session":"s","session_seq":0}`, `{"session":"a b","session_seq":1}`, `{"txid":1,"session":"s","session_seq":1}`} {
		if m := ask(t, nc, "cantus.get.0", body); m.Header.Get(subjects.HeaderErrorCode) != "400" {
			t.Errorf("%s: %v", body, m.Header)
		}
	}
	r := appendOne(t, nc, inSession("s", 4, 3, "Nats-Expected-Last-Sequence", "2")...)
	wantWrongSeq(t, r, 3, "expected last sequence 2 is not the high-water mark")
	appendOne(t, nc, "Cantus-Append-Lock", "hot") // txid 4
	r = appendOne(t, nc, inSession("s", 4, 3, "Cantus-Write-Lock", "hot")...)
	if r.Error == nil || r.Error.Reason != subjects.Conflict || r.Error.Txid != 4 {
		t.Errorf("after another one's: %+v", r)
	}
	wantWrongSeq(t, appendOne(t, nc, inSession("s", 5, 4)...), 3, "send 4 first")

	// An atomic batch has one number.
	items := [][]byte{item("a", "Cantus-Write-Lock", "hot"), item("b", "Cantus-Write-Lock", "hot")}
	wantCommitted(t, atomicBatch(t, nc, items, inSession("s", 4, 4)...), 5, 2, false)
	wantCommitted(t, atomicBatch(t, nc, items, inSession("s", 4, 4)...), 5, 2, true)
	wantAtomicRefusal(t, atomicBatch(t, nc, items[:1], inSession("s", 4, 4)...), subjects.IDReused, "txid 5")
	wantAtomicRefusal(t, atomicBatch(t, nc, items, inSession("s", 6, 4)...), subjects.WrongLast, "send 5 first")
	_, nc = reopen(t, n, dir, opts)
	wantCommitted(t, atomicBatch(t, nc, items, inSession("s", 4, 4)...), 5, 2, true)
	wantCommitted(t, atomicBatch(t, nc, items, inSession("s", 5, 4)...), 7, 2, false)
	for seq, want := range map[int]string{4: "5", 5: "7"} {
		if txid := getNumber(seq, "s"); txid != want {
			t.Errorf("number %d of s is txid %q, want %s", seq, txid, want)
		}
	}
	for _, m := range readAll(t, nc, 0, 5) {
		if m.Header.Get("Cantus-Session") != "s" {
			t.Errorf("txid %s has the header %v", m.Header.Get("Cantus-Txid"), m.Header)
		}
	}

	// In a batch message the order is that of the message.
	var batch [][]byte
	for _, seq := range []int{1, 2, 4, 3} {
		batch = append(batch, item(fmt.Sprint(seq), inSession("b", seq, 8, "Cantus-Write-Lock", "hot")...))
	}
	var reply subjects.BatchReply
	if err := json.Unmarshal(ask(t, nc, "cantus.batch.0", string(slices.Concat(batch...))).Data, &reply); err != nil {
		t.Fatal(err)
	}
	if rs := reply.Results; len(rs) != 3 || rs[0].Count != 2 || rs[1].Error == nil || *rs[1].Error.SessionSeq != 2 || rs[2].Txid != 11 {
		t.Errorf("batch: %+v", reply)
	}
}

// A request that can't be one of a session is refused with what would be right.
func TestSessionForm(t *testing.T) {
	_, nc := one(t, broker.Options{})
	for _, c := range []struct {
		headers []string
		text    string
	}{
		{[]string{"Cantus-Session", "s"}, "Cantus-Session-Seq is missing"},
		{[]string{"Cantus-Session-Seq", "1"}, "Cantus-Session is missing"},
		{inSession("s", 0, 0), "Cantus-Session-Seq is 0: the first transaction of a session has number 1"},
		{inSession("s", -1, 0), `Cantus-Session-Seq "-1" is not a number`},
		{inSession("a b", 1, 0), `Cantus-Session "a b"`},
		{inSession("", 1, 0), `Cantus-Session "": it is empty`},
		{inSession("s", 1, 0, "Cantus-Session", "s"), "Cantus-Session is given twice"},
		{inSession("s", 1, 0, "Nats-Msg-Id", "x"), "leave Nats-Msg-Id out"},
		{[]string{"Cantus-Session", "s", "Cantus-Session-Seq", "1"}, "Cantus-High-Water-Mark is missing: a session begins with one"},
	} {
		if r := appendOne(t, nc, c.headers...); r.Error == nil || r.Error.Reason != subjects.BadRequest || !strings.Contains(r.Error.Message, c.text) {
			t.Errorf("%v: %+v, want %q", c.headers, r.Error, c.text)
		}
	}
	if r := appendOne(t, nc, inSession("s", 1, 0)...); r.Error != nil {
		t.Error(r.Error.Message)
	}
	// From the second on no mark is needed.
	if r := appendOne(t, nc, "Cantus-Session", "s", "Cantus-Session-Seq", "2"); r.Error != nil {
		t.Error(r.Error.Message)
	}
}

// What a session has recorded does not count in the log either, where locks are
// looked up that the table has forgotten, and conditions after a restart.
func TestOwnTransactionsInTheLog(t *testing.T) {
	dir, opts := t.TempDir(), broker.Options{Partitions: 1, MaxLocks: 1}
	n, nc := openNode(t, dir, opts)
	passes := func(seq int, headers ...string) {
		t.Helper()
		if r := appendOne(t, nc, inSession("s", seq, 0, headers...)...); r.Error != nil {
			t.Fatalf("number %d: %s", seq, r.Error.Message)
		}
	}
	passes(1, "Cantus-Write-Lock", "x", "Cantus-Kind", "k")
	passes(2, "Cantus-Write-Lock", "y")
	passes(3, "Cantus-Write-Lock", "x")
	passes(4, "Cantus-Write-Lock", "y")
	_, nc = reopen(t, n, dir, opts)
	passes(5, "Cantus-Write-Lock", "x", "Cantus-Unless", `{"kinds":["k"]}`)
	passes(6, "Cantus-Write-Lock", "y")
	other := appendOne(t, nc, "Cantus-Append-Lock", "x", "Cantus-Kind", "k")
	appendOne(t, nc, "Cantus-Append-Lock", "y")
	if r := appendOne(t, nc, inSession("s", 7, 0, "Cantus-Write-Lock", "x")...); r.Error == nil || r.Error.Txid != other.Txid {
		t.Errorf("after another one's lock: %+v", r)
	}
	if r := appendOne(t, nc, inSession("s", 7, 0, "Cantus-Unless", `{"kinds":["k"]}`)...); r.Error == nil || r.Error.Txid != other.Txid {
		t.Errorf("after another one's kind: %+v", r)
	}
}

// What was trimmed is not known any more: the session can't go on, and can't
// begin again with the mark that it had.
func TestATrimmedSessionIsForgotten(t *testing.T) {
	_, nc := one(t, broker.Options{MsgIDWindow: time.Second})
	for seq := 1; seq <= 2; seq++ {
		if r := appendOne(t, nc, inSession("s", seq, 0)...); r.Error != nil {
			t.Fatal(r.Error.Message)
		}
	}
	var repeat subjects.Reply
	eventually(t, "the ids don't count any more", func() bool {
		repeat = appendOne(t, nc, inSession("s", 2, 0)...)
		return repeat.Error != nil
	})
	wantWrongSeq(t, repeat, 2, `number 2 of session "s" was committed before`)
	appendOne(t, nc)
	trim(t, nc, `{"before":4}`)
	wantWrongSeq(t, appendOne(t, nc, inSession("s", 3, 0)...), -1, "is not known, or was forgotten, and this is its number 3: begin another session")
	wantWrongSeq(t, appendOne(t, nc, inSession("s", 1, 2)...), -1, "may have begun after high-water mark 2 and be forgotten")
	if r := appendOne(t, nc, inSession("t", 1, 3)...); r.Error != nil {
		t.Error(r.Error.Message)
	}
}

// A session whose mark stays far behind goes on with its name without a search
// of the log, whatever others record, also after a restart and a trim.
func TestASessionThatIsAloneNeedsNoSearch(t *testing.T) {
	dir, opts := t.TempDir(), broker.Options{Partitions: 1, MaxLocks: 4, MsgIDWindow: time.Second}
	n, nc := openNode(t, dir, opts)
	seq, last := 0, uint64(0)
	passes := func() {
		t.Helper()
		seq++
		r := appendOne(t, nc, inSession("s", seq, 1, "Cantus-Write-Lock", "hot", "Cantus-Unless", `{"locks":["hot"],"kinds":["k"]}`)...)
		if r.Error != nil {
			t.Fatalf("number %d: %s", seq, r.Error.Message)
		}
		last = r.Txid
		for i := range 3 {
			appendOne(t, nc, "Cantus-Append-Lock", fmt.Sprint("other.", seq, ".", i))
		}
	}
	goesOn := func() {
		t.Helper()
		broker.EndLogChecks(n, 0)
		for range 20 {
			passes()
		}
	}
	before := appendOne(t, nc, "Cantus-Append-Lock", "hot")
	for range 3 {
		passes()
	}
	goesOn()
	n, nc = reopen(t, n, dir, opts)
	if r := appendOne(t, nc, inSession("s", seq+1, 0, "Cantus-Write-Lock", "hot")...); r.Error == nil || r.Error.Txid != before.Txid {
		t.Errorf("with a mark before another one's lock: %+v", r)
	}
	goesOn()
	if r := appendOne(t, nc, "Cantus-High-Water-Mark", "0", "Cantus-Read-Lock", "cold"); r.Error == nil || r.Error.Reason != subjects.Unavailable {
		t.Errorf("another one needs no search: %+v", r)
	}
	eventually(t, "all before the session's last are trimmed", func() bool {
		return trim(t, nc, fmt.Sprintf(`{"before":%d}`, last)).FirstTxid == last
	})
	goesOn()
	n, nc = reopen(t, n, dir, opts)
	goesOn()

	other := appendOne(t, nc, "Cantus-Append-Lock", "hot")
	if r := appendOne(t, nc, inSession("s", seq+1, 1, "Cantus-Write-Lock", "hot")...); r.Error == nil || r.Error.Txid != other.Txid {
		t.Errorf("after another one's lock: %+v", r)
	}
}

// A session's own transactions don't use up the steps that a condition may
// take: in one message, and one by one.
func TestManyOwnTransactionsUnderACondition(t *testing.T) {
	const count = 300
	for name, headers := range map[string][]string{
		"lock": {"Cantus-Unless", `{"locks":["hot"]}`, "Cantus-Append-Lock", "hot"},
		"kind": {"Cantus-Unless", `{"kinds":["k"]}`, "Cantus-Kind", "k"},
	} {
		_, nc := one(t, broker.Options{})
		var batch [][]byte
		for seq := 1; seq <= 40; seq++ {
			batch = append(batch, item("x", inSession("s", seq, 0, headers...)...))
		}
		var r subjects.BatchReply
		if err := json.Unmarshal(ask(t, nc, "cantus.batch.0", string(slices.Concat(batch...))).Data, &r); err != nil {
			t.Fatal(err)
		}
		if len(r.Results) != 1 || r.Results[0].Error != nil {
			t.Errorf("%s: in one message: %+v", name, r.Results)
		}
		answers, err := nc.SubscribeSync(nats.NewInbox())
		if err != nil {
			t.Fatal(err)
		}
		for seq := 41; seq <= count; seq++ {
			m := message("cantus.append.0", "x", inSession("s", seq, 0, headers...)...)
			m.Reply = answers.Subject
			if err := nc.PublishMsg(m); err != nil {
				t.Fatal(err)
			}
		}
		for seq := 41; seq <= count; seq++ {
			m, err := answers.NextMsg(patience)
			if err != nil {
				t.Fatal(err)
			}
			if m.Header.Get(subjects.HeaderError) != "" {
				t.Fatalf("%s, number %d: %s", name, seq, m.Data)
			}
		}
	}
}
