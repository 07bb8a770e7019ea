package broker_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

// atomicBatch sends an atomic batch with headers for the whole, and returns the
// answer.
func atomicBatch(t *testing.T, nc *nats.Conn, items [][]byte, headers ...string) subjects.BatchReply {
	t.Helper()
	headers = append([]string{"Cantus-Atomic", "true"}, headers...)
	m := ask(t, nc, "cantus.batch.0", string(slices.Concat(items...)), headers...)
	var r subjects.BatchReply
	if err := json.Unmarshal(m.Data, &r); err != nil {
		t.Fatalf("%v: %s", err, m.Data)
	}
	if (r.Error != nil) != (m.Header.Get(subjects.HeaderErrorCode) != "") || (r.Error != nil) == (r.Results != nil) {
		t.Errorf("answer %s with header %v", m.Data, m.Header)
	}
	return r
}

// wantCommitted checks that an atomic batch has been committed.
func wantCommitted(t *testing.T, r subjects.BatchReply, first uint64, count int, duplicate bool) {
	t.Helper()
	if r.Error != nil {
		t.Errorf("refused: %s", r.Error.Message)
	} else if got := r.Results; len(got) != 1 || got[0].Txid != first || got[0].Count != count || got[0].Index != 0 || got[0].Duplicate != duplicate || got[0].Time.IsZero() {
		t.Errorf("results %+v, want txid %d, %d of them, duplicate %t", got, first, count, duplicate)
	}
}

func wantAtomicRefusal(t *testing.T, r subjects.BatchReply, reason subjects.Reason, text string) {
	t.Helper()
	if r.Error == nil || r.Error.Reason != reason || !strings.Contains(r.Error.Message, text) {
		t.Errorf("answer %+v, error %+v, want %s and %q", r, r.Error, reason, text)
	}
}

