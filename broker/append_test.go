package broker_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

const (
	mark       = subjects.HeaderHighWaterMark
	write      = subjects.HeaderWriteLock
	read       = subjects.HeaderReadLock
	appendLock = subjects.HeaderAppendLock
	msgID      = subjects.HeaderMsgID
	last       = subjects.HeaderExpectedLast
)

func TestAppendReplies(t *testing.T) {
	_, nc := one(t, broker.Options{})
	for i, step := range []struct {
		payload string
		headers []string
		want    string
	}{
		{"a", []string{mark, "0", write, "account.42"}, `{"partition":0,"txid":1,"time":"T"}`},
		{"b", []string{appendLock, "audit.42", msgID, "m1"}, `{"partition":0,"txid":2,"time":"T"}`},
		{"", nil, `{"partition":0,"txid":3,"time":"T"}`},
		{"b", []string{msgID, "m1", mark, "77", write, "account.42"}, `{"partition":0,"txid":2,"time":"T","duplicate":true}`},
		{"c", []string{mark, "1", write, "account.42"}, `{"partition":0,"txid":4,"time":"T"}`},
		{"d", []string{mark, "1", write, "account.>", read, "audit.>", read, "other"},
			`{"partition":0,"error":{"code":409,"reason":"conflict","message":"write lock \"account.>\" was recorded by txid 4, after high-water mark 1: apply up to 4, recompute and send again",` +
				`"lock":"account.>","txid":4,"conflicts":[{"lock":"account.>","mode":"write","txid":4},{"lock":"audit.>","mode":"read","txid":2}]},"high_water_mark":4}`},
		{"e", []string{mark, "4", write, "account.>", read, "audit.>"}, `{"partition":0,"txid":5,"time":"T"}`},
		{"f", []string{last, "5"}, `{"partition":0,"txid":6,"time":"T"}`},
		{"f", []string{last, "5"},
			`{"partition":0,"error":{"code":409,"reason":"wrong_last","message":"expected last sequence 5 is not the high-water mark"},"high_water_mark":6}`},
		{"f", []string{last, "99"},
			`{"partition":0,"error":{"code":409,"reason":"wrong_last","message":"expected last sequence 99 is not the high-water mark"},"high_water_mark":6}`},
		{"g", []string{mark, "7"},
			`{"partition":0,"error":{"code":412,"reason":"ahead","message":"high-water mark 7 is ahead of partition 0, whose last txid is 6: it comes from another log, or this log has lost transactions; stop, and check that cluster and partition are the right ones"},"high_water_mark":6}`},
		{"other", []string{msgID, "m1"},
			`{"partition":0,"error":{"code":422,"reason":"id_reused","message":"message id \"m1\" stands for another payload, of txid 2: use a new id","txid":2},"high_water_mark":6}`},
		{"h", []string{mark, "6", read, "account.42"}, `{"partition":0,"txid":7,"time":"T"}`},
		{"i", []string{mark, "6", write, "account.42"}, `{"partition":0,"txid":8,"time":"T"}`}, // a read lock is not recorded
		{"j", []string{mark, "0", write, "never.seen"}, `{"partition":0,"txid":9,"time":"T"}`},
		{"k", []string{mark, "8", write, "list.1, list.2\t,list.3", read, "list.4", read, "list.5 ,list.6"}, `{"partition":0,"txid":10,"time":"T"}`},
		{"l", []string{mark, "9", write, "list.2,other,list.>"}, // in one header: several come in any order
			`{"partition":0,"error":{"code":409,"reason":"conflict","message":"write lock \"list.2\" was recorded by txid 10, after high-water mark 9: apply up to 10, recompute and send again",` +
				`"lock":"list.2","txid":10,"conflicts":[{"lock":"list.2","mode":"write","txid":10},{"lock":"list.>","mode":"write","txid":10}]},"high_water_mark":10}`},
	} {
		m := ask(t, nc, "cantus.append.0", step.payload, step.headers...)
		if got := timeless(m.Data); got != step.want {
			t.Fatalf("step %d\n got %s\nwant %s", i, got, step.want)
		}
		var r subjects.Reply
		if err := json.Unmarshal(m.Data, &r); err != nil {
			t.Fatal(err)
		}
		if r.Error != nil {
			wantRefusal(t, m, r.Error.Reason)
		} else if len(m.Header) != 0 {
			t.Errorf("step %d: a success has headers %v", i, m.Header)
		}
	}
	if ms := checkLog(t, nc, 0); len(ms) != 10 {
		t.Fatalf("%d transactions", len(ms))
	}
}

