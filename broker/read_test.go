package broker_test

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

const nanos = time.RFC3339Nano

func timesNanosecond(i int) time.Duration { return time.Duration(i) }

// fill appends ten transactions: kinds a and b in turn, locks l.0 to l.4, of
// which the odd ones are read locks, and ten bytes of payload each.
func fill(t *testing.T, nc *nats.Conn) {
	t.Helper()
	for i := range 10 {
		kind, mode := "a", write
		if i%2 == 1 {
			kind, mode = "b", read
		}
		r := appendTx(t, nc, "cantus.append.0", fmt.Sprintf("payload-%02d", i+1), "Cantus-Kind", kind, mark, fmt.Sprint(i), mode, fmt.Sprint("l.", i%5))
		if r.Txid != uint64(i+1) {
			t.Fatalf("append %d: %+v", i, r)
		}
	}
}

func TestReads(t *testing.T) {
	_, nc := one(t, broker.Options{})
	fill(t, nc)
	all := []uint64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	for _, c := range []struct {
		body string
		want []uint64
		next uint64
	}{
		{``, all, 11},
		{` `, all, 11},
		{`{}`, all, 11},
		{`{"from":8}`, all[7:], 11},
		{`{"from":10}`, all[9:], 11},
		{`{"from":11}`, nil, 11},
		{`{"max":3}`, all[:3], 4},
		{`{"from":4,"max":3}`, all[3:6], 7},
		{`{"max":10}`, all, 11},
		{`{"max_bytes":25}`, all[:2], 3},
		{`{"max_bytes":1}`, all[:1], 2}, // the first is given however large
		{`{"kinds":["a"]}`, []uint64{1, 3, 5, 7, 9}, 11},
		{`{"kinds":["a"],"max":2}`, []uint64{1, 3}, 4},
		{`{"kinds":["b","a"]}`, all, 11},
		{`{"kinds":[]}`, all, 11},
		{`{"kinds":["none"]}`, nil, 11},
		{`{"lock":"l.0"}`, []uint64{1}, 11}, // txid 6 read it
		{`{"lock":"l.>"}`, []uint64{1, 3, 5, 7, 9}, 11},
		{`{"lock":">","from":4}`, []uint64{5, 7, 9}, 11},
		{`{"lock":"l.1"}`, []uint64{7}, 11},
		{`{"lock":"l.1","kinds":["b"]}`, nil, 11},
		{`{"lock":"l"}`, nil, 11},
		{`{"max":65536,"max_bytes":8388608,"wait":"60s"}`, all, 11},
	} {
		for _, subject := range []string{"cantus.read.0", "cantus.replica.read.0"} {
			a := collect(t, nc, subject, c.body)
			if a.refusal != nil {
				t.Errorf("%s %s: refused: %s", subject, c.body, a.refusal.Data)
				continue
			}
			ids, payloads := txids(t, a.transactions)
			if !slices.Equal(ids, c.want) || a.next != c.next || a.mark != 10 {
				t.Errorf("%s %s: %v, next %d, mark %d; want %v, next %d", subject, c.body, ids, a.next, a.mark, c.want, c.next)
			}
			samePacked(t, nc, subject, c.body, a)
			for i, p := range payloads {
				if p != fmt.Sprintf("payload-%02d", ids[i]) {
					t.Errorf("%s %s: txid %d has payload %q", subject, c.body, ids[i], p)
				}
			}
			if len(a.end.Data) != 0 || a.end.Header.Get("Description") != "End of read" {
				t.Errorf("%s: the end is %q, %v", subject, a.end.Data, a.end.Header)
			}
		}
	}
	for _, m := range collect(t, nc, "cantus.read.0", `{"headers_only":true}`).transactions {
		if len(m.Data) != 0 || m.Header.Get(subjects.HeaderTxid) == "" {
			t.Errorf("headers only: %q, %v", m.Data, m.Header)
		}
	}
}