func TestAtomicBatches(t *testing.T) {
	dir, opts := t.TempDir(), broker.Options{Partitions: 1}
	n, nc := openNode(t, dir, opts)
	feed, err := nc.SubscribeSync("cantus.feed.0.>")
	if err != nil {
		t.Fatal(err)
	}
	appendOne(t, nc, "Cantus-Append-Lock", "a")

	// The transactions of a batch don't conflict with each other.
	booking := [][]byte{
		item("one", "Cantus-Kind", "desk", "Cantus-Write-Lock", "desk.12"),
		item("two", "Cantus-Kind", "desk", "Cantus-Write-Lock", "desk.13, desk.12"),
		item("three", "X-App", "own"),
	}
	r := atomicBatch(t, nc, booking, "Cantus-High-Water-Mark", "1", "Nats-Msg-Id", "booking-1", "Cantus-Unless", `{"locks":["desk.>"]}`)
	wantCommitted(t, r, 2, 3, false)
	if *r.HighWaterMark < 4 {
		t.Errorf("high-water mark %d", *r.HighWaterMark)
	}
	all := readAll(t, nc, 0, 1)
	for i, want := range []nats.Header{
		{"Cantus-Txid": {"1"}},
		{"Cantus-Txid": {"2"}, "Cantus-Atomic": {"2-4"}, "Cantus-Msg-Id": {"booking-1"}, "Cantus-High-Water-Mark": {"1"}, "Cantus-Write-Lock": {"desk.12"}, "Cantus-Kind": {"desk"}},
		{"Cantus-Txid": {"3"}, "Cantus-Atomic": {"2-4"}, "Cantus-High-Water-Mark": {"1"}, "Cantus-Write-Lock": {"desk.13,desk.12"}},
		{"Cantus-Txid": {"4"}, "Cantus-Atomic": {"2-4"}, "X-App": {"own"}, "Cantus-Kind": {"tx"}},
	} {
		m, err := feed.NextMsg(patience)
		if err != nil {
			t.Fatal(err)
		}
		for _, got := range []*nats.Msg{all[i], m} {
			for _, key := range []string{"Cantus-Atomic", "Cantus-Msg-Id", "Cantus-Write-Lock"} {
				if got.Header.Get(key) != want.Get(key) {
					t.Errorf("txid %d: %s is %q, want %q", i+1, key, got.Header.Get(key), want.Get(key))
				}
			}
			for key, value := range want {
				if !slices.Equal(got.Header[key], value) {
					t.Errorf("txid %d: %s is %q, want %q", i+1, key, got.Header[key], value)
				}
			}
		}
	}

	refusals := func() {
		t.Helper()
		wantCommitted(t, atomicBatch(t, nc, booking, "Cantus-High-Water-Mark", "0", "Nats-Msg-Id", "booking-1"), 2, 3, true)
		other := slices.Clone(booking)
		other[2] = item("another three")
		wantAtomicRefusal(t, atomicBatch(t, nc, other, "Cantus-High-Water-Mark", "1", "Nats-Msg-Id", "booking-1"), subjects.IDReused, "txid 2")
		wantAtomicRefusal(t, atomicBatch(t, nc, booking[:2], "Cantus-High-Water-Mark", "1", "Nats-Msg-Id", "booking-1"), subjects.IDReused, "txid 2")
		// Its last transaction alone conflicts.
		late := [][]byte{item("x", "Cantus-Write-Lock", "desk.1"), item("y"), item("z", "Cantus-Write-Lock", "desk.13")}
		r := atomicBatch(t, nc, late, "Cantus-High-Water-Mark", "2")
		wantAtomicRefusal(t, r, subjects.Conflict, `write lock "desk.13" was recorded by txid 3`)
		if e := r.Error; len(e.Conflicts) != 1 || e.Lock != "desk.13" || e.Txid != 3 {
			t.Errorf("conflict %+v", e)
		}
		r = atomicBatch(t, nc, [][]byte{item("x"), item("y")}, "Cantus-High-Water-Mark", "1", "Cantus-Unless", `{"kinds":["desk"],"locks":["desk.13"]}`)
		wantAtomicRefusal(t, r, subjects.Conflict, "item 0 of Cantus-Unless (kind desk, lock desk.13) matches txid 3")
		wantAtomicRefusal(t, atomicBatch(t, nc, [][]byte{item("x"), item("y")}, "Cantus-High-Water-Mark", "999"), subjects.Ahead, "999")
		wantAtomicRefusal(t, atomicBatch(t, nc, [][]byte{item("x"), item("y")}, "Nats-Expected-Last-Sequence", "2"), subjects.WrongLast, "2")
		if mark := info(t, nc, 0).HighWaterMark; mark != 4 {
			t.Errorf("a refused batch was appended: high-water mark %d", mark)
		}
	}
	refusals()
	n, nc = reopen(t, n, dir, opts)
	refusals()

	// One transaction is an append.
	wantCommitted(t, atomicBatch(t, nc, [][]byte{item("one")}, "Nats-Msg-Id", "alone"), 5, 1, false)
	if r := appendOne(t, nc, "Nats-Msg-Id", "alone"); r.Error == nil || r.Error.Reason != subjects.IDReused {
		t.Errorf("the id was used: %+v", r)
	}
	if m := ask(t, nc, "cantus.append.0", "one", "Nats-Msg-Id", "alone"); !strings.Contains(string(m.Data), `"txid":5`) || !strings.Contains(string(m.Data), `"duplicate":true`) {
		t.Errorf("a repeat: %s", m.Data)
	}
	if got := readAll(t, nc, 0, 5)[0].Header.Get("Cantus-Atomic"); got != "" {
		t.Errorf("one transaction is an atomic batch: %q", got)
	}
	wantCommitted(t, atomicBatch(t, nc, [][]byte{item("x"), item("y")}, "Nats-Expected-Last-Sequence", "5"), 6, 2, false)
	_ = n

	// The same bytes in other payloads are other payloads.
	wantCommitted(t, atomicBatch(t, nc, [][]byte{item("ab"), item("c")}, "Nats-Msg-Id", "cut"), 8, 2, false)
	wantAtomicRefusal(t, atomicBatch(t, nc, [][]byte{item("a"), item("bc")}, "Nats-Msg-Id", "cut"), subjects.IDReused, "txid 8")
}