// A lock that the table has forgotten is looked up in the log. What was trimmed
// has no recorder: a refusal says so, and does not invent one.
func TestConflictsBehindTheFloor(t *testing.T) {
	_, nc := one(t, broker.Options{MaxLocks: 2})
	for _, l := range []string{"a", "b", "c", "d"} {
		appendTx(t, nc, "cantus.append.0", "x", appendLock, l)
	}
	wantBody(t, ask(t, nc, "cantus.append.0", "x", mark, "1", read, "never", read, "b", read, "d"),
		`{"partition":0,"error":{"code":409,"reason":"conflict","message":"read lock \"d\" was recorded by txid 4, after high-water mark 1: apply up to 4, recompute and send again",`+
			`"lock":"d","txid":4,"conflicts":[{"lock":"d","mode":"read","txid":4},{"lock":"b","mode":"read","txid":2}]},"high_water_mark":4}`)
	wantBody(t, ask(t, nc, "cantus.append.0", "x", mark, "1", write, "a"), `{"partition":0,"txid":5,"time":"T"}`)
	wantBody(t, ask(t, nc, "cantus.batch.0", string(item("x", mark, "0", write, "never"))), `{"partition":0,"results":[{"index":0,"count":1,"txid":6,"time":"T"}],"high_water_mark":6}`)
	if m := askServed(t, nc, "cantus.admin.trim.0", `{"before":4}`); !strings.Contains(string(m.Data), `"first_txid":4`) {
		t.Fatalf("%s", m.Data)
	}
	const refused = `{"code":409,"reason":"conflict","message":"write lock \"b\" could not be looked up, and counts as recorded by txid 3, after high-water mark 1: apply up to 3, recompute and send again",` +
		`"lock":"b","txid":3,"conflicts":[{"lock":"b","mode":"write","txid":3,"forgotten":true}]}`
	wantBody(t, ask(t, nc, "cantus.append.0", "x", mark, "1", write, "b"), `{"partition":0,"error":`+refused+`,"high_water_mark":6}`)
	wantBody(t, ask(t, nc, "cantus.batch.0", string(item("x", mark, "1", write, "b"))),
		`{"partition":0,"results":[{"index":0,"count":1,"error":`+refused+`}],"high_water_mark":6}`)
}

func TestTheFirstOnesTimeStandsInItsRepeats(t *testing.T) {
	_, nc := one(t, broker.Options{})
	first := appendTx(t, nc, "cantus.append.0", "x", msgID, "m")
	repeat := appendTx(t, nc, "cantus.append.0", "x", msgID, "m")
	read := readAll(t, nc, 0, 1)
	if !repeat.Duplicate || !repeat.Time.Equal(first.Time) || repeat.Txid != first.Txid || len(read) != 1 {
		t.Fatalf("first %+v, repeat %+v, %d read", first, repeat, len(read))
	}
	if got := read[0].Header.Get(subjects.HeaderTime); got != first.Time.Format("2006-01-02T15:04:05.999999999Z07:00") {
		t.Fatalf("it was answered with %v and is read with %s", first.Time, got)
	}
}