// samePacked checks that a packed read returns the same as a plain one.
func samePacked(t *testing.T, nc *nats.Conn, subject, body string, plain answers) {
	t.Helper()
	if body = strings.TrimSpace(body); body == "" || body == "{}" {
		body = `{"packed":true}`
	} else {
		body = `{"packed":true,` + body[1:]
	}
	a := collect(t, nc, subject, body)
	if a.refusal != nil || a.next != plain.next || a.mark != plain.mark {
		t.Fatalf("%s: next %d, mark %d, want %d and %d; refusal %v", body, a.next, a.mark, plain.next, plain.mark, a.refusal)
	}
	rest := plain.transactions
	for _, m := range a.transactions {
		if len(m.Header) != 1 || len(m.Data) == 0 {
			t.Errorf("%s: a packed message has the headers %v and %d bytes", body, m.Header, len(m.Data))
		}
		for _, got := range unpack(t, m) {
			if len(rest) == 0 {
				t.Fatalf("%s: there are more than the plain read gave", body)
			}
			want := rest[0]
			want.Header.Del(subjects.HeaderPrevious)
			if !reflect.DeepEqual(got.Header, want.Header) || !bytes.Equal(got.Data, want.Data) {
				t.Errorf("%s: %v %.40q, the plain read gave %v %.40q", body, got.Header, got.Data, want.Header, want.Data)
			}
			rest = rest[1:]
		}
	}
	if len(rest) > 0 {
		t.Errorf("%s: %d are missing that the plain read gave", body, len(rest))
	}
}

// unpack returns a packed message's transactions as plain ones.
func unpack(t *testing.T, m *nats.Msg) (all []*nats.Msg) {
	t.Helper()
	for data := m.Data; len(data) > 0; {
		var p subjects.Packed
		var err error
		if p, data, err = subjects.NextPacked(data); err != nil {
			t.Fatal(err)
		}
		all = append(all, asMessage(t, p))
	}
	return all
}

// asMessage returns a packed transaction of partition 0 as a plain read has it.
func asMessage(t *testing.T, p subjects.Packed) *nats.Msg {
	t.Helper()
	m := nats.NewMsg("")
	m.Data = p.Payload
	err := subjects.ScanBlock(p.Header, func(key, value []byte) error {
		m.Header.Add(string(key), string(value))
		return nil
	})
	if err != nil {
		t.Fatalf("%d: %v", p.Txid, err)
	}
	if m.Header.Get(subjects.HeaderKind) == "" {
		m.Header.Set(subjects.HeaderKind, subjects.DefaultKind)
	}
	m.Header.Set(subjects.HeaderTxid, fmt.Sprint(p.Txid))
	m.Header.Set(subjects.HeaderPartition, "0")
	m.Header.Set(subjects.HeaderTime, time.Unix(0, p.Time).UTC().Format(nanos))
	m.Header.Set(subjects.HeaderMsgID, fmt.Sprintf("cantus.0.%d", p.Txid))
	return m
}

func TestPackedReads(t *testing.T) {
	_, nc := one(t, broker.Options{})
	appendTx(t, nc, "cantus.append.0", "") // nothing but itself
	appendTx(t, nc, "cantus.append.0", "all", subjects.HeaderMsgID, "id", mark, "1", "Cantus-Kind", "pay", write, "a.b", write, "c.>", read, "d",
		appendLock, "e", "X-App", "one", "X-App", "two", "x-other", "")
	large := strings.Repeat("x", 100_000)
	for _, payload := range []string{large, "small", large, large, strings.Repeat("y", 900_000), "small", "small"} {
		appendTx(t, nc, "cantus.append.0", payload)
	}
	for _, body := range []string{`{}`, `{"from":2,"max":1}`, `{"headers_only":true}`, `{"max_bytes":8388608}`, `{"max_bytes":8388608,"from":5}`} {
		samePacked(t, nc, "cantus.read.0", body, collect(t, nc, "cantus.read.0", body))
	}
	// Neighbours share messages, as far as these stay small.
	a := collect(t, nc, "cantus.read.0", `{"packed":true,"max_bytes":8388608}`)
	var sizes []int
	for _, m := range a.transactions {
		sizes = append(sizes, len(m.Data)/1000)
	}
	if want := []int{100, 100, 100, 900, 0}; !slices.Equal(sizes, want) {
		t.Errorf("the messages have %v thousand bytes, want %v", sizes, want)
	}
}