// What the leader has forgotten of the names of an atomic batch is looked up.
func TestAnAtomicBatchWithAnOldMark(t *testing.T) {
	_, nc := one(t, broker.Options{MaxLocks: 5})
	for i := range 50 {
		appendOne(t, nc, "Cantus-Append-Lock", fmt.Sprint("name.", i))
	}
	fresh := [][]byte{item("x", "Cantus-Append-Lock", "other"), item("y", "Cantus-Write-Lock", "new.name"), item("z", "Cantus-Write-Lock", "name.3")}
	wantCommitted(t, atomicBatch(t, nc, fresh, "Cantus-High-Water-Mark", "4"), 51, 3, false)
	r := atomicBatch(t, nc, fresh[1:], "Cantus-High-Water-Mark", "3")
	wantAtomicRefusal(t, r, subjects.Conflict, "recorded by txid 53")
	old := [][]byte{item("x", "Cantus-Write-Lock", "name.10"), item("y", "Cantus-Write-Lock", "name.7")}
	r = atomicBatch(t, nc, old, "Cantus-High-Water-Mark", "3")
	wantAtomicRefusal(t, r, subjects.Conflict, `"name.10" was recorded by txid 11`)
	if e := r.Error; e != nil && (len(e.Conflicts) != 2 || e.Conflicts[1].Txid != 8 || e.Conflicts[0].Forgotten) {
		t.Errorf("conflicts %+v", e.Conflicts)
	}
}

func TestMalformedAtomicBatches(t *testing.T) {
	_, nc := one(t, broker.Options{})
	two := [][]byte{item("a"), item("b")}
	for _, c := range []struct {
		items   [][]byte
		headers []string
		text    string
	}{
		{two, []string{"Cantus-Atomic", "true"}, `Cantus-Atomic "true": give "true" once`},
		{two, []string{"Cantus-Kind", "a"}, `header "Cantus-Kind" is on the batch message: put it into each transaction's header block`},
		{two, []string{"Cantus-Write-Lock", "a"}, `header "Cantus-Write-Lock" is on the batch message`},
		{two, []string{"Cantus-High-Water-Mark", "1", "Cantus-High-Water-Mark", "1"}, "Cantus-High-Water-Mark is given twice"},
		{two, []string{"Cantus-Unless", `{"kinds":["a"]}`}, "Cantus-High-Water-Mark is missing"},
		{two, []string{"Nats-Msg-Id", strings.Repeat("x", subjects.MaxMsgID+1)}, "Nats-Msg-Id has 129 bytes"},
		{[][]byte{item("a"), item("b", "Cantus-Write-Lock", "b")}, nil, `transaction 2 of the atomic batch: Cantus-High-Water-Mark is missing: lock "b"`},
		{[][]byte{item("a"), item("b", "Nats-Msg-Id", "b")}, nil, `transaction 2 of the atomic batch: header "Nats-Msg-Id" is given for the whole batch: put it on the message`},
		{[][]byte{item("a"), item("b", "Cantus-High-Water-Mark", "0")}, nil, `header "Cantus-High-Water-Mark" is given for the whole batch`},
		{[][]byte{item("a", "Cantus-Unless", `{"kinds":["a"]}`), item("b")}, nil, `transaction 1 of the atomic batch: header "Cantus-Unless" is given for the whole batch`},
		{[][]byte{item("a", "Nats-Expected-Last-Sequence", "0"), item("b")}, nil, `header "Nats-Expected-Last-Sequence" is given for the whole batch`},
		{[][]byte{item("a", "Cantus-Atomic", "true"), item("b")}, nil, `header "Cantus-Atomic" belongs on a batch message`},
		{[][]byte{item("a"), {0, 0}}, nil, "batch frame, transaction 2"},
		{nil, nil, "batch frame is empty"},
	} {
		r := atomicBatch(t, nc, c.items, c.headers...)
		wantAtomicRefusal(t, r, subjects.BadRequest, c.text)
	}
	// What is given for the whole is sent to readers with each transaction.
	large := item(strings.Repeat("x", subjects.MaxTransaction-100))
	wantAtomicRefusal(t, atomicBatch(t, nc, [][]byte{large, item("b")}, "Nats-Msg-Id", strings.Repeat("i", subjects.MaxMsgID)), subjects.TooLarge, "transaction 1 of the atomic batch")
	for _, value := range []string{"", "false", "1", "TRUE"} {
		if m := ask(t, nc, "cantus.batch.0", string(item("a")), "Cantus-Atomic", value); !strings.Contains(string(m.Data), `give \"true\" once, or leave it out`) {
			t.Errorf("Cantus-Atomic %q: %s", value, m.Data)
		}
	}
	for header, text := range map[string]string{"Cantus-Atomic": "belongs on a batch message", "cantus-atomic": "belongs on a batch message"} {
		if m := ask(t, nc, "cantus.append.0", "x", header, "true"); !strings.Contains(string(m.Data), text) {
			t.Errorf("an append with %s: %s", header, m.Data)
		}
	}
	if m := ask(t, nc, "cantus.batch.0", string(item("a")), "Nats-Msg-Id", "1"); !strings.Contains(string(m.Data), "or add Cantus-Atomic: true") {
		t.Errorf("a batch that is not atomic: %s", m.Data)
	}
	if mark := info(t, nc, 0).HighWaterMark; mark != 0 {
		t.Errorf("high-water mark %d", mark)
	}
}