func TestMalformedAppends(t *testing.T) {
	_, nc := one(t, broker.Options{})
	locks := func(n int) (headers []string) {
		for i := range n {
			headers = append(headers, appendLock, fmt.Sprint("l", i))
		}
		return headers
	}
	list := func(n int) string {
		var names []string
		for i := range n {
			names = append(names, fmt.Sprint("l", i))
		}
		return strings.Join(names, ",")
	}
	deep := strings.TrimSuffix(strings.Repeat("a.", 16), ".")
	for _, c := range []struct {
		name    string
		want    string // a part of the message
		headers []string
	}{
		{"mark missing for a write lock", mark, []string{write, "a"}},
		{"mark missing for a read lock", mark, []string{read, "a"}},
		{"mark empty", mark, []string{mark, ""}},
		{"mark not a number", mark, []string{mark, "seven"}},
		{"mark negative", mark, []string{mark, "-1"}},
		{"mark with a sign", mark, []string{mark, "+1"}},
		{"mark in hexadecimal", mark, []string{mark, "0x1"}},
		{"mark too large", "18446744073709551615", []string{mark, "18446744073709551616"}},
		{"mark twice", "twice", []string{mark, "0", mark, "0"}},
		{"kind twice", "twice", []string{"Cantus-Kind", "a", "Cantus-Kind", "a"}},
		{"kind of two tokens", "kind", []string{"Cantus-Kind", "a.b"}},
		{"kind empty", "kind", []string{"Cantus-Kind", ""}},
		{"kind a wildcard", "kind", []string{"Cantus-Kind", "*"}},
		{"message id twice", "twice", []string{msgID, "a", msgID, "a"}},
		{"message id empty", msgID, []string{msgID, ""}},
		{"message id too long", "128", []string{msgID, strings.Repeat("x", 129)}},
		{"expected last twice", "twice", []string{last, "0", last, "0"}},
		{"expected last not a number", last, []string{last, "x"}},
		{"lock empty", "Cantus-Append-Lock is empty: leave it out", []string{appendLock, ""}},
		{"lock with an empty token", "empty", []string{appendLock, "a..b"}},
		{"lock with a star", "wildcard", []string{appendLock, "a.*"}},
		{"lock with a wildcard inside", "wildcard", []string{appendLock, "a.>.b"}},
		{"lock of 17 tokens", "16", []string{appendLock, deep + ".a"}},
		{"lock with a token of 65 bytes", "64", []string{appendLock, strings.Repeat("x", 65)}},
		{"lock not UTF-8", "UTF-8", []string{appendLock, "a\xff"}},
		{"lock with white space", "white space", []string{appendLock, "a b"}},
		{"65 locks", "64", locks(65)},
		{"65 locks in one header", "64", []string{appendLock, list(65)}},
		{"65 locks in two headers", "64", []string{appendLock, list(40), appendLock, list(25)}},
		{"lock list with an empty name", `Cantus-Append-Lock "a,,b": lock 2 of the list is empty: give one comma`, []string{appendLock, "a,,b"}},
		{"lock list with blanks alone between commas", `Cantus-Append-Lock "a, ,b": lock 2 of the list is empty: give one comma`, []string{appendLock, "a, ,b"}},
		{"lock list that begins with a comma", `Cantus-Append-Lock ",a": lock 1 of the list is empty: give one comma`, []string{appendLock, ",a"}},
		{"lock list that ends in a comma", `Cantus-Append-Lock "a,": lock 2 of the list is empty: give one comma`, []string{appendLock, "a,"}},
		{"lock list of a comma", `Cantus-Append-Lock ",": lock 1 of the list is empty: give one comma`, []string{appendLock, ","}},
		{"lock list with a bad name", "wildcard", []string{appendLock, "a, b.*"}},
		{"lock list without commas", "white space", []string{appendLock, "a, b c"}},
		{"mark missing for a list of read locks", mark, []string{read, "a,b"}},
		{"unknown header", "Cantus-Write-Locks", []string{"Cantus-Write-Locks", "a"}},
		{"other letter case", write, []string{"cantus-write-lock", "a"}},
		{"other letter case of NATS's", msgID, []string{"nats-msg-id", "a"}},
		{"unknown expectation", last, []string{"Nats-Expected-Last-Msg-Id", "a"}},
		{"a status", "Status", []string{"Status", "204"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := wantRefusal(t, ask(t, nc, "cantus.append.0", "x", c.headers...), subjects.BadRequest)
			if !strings.Contains(e.Message, c.want) {
				t.Errorf("the message %q does not name %q", e.Message, c.want)
			}
		})
	}
	for name, headers := range map[string][]string{
		"64 locks": locks(64), "64 locks in one header": {appendLock, list(64)}, "16 tokens": {appendLock, deep}, "a token of 64 bytes": {appendLock, strings.Repeat("x", 64)},
		"message id of 128 bytes": {msgID, strings.Repeat("x", 128)}, "the whole partition": {appendLock, ">"},
		"others of NATS's": {"Nats-Rollup", "sub", "Nats-TTL", "1s"}, "not ASCII": {appendLock, "konto.größe.雪"},
		"the same lock in all modes": {mark, "0", appendLock, "a", appendLock, "a"},
	} {
		if r := appendTx(t, nc, "cantus.append.0", "x", headers...); r.Error != nil {
			t.Errorf("%s: %v", name, r.Error)
		}
	}
	for _, m := range checkLog(t, nc, 0) {
		for key := range m.Header {
			if strings.HasPrefix(key, "Nats-") && key != msgID {
				t.Errorf("%s was stored", key)
			}
		}
	}
}