func TestRefusedReads(t *testing.T) {
	_, nc := one(t, broker.Options{})
	fill(t, nc)
	for _, c := range []struct {
		body   string
		reason subjects.Reason
	}{
		{`{"from":12}`, subjects.Ahead},
		{`{"from":18446744073709551615,"wait":"1s"}`, subjects.Ahead},
		{`{"from":0}`, subjects.BadRequest},
		{`{"from":-1}`, subjects.BadRequest},
		{`{"from":1.5}`, subjects.BadRequest},
		{`{"from":"1"}`, subjects.BadRequest},
		{`{"from":18446744073709551616}`, subjects.BadRequest},
		{`{"from":1,"from":2}`, subjects.BadRequest},
		{`{"FROM":1}`, subjects.BadRequest},
		{`{"form":1}`, subjects.BadRequest},
		{`{"max":0}`, subjects.BadRequest},
		{`{"max":65537}`, subjects.BadRequest},
		{`{"max_bytes":0}`, subjects.BadRequest},
		{`{"max_bytes":8388609}`, subjects.BadRequest},
		{`{"wait":"61s"}`, subjects.BadRequest},
		{`{"wait":"-1s"}`, subjects.BadRequest},
		{`{"wait":"soon"}`, subjects.BadRequest},
		{`{"wait":"+1s"}`, subjects.BadRequest},
		{`{"wait":"-0s"}`, subjects.BadRequest},
		{`{"wait":".5s"}`, subjects.BadRequest},
		{`{"wait":"0"}`, subjects.BadRequest},
		{`{"wait":5}`, subjects.BadRequest},
		{`{"packed":1}`, subjects.BadRequest},
		{`{"kinds":["a.b"]}`, subjects.BadRequest},
		{`{"kinds":[""]}`, subjects.BadRequest},
		{`{"kinds":"a"}`, subjects.BadRequest},
		{`{"lock":"a.*"}`, subjects.BadRequest},
		{`{"lock":""}`, subjects.BadRequest},
		{`{`, subjects.BadRequest},
		{`[]`, subjects.BadRequest},
		{`7`, subjects.BadRequest},
		{`{} {}`, subjects.BadRequest},
		{`{}}`, subjects.BadRequest},
		{"\xff", subjects.BadRequest},
	} {
		a := collect(t, nc, "cantus.read.0", c.body)
		if a.refusal == nil {
			t.Errorf("%s: answered", c.body)
			continue
		}
		wantRefusal(t, a.refusal, c.reason)
		if !strings.Contains(string(a.refusal.Data), `"high_water_mark":10`) || !strings.Contains(string(a.refusal.Data), `"partition":0`) {
			t.Errorf("%s: %s", c.body, a.refusal.Data)
		}
	}
	// A replica does not know how far the others are.
	if a := collect(t, nc, "cantus.replica.read.0", `{"from":99}`); a.refusal != nil || a.next != 99 || a.mark != 10 {
		t.Errorf("%+v", a)
	}
}

func TestLongPoll(t *testing.T) {
	_, nc := one(t, broker.Options{})
	plain := begin(t, nc, "cantus.read.0", `{"wait":"60s"}`)
	byKind := begin(t, nc, "cantus.read.0", `{"wait":"60s","kinds":["b"]}`)
	byLock := begin(t, nc, "cantus.read.0", `{"wait":"60s","lock":"l.3"}`)
	replica := begin(t, nc, "cantus.replica.read.0", `{"from":3,"wait":"60s"}`)
	short := begin(t, nc, "cantus.read.0", `{"wait":"1ms"}`)
	if a := short(t); len(a.transactions) != 0 || a.next != 1 {
		t.Errorf("a wait that is over: %+v", a)
	}
	first := func(wait func(*testing.T) answers) string {
		a := wait(t)
		if len(a.transactions) == 0 {
			t.Fatalf("nothing: %+v", a)
		}
		ids, _ := txids(t, a.transactions)
		// A filter may have looked at more by then, up to the log's end.
		if end := ids[len(ids)-1] + 1; a.next < end || a.next > a.mark+1 {
			t.Errorf("next is %d after %v, up to %d", a.next, ids, a.mark)
		}
		return fmt.Sprint(ids[0])
	}
	fill(t, nc)
	if got := first(plain) + first(byKind) + first(byLock) + first(replica); got != "1293" {
		t.Errorf("the first ones are %s", got)
	}
}