// A refusal that can't name all conflicts names the newest.
func TestManyConflictsOfAnAtomicBatch(t *testing.T) {
	_, nc := one(t, broker.Options{})
	var items [][]byte
	for i := range 3000 {
		var names []string
		for j := range 5 {
			names = append(names, fmt.Sprintf("lock.%04d.%d.abcdefghijklmnopqrst", i, j))
		}
		items = append(items, item("", "Cantus-Write-Lock", strings.Join(names, ",")))
	}
	wantCommitted(t, atomicBatch(t, nc, items, "Cantus-High-Water-Mark", "0"), 1, 3000, false)
	r := atomicBatch(t, nc, items, "Cantus-High-Water-Mark", "0")
	wantAtomicRefusal(t, r, subjects.Conflict, `write lock "lock.2999.0.abcdefghijklmnopqrst" was recorded by txid 3000`)
	if e := r.Error; e != nil && (e.Txid != 3000 || !strings.HasPrefix(e.Lock, "lock.2999.") || len(e.Conflicts) != 16 || e.Conflicts[15].Txid != 2997) {
		t.Errorf("%+v", e)
	}
}

func TestNotAfter(t *testing.T) {
	_, nc := one(t, broker.Options{})
	const past, future = "2020-01-01T00:00:00Z", "2100-01-01T00:00:00.5+02:00"
	if r := appendOne(t, nc, "Cantus-Not-After", future, "Nats-Msg-Id", "a"); r.Txid != 1 {
		t.Errorf("%+v", r.Error)
	}
	r := appendOne(t, nc, "Cantus-Not-After", past)
	if r.Error == nil || r.Error.Reason != subjects.Expired || r.Error.Code != 408 || !strings.Contains(r.Error.Message, "by "+past+", which has passed") {
		t.Errorf("%+v", r.Error)
	}
	// A repeat is a repeat, and what comes later is not looked at.
	if r := appendOne(t, nc, "Cantus-Not-After", past, "Nats-Msg-Id", "a"); r.Txid != 1 || !r.Duplicate {
		t.Errorf("%+v", r)
	}
	if r := appendOne(t, nc, "Cantus-Not-After", past, "Nats-Expected-Last-Sequence", "99"); r.Error == nil || r.Error.Reason != subjects.Expired {
		t.Errorf("%+v", r)
	}
	if r := appendOne(t, nc, "Cantus-Not-After", past, "Cantus-High-Water-Mark", "99"); r.Error == nil || r.Error.Reason != subjects.Ahead {
		t.Errorf("%+v", r)
	}
	two := [][]byte{item("a"), item("b")}
	wantAtomicRefusal(t, atomicBatch(t, nc, two, "Cantus-Not-After", past), subjects.Expired, past)
	wantCommitted(t, atomicBatch(t, nc, two, "Cantus-Not-After", future), 2, 2, false)
	two[1] = item("b", "Cantus-Not-After", future)
	wantAtomicRefusal(t, atomicBatch(t, nc, two), subjects.BadRequest, `header "Cantus-Not-After" is given for the whole batch`)
	m := ask(t, nc, "cantus.batch.0", string(slices.Concat(two[0], item("x", "Cantus-Not-After", past), item("y"))))
	var reply subjects.BatchReply
	if err := json.Unmarshal(m.Data, &reply); err != nil || len(reply.Results) != 3 || reply.Results[1].Error == nil || reply.Results[1].Error.Reason != subjects.Expired {
		t.Errorf("%s", m.Data)
	}
	for _, value := range []string{"", "tomorrow", "2026-11-01", "1600-01-01T00:00:00Z"} {
		if r := appendOne(t, nc, "Cantus-Not-After", value); r.Error == nil || r.Error.Reason != subjects.BadRequest || !strings.Contains(r.Error.Message, "Cantus-Not-After: ") {
			t.Errorf("%q: %+v", value, r.Error)
		}
	}
	if r := appendOne(t, nc, "Cantus-Not-After", future, "Cantus-Not-After", future); r.Error == nil || !strings.Contains(r.Error.Message, "is given twice") {
		t.Errorf("%+v", r.Error)
	}
	if got := readAll(t, nc, 0, 1)[0].Header.Get("Cantus-Not-After"); got != "" {
		t.Errorf("it is stored: %q", got)
	}
}