func TestSizeLimit(t *testing.T) {
	_, nc := one(t, broker.Options{})
	if r := appendTx(t, nc, "cantus.append.0", strings.Repeat("x", subjects.MaxTransaction)); r.Txid != 1 {
		t.Fatalf("the largest transaction: %+v", r.Error)
	}
	e := wantRefusal(t, ask(t, nc, "cantus.append.0", strings.Repeat("x", subjects.MaxTransaction+1)), subjects.TooLarge)
	if !strings.Contains(e.Message, "1000000") {
		t.Errorf("the message %q does not name the limit", e.Message)
	}
	wantRefusal(t, ask(t, nc, "cantus.append.0", strings.Repeat("x", subjects.MaxTransaction-5), "App", "y"), subjects.TooLarge)
	if a := collect(t, nc, "cantus.read.0", ""); len(a.transactions) != 1 || len(a.transactions[0].Data) != subjects.MaxTransaction {
		t.Fatalf("%d transactions", len(a.transactions))
	}
}

// A header that a client sends without a space after the colon is returned with
// one: a message within the limits must not become larger than any client
// accepts.
func TestHeadersThatGrowCountAsTheyComeBack(t *testing.T) {
	n, nc := one(t, broker.Options{ClientListen: "127.0.0.1:0"})
	raw := dialRaw(t, n.ClientURL())
	const lines, returned = 250, len("a: \r\n")
	block := "NATS/1.0\r\n" + strings.Repeat("a:\r\n", lines) + "\r\n"
	raw.request(t, "cantus.append.0", block, strings.Repeat("x", subjects.MaxTransaction-len(block)))
	if body := raw.reply(t); !strings.Contains(body, `"too_large"`) {
		t.Fatalf("answered with %.200s", body)
	}
	raw.request(t, "cantus.append.0", block, strings.Repeat("x", subjects.MaxTransaction-lines*returned))
	if body := raw.reply(t); !strings.Contains(body, `"txid":1`) {
		t.Fatalf("answered with %.200s", body)
	}
	if a := collect(t, nc, "cantus.read.0", ""); len(a.transactions) != 1 || len(a.transactions[0].Header["a"]) != lines {
		t.Fatalf("%d transactions", len(a.transactions))
	}
}