// Reads that wait when the node closes are answered.
func TestCloseEndsLongPolls(t *testing.T) {
	n, nc := one(t, broker.Options{})
	var waits []func(*testing.T) answers
	for _, subject := range []string{"cantus.read.0", "cantus.replica.read.0"} {
		waits = append(waits, begin(t, nc, subject, `{"wait":"60s"}`))
	}
	info(t, nc, 0) // both are under way: the node takes them in order
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	for _, wait := range waits {
		a := wait(t)
		if a.refusal == nil {
			t.Fatalf("%+v", a)
		}
		wantRefusal(t, a.refusal, subjects.Unavailable)
	}
}

// A read is large enough to be sent in parts.
func TestLargeReads(t *testing.T) {
	_, nc := one(t, broker.Options{})
	payload := strings.Repeat("x", 100_000)
	for range 40 {
		appendTx(t, nc, "cantus.append.0", payload)
	}
	for body, want := range map[string]int{`{}`: 10, `{"max_bytes":8388608}`: 40, `{"max_bytes":8388608,"max":39}`: 39, `{"from":40}`: 1} {
		if a := collect(t, nc, "cantus.read.0", body); len(a.transactions) != want {
			t.Errorf("%s: %d transactions, want %d", body, len(a.transactions), want)
		}
	}
}

func TestGet(t *testing.T) {
	_, nc := one(t, broker.Options{})
	fill(t, nc)
	for body, want := range map[string]string{
		`{"txid":1}`:     "1",
		`{"txid":10}`:    "10",
		`{"lock":"l.0"}`: "1", // txid 6 read it
		`{"lock":"l.4"}`: "5",
		`{"lock":"l.3"}`: "9",
		`{"lock":"l.>"}`: "9",
		`{"lock":">"}`:   "9",
	} {
		m := ask(t, nc, "cantus.get.0", body)
		if got := m.Header.Get(subjects.HeaderTxid); got != want || string(m.Data) != fmt.Sprintf("payload-%02s", want) {
			t.Errorf("%s: txid %s, %q; want %s", body, got, m.Data, want)
		}
	}
	for body, reason := range map[string]subjects.Reason{
		`{"txid":11}`:           subjects.Ahead,
		`{"txid":0}`:            subjects.BadRequest,
		`{}`:                    subjects.BadRequest,
		``:                      subjects.BadRequest,
		`{"txid":1,"lock":"a"}`: subjects.BadRequest,
		`{"lock":"a..b"}`:       subjects.BadRequest,
		`{"txids":1}`:           subjects.BadRequest,
		`{"lock":"l"}`:          subjects.NotFound,
		`{"lock":"unknown"}`:    subjects.NotFound,
		`{"lock":"l.0.>"}`:      subjects.NotFound,
	} {
		wantRefusal(t, ask(t, nc, "cantus.get.0", body), reason)
	}
}

// A lock that the table has forgotten is not found, and the answer says why.
// A lock that the lock table has forgotten is found in the index, or without
// one in the log.
func TestGetAForgottenLock(t *testing.T) {
	for _, noIndex := range []bool{false, true} {
		getAForgottenLock(t, broker.Options{MaxLocks: 2, NoIndex: noIndex})
	}
}

func getAForgottenLock(t *testing.T, opts broker.Options) {
	t.Helper()
	_, nc := one(t, opts)
	for i := range 4 {
		appendTx(t, nc, "cantus.append.0", "x", appendLock, fmt.Sprint("l.", i))
	}
	for i := range 4 {
		if m := ask(t, nc, "cantus.get.0", fmt.Sprintf(`{"lock":"l.%d"}`, i)); m.Header.Get(subjects.HeaderTxid) != fmt.Sprint(i+1) {
			t.Errorf("l.%d: got %s", i, m.Data)
		}
	}
	if e := wantRefusal(t, ask(t, nc, "cantus.get.0", `{"lock":"l.4"}`), subjects.NotFound); !strings.Contains(e.Message, `overlaps "l.4"`) {
		t.Errorf("the message is %q", e.Message)
	}
	if i := info(t, nc, 0); i.Locks != (subjects.LockInfo{Tracked: 2, Capacity: 2, Floor: 2}) {
		t.Errorf("locks %+v", i.Locks)
	}
}