// A node that would not understand an atomic batch must not get one.
func TestNoAtomicBatchBeforeAnUpgrade(t *testing.T) {
	c := newNodes(t, 3, broker.Options{Partitions: 1})
	old := map[string]bool{"n3": true}
	c.change = func(name string, o *broker.Options) {
		if old[name] {
			broker.OldRecords(o)
		}
	}
	c.start(c.names...)
	c.awaitPlaced("n1")
	nc := c.conn("n1")
	two := [][]byte{item("a"), item("b")}
	eventually(t, "it is refused", func() bool {
		r := atomicBatch(t, nc, two)
		return r.Error != nil && r.Error.Reason == subjects.Unavailable && strings.Contains(r.Error.Message, "node n3 runs a version without atomic batches")
	})
	give := func() *subjects.Error {
		t.Helper()
		var r subjects.CursorReply
		if err := json.Unmarshal(ask(t, nc, "cantus.cursor.0.c", `{"txid":0,"owner":"session:s"}`).Data, &r); err != nil {
			t.Fatal(err)
		}
		return r.Error
	}
	const noMoves = "node n3 runs a version without cursors that move with transactions"
	if e := give(); e == nil || e.Reason != subjects.Unavailable || !strings.Contains(e.Message, noMoves) {
		t.Errorf("a cursor is given to a session: %v", e)
	}
	keep(t, nc, 0, "x", "k")
	c.stop("n3")
	delete(old, "n3")
	c.start("n3")
	eventually(t, "it is accepted", func() bool { return atomicBatch(t, nc, two).Error == nil })
	if e := give(); e != nil {
		t.Errorf("a cursor is given to a session: %v", e)
	}
	first := info(t, nc, 0).HighWaterMark - 1
	c.checkSame(0, c.names...)
	old["n3"] = true
	c.stop("n3")
	c.start("n3")
	eventually(t, "it is refused again", func() bool { return atomicBatch(t, nc, two).Error != nil })
	c.stop("n3")
	if r := atomicBatch(t, nc, two); r.Error == nil {
		t.Error("a member that is away does not count")
	}
	c.operate("n1", subjects.AdminRequest{Node: "n3"}, "cluster", "remove")
	eventually(t, "a node that is no member does not count", func() bool { return atomicBatch(t, nc, two).Error == nil })
	if got := readAll(t, nc, 0, first)[0].Header.Get("Cantus-Atomic"); got != fmt.Sprintf("%d-%d", first, first+1) {
		t.Errorf("Cantus-Atomic %q", got)
	}
}