// A malformed header block, which NATS clients ignore, must never let a
// transaction commit without its locks.
func TestMalformedHeaderBlocks(t *testing.T) {
	n, nc := one(t, broker.Options{ClientListen: "127.0.0.1:0"})
	appendTx(t, nc, "cantus.append.0", "x", appendLock, "a")
	raw := dialRaw(t, n.ClientURL())
	lock := mark + ": 0\r\n" + write + ": a\r\n"
	for name, block := range map[string]string{
		"no colon":               "NATS/1.0\r\nnonsense\r\n" + lock + "\r\n",
		"no colon behind":        "NATS/1.0\r\n" + lock + "nonsense\r\n\r\n",
		"no end":                 "NATS/1.0\r\n" + lock,
		"bare line feeds":        "NATS/1.0\n" + strings.ReplaceAll(lock, "\r\n", "\n") + "\n",
		"another version":        "NATS/2.0\r\n" + lock + "\r\n",
		"a status":               "NATS/1.0 503\r\n" + lock + "\r\n",
		"something behind":       "NATS/1.0\r\n\r\n" + lock + "\r\n",
		"white space in a name":  "NATS/1.0\r\n" + strings.Replace(lock, "Write-Lock:", "Write-Lock :", 1) + "\r\n",
		"an empty name":          "NATS/1.0\r\n: x\r\n" + lock + "\r\n",
		"a continued line":       "NATS/1.0\r\nApp: x\r\n " + lock + "\r\n",
		"no first line":          lock + "\r\n",
		"a carriage return amid": "NATS/1.0\r\nApp: a\rb\r\n" + lock + "\r\n",
	} {
		raw.request(t, "cantus.append.0", block, "y")
		if body := raw.reply(t); !strings.Contains(body, `"code":400,"reason":"bad_request"`) {
			t.Errorf("%s: answered with %s", name, body)
		}
	}
	raw.request(t, "cantus.append.0", "NATS/1.0\r\n"+lock+"\r\n", "y")
	if body := raw.reply(t); !strings.Contains(body, `"reason":"conflict"`) {
		t.Errorf("the well-formed one: answered with %s", body)
	}
	if ms := checkLog(t, nc, 0); len(ms) != 1 {
		t.Fatalf("%d transactions were appended", len(ms))
	}
}

func TestAppendByKey(t *testing.T) {
	const partitions = 7
	_, nc := openNode(t, t.TempDir(), broker.Options{Partitions: partitions})
	counts := make([]int, partitions)
	for i := range 200 {
		key := fmt.Sprint("key-", i)
		h := fnv.New32a()
		_, _ = h.Write([]byte(key))
		want := int(h.Sum32() % partitions)
		r := appendTx(t, nc, subjects.Names{}.AppendKey(key), key)
		counts[want]++
		if r.Partition != want || r.Txid != uint64(counts[want]) {
			t.Fatalf("%s went to partition %d as %d, want %d as %d", key, r.Partition, r.Txid, want, counts[want])
		}
	}
	for p, n := range counts {
		ms := checkLog(t, nc, p)
		if len(ms) != n || n == 0 {
			t.Errorf("partition %d has %d transactions, %d were answered", p, len(ms), n)
		}
	}
	if _, err := nc.Request("cantus.append.key.a.b", nil, patience); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("a key of two tokens: %v", err)
	}
}

func TestNobodyServesOtherPartitions(t *testing.T) {
	_, nc := openNode(t, t.TempDir(), broker.Options{})
	for _, subject := range []string{"cantus.append.2", "cantus.append.x", "cantus.append.-1", "cantus.batch.2", "cantus.read.2", "cantus.get.00", "cantus.info.2", "cantus.cursor.2.c"} {
		if m, err := nc.Request(subject, nil, patience); !errors.Is(err, nats.ErrNoResponders) {
			t.Errorf("%s: %v, %v", subject, m, err)
		}
	}
}

// A request without a reply subject is carried out. If it is refused, an
// advisory says so.
func TestAppendWithoutReplySubject(t *testing.T) {
	_, nc := one(t, broker.Options{})
	advisories, err := nc.SubscribeSync("cantus.advisory.refused")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Publish("cantus.append.0", []byte("quiet")); err != nil {
		t.Fatal(err)
	}
	if err := nc.PublishMsg(message("cantus.append.0", "refused", write, "a", msgID, "m7")); err != nil {
		t.Fatal(err)
	}
	batch := append(item("in a batch"), item("refused", write, "b")...)
	if err := nc.Publish("cantus.batch.0", batch); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		m, err := advisories.NextMsg(patience)
		if err != nil {
			t.Fatal(err)
		}
		var a struct {
			Type, Node string
			Partition  int
			Error      *subjects.Error
		}
		if err := json.Unmarshal(m.Data, &a); err != nil || a.Type != "refused" || a.Node != "n1" || a.Error == nil || a.Error.Reason != subjects.BadRequest {
			t.Fatalf("advisory %s", m.Data)
		}
	}
	if _, payloads := txids(t, checkLog(t, nc, 0)); strings.Join(payloads, ",") != "quiet,in a batch" {
		t.Fatalf("appended: %v", payloads)
	}
}

func TestWhatIsGivenBack(t *testing.T) {
	_, nc := one(t, broker.Options{Prefix: "other.log"})
	m := message("other.log.append.0", "payload", mark, "0", write, "w.1", write, "w.2", read, "r.>", appendLock, "a",
		msgID, "id-1", "Cantus-Kind", "pay", "App", "one", "App", "two", "lower-case", "  spaced  ", "Nats-Rollup", "x", "Empty", "")
	answer, err := nc.RequestMsg(m, patience)
	if err != nil {
		t.Fatal(err)
	}
	var r subjects.Reply
	if err := json.Unmarshal(answer.Data, &r); err != nil || r.Txid != 1 {
		t.Fatalf("%s", answer.Data)
	}
	a := collect(t, nc, "other.log.read.0", "")
	if len(a.transactions) != 1 {
		t.Fatalf("%d transactions", len(a.transactions))
	}
	want := nats.Header{
		"Cantus-Txid": {"1"}, "Cantus-Partition": {"0"}, "Cantus-Time": {r.Time.Format("2006-01-02T15:04:05.999999999Z07:00")}, "Cantus-Kind": {"pay"},
		mark: {"0"}, write: {"w.1,w.2"}, read: {"r.>"}, appendLock: {"a"}, "Cantus-Msg-Id": {"id-1"}, msgID: {"other.log.0.1"},
		"App": {"one", "two"}, "lower-case": {"spaced"}, "Empty": {""},
	}
	previous := a.transactions[0].Header
	if previous.Get(subjects.HeaderPrevious) != "0" {
		t.Errorf("the first transaction of a read follows %q", previous.Get(subjects.HeaderPrevious))
	}
	delete(previous, subjects.HeaderPrevious) // of the read, and not of the transaction
	if got := a.transactions[0]; fmt.Sprint(got.Header) != fmt.Sprint(want) || string(got.Data) != "payload" {
		t.Fatalf("\n got %v %q\nwant %v", got.Header, got.Data, want)
	}
	get := ask(t, nc, "other.log.get.0", `{"txid":1}`)
	if fmt.Sprint(get.Header) != fmt.Sprint(want) || string(get.Data) != "payload" {
		t.Fatalf("get returned %v", get.Header)
	}
	if got := info2(t, nc, "other.log.info.0").HighWaterMark; got != 1 {
		t.Fatalf("high-water mark %d", got)
	}
}

func info2(t *testing.T, nc *nats.Conn, subject string) (i subjects.PartitionInfo) {
	t.Helper()
	if err := json.Unmarshal(ask(t, nc, subject, "").Data, &i); err != nil {
		t.Fatal(err)
	}
	return i
}

func TestTheLargestMarkIsANumber(t *testing.T) {
	_, nc := one(t, broker.Options{})
	wantRefusal(t, ask(t, nc, "cantus.append.0", "x", mark, fmt.Sprint(uint64(math.MaxUint64))), subjects.Ahead)
	wantRefusal(t, ask(t, nc, "cantus.append.0", "x", last, fmt.Sprint(uint64(math.MaxUint64))), subjects.WrongLast)
}
