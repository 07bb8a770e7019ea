package broker_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

// TestBodiesThatAreNotWhatTheySeem checks that bodies are refused that
// encoding/json would accept with another meaning than the sender's.
func TestBodiesThatAreNotWhatTheySeem(t *testing.T) {
	_, nc := one(t, broker.Options{})
	appendTx(t, nc, "cantus.append.0", "x", "Cantus-Append-Lock", "a.\U0001F600")
	kinds := func(n int) string { return `{"kinds":[` + strings.Repeat(`"k",`, n-1) + `"k"]}` }
	padded := func(n int) string { return `{}` + strings.Repeat(" ", n-2) }
	reads := []string{"cantus.read.0", "cantus.replica.read.0"}
	for _, c := range []struct {
		body   string
		reason subjects.Reason
		where  []string
	}{
		{`null`, subjects.BadRequest, append([]string{"cantus.get.0", "cantus.cursor.0.c", "cantus.admin.trim.0", "cantus.info.0", "cantus.admin.status"}, reads...)},
		{` [] `, subjects.BadRequest, append([]string{"cantus.get.0", "cantus.cursor.0.c", "cantus.admin.trim.0"}, reads...)},
		{`{"lock":"a.\ud83d"}`, subjects.BadRequest, append([]string{"cantus.get.0"}, reads...)},
		{`{"lock":"a.\ude00\ud83d"}`, subjects.BadRequest, append([]string{"cantus.get.0"}, reads...)},
		{`{"lock":"a.\ud83dx"}`, subjects.BadRequest, reads},
		{"{\"lock\":\"a.\xff\"}", subjects.BadRequest, append([]string{"cantus.get.0"}, reads...)},
		{`{"kinds":["\ud83d"]}`, subjects.BadRequest, reads},
		{`{"age":"\udfff"}`, subjects.BadRequest, []string{"cantus.admin.trim.0"}},
		{kinds(subjects.MaxKinds + 1), subjects.BadRequest, reads},
		{padded(subjects.MaxReadBody + 1), subjects.TooLarge, reads},
	} {
		for _, subject := range c.where {
			m := ask(t, nc, subject, c.body)
			if m.Header.Get(subjects.HeaderErrorCode) == "" {
				t.Errorf("%s %.40q is not refused", subject, c.body)
				continue
			}
			wantRefusal(t, m, c.reason)
		}
	}
	for _, body := range []string{`{"lock":"a.\ud83d\ude00"}`, `{"lock":"a.\uD83D\uDE00"}`, "{\"lock\":\"a.\U0001F600\"}", kinds(subjects.MaxKinds), padded(subjects.MaxReadBody)} {
		a := collect(t, nc, "cantus.read.0", body)
		if want := 1; a.refusal != nil || len(a.transactions) != want && !strings.Contains(body, "kinds") {
			t.Errorf("%.40q: %d transactions, %v", body, len(a.transactions), a.refusal)
		}
	}
	if m := ask(t, nc, "cantus.get.0", `{"lock":"\\ud83d"}`); !bytes.Contains(m.Data, []byte("not_found")) {
		t.Errorf("a backslash is not one: %s", m.Data)
	}
}

// logged collects what a node logs.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logged) has(part string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), part)
}

func (l *logged) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// TestStoredTransactionsTooLargeToSend lowers max_payload below a transaction:
// it is refused by name, and nobody else's answers are lost.
func TestStoredTransactionsTooLargeToSend(t *testing.T) {
	dir := t.TempDir()
	large := strings.Repeat("x", 30_000)
	n, nc := openNode(t, dir, broker.Options{Partitions: 1})
	for i, payload := range []string{"first", large, "third"} {
		appendTx(t, nc, "cantus.append.0", payload, subjects.HeaderKind, fmt.Sprint("k", i), "Cantus-Append-Lock", fmt.Sprint("l.", i))
	}
	var log logged
	n, nc = reopen(t, n, dir, broker.Options{Partitions: 1, NATSConfig: config(t, "max_payload: 20000"), Logger: log.logger()})
	wantTooLarge := func(m *nats.Msg) {
		t.Helper()
		e := wantRefusal(t, m, subjects.TooLarge)
		for _, part := range []string{"txid 2", "30", "max_payload", "20000"} {
			if !strings.Contains(e.Message, part) {
				t.Errorf("the refusal %q does not name %s", e.Message, part)
			}
		}
		if e.Txid != 2 {
			t.Errorf("the refusal names txid %d", e.Txid)
		}
	}
	for _, options := range []string{"", `,"packed":true`} {
		for _, subject := range []string{"cantus.read.0", "cantus.replica.read.0"} {
			a := collect(t, nc, subject, `{"from":1`+options+`}`)
			if a.refusal != nil || len(a.transactions) != 1 || a.next != 2 || a.end.Header.Get(subjects.HeaderLast) != "1" {
				t.Errorf("%s %s: %d transactions, next %d, %v", subject, options, len(a.transactions), a.next, a.refusal)
			}
			wantTooLarge(ask(t, nc, subject, `{"from":2`+options+`}`))
			wantTooLarge(ask(t, nc, subject, `{"from":1,"kinds":["k1"]`+options+`}`))
			if a := collect(t, nc, subject, `{"from":1,"kinds":["k0","k2"]`+options+`}`); a.next != 4 || a.end.Header.Get(subjects.HeaderCount) != "2" {
				t.Errorf("%s %s: next %d, %v", subject, options, a.next, a.end.Header)
			}
			if a := collect(t, nc, subject, `{"from":1,"headers_only":true`+options+`}`); a.next != 4 || a.end.Header.Get(subjects.HeaderCount) != "3" {
				t.Errorf("%s %s headers only: next %d, %v", subject, options, a.next, a.end.Header)
			}
		}
	}
	wantTooLarge(ask(t, nc, "cantus.get.0", `{"txid":2}`))
	wantTooLarge(ask(t, nc, "cantus.get.0", `{"lock":"l.1"}`))
	if m := ask(t, nc, "cantus.get.0", `{"txid":3}`); string(m.Data) != "third" {
		t.Errorf("get: %q", m.Data)
	}
	if log.has("connection to the NATS server lost") {
		t.Error("the node's own connection was cut")
	}
	if n.Ready() || !log.has("a stored transaction can't be read") {
		t.Error("nothing says that a transaction can't be read")
	}
	var s subjects.ClusterStatus
	if err := json.Unmarshal(ask(t, nc, "cantus.admin.status", "").Data, &s); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"partition 0", "txid 2", "max_payload is 20000"} {
		if !strings.Contains(s.Nodes[0].Unready, part) {
			t.Errorf("the status says %q, without %s", s.Nodes[0].Unready, part)
		}
	}
	trim(t, nc, `{"before":4}`)
	eventually(t, "it is trimmed", func() bool { return n.Ready() })
}

// A partition may hold thousands of such transactions: its node's log has one
// line, and its status says how far max_payload is to be raised.
func TestStoredTransactionsTooLargeToSendAreLoggedOnce(t *testing.T) {
	conf, log := config(t, ""), &buffer{}
	n, nc := openNode(t, t.TempDir(), broker.Options{Partitions: 1, NATSConfig: conf, Logger: slog.New(slog.NewTextHandler(log, nil))})
	for _, size := range []int{30_000, 40_000, 30_000} {
		appendTx(t, nc, "cantus.append.0", strings.Repeat("x", size))
	}
	if err := os.Rename(config(t, "max_payload: 20000"), conf); err != nil {
		t.Fatal(err)
	}
	if err := n.Reload(broker.Options{NATSConfig: conf}); err != nil {
		t.Fatal(err)
	}
	if log.count(`level=WARN msg="max_payload was lowered`) != 1 {
		t.Error("a lowered max_payload is not logged")
	}
	nc = connect(t, n)
	for _, txid := range []string{"1", "2", "3", "1"} {
		wantRefusal(t, ask(t, nc, "cantus.get.0", `{"txid":`+txid+`}`), subjects.TooLarge)
	}
	if lines := log.count("a stored transaction can't be read"); lines != 1 {
		t.Errorf("logged %d times", lines)
	}
	var s subjects.ClusterStatus
	if err := json.Unmarshal(ask(t, nc, "cantus.admin.status", "").Data, &s); err != nil || !strings.Contains(s.Nodes[0].Unready, "txid 2") {
		t.Errorf("the status says %q, without the largest: %v", s.Nodes[0].Unready, err)
	}
}

// The node knows that it can't send a transaction before any client reads it:
// both after a start and after a reload.
func TestStoredTransactionsTooLargeToSendAreFound(t *testing.T) {
	dir, conf := t.TempDir(), config(t, "")
	n, nc := openNode(t, dir, broker.Options{Partitions: 2, NATSConfig: conf})
	for _, size := range []int{10, 30_000, 10} {
		appendTx(t, nc, "cantus.append.1", strings.Repeat("x", size))
	}
	lower := config(t, "max_payload: 20000")
	unready := func(n *broker.Node) string {
		var s subjects.ClusterStatus
		if err := json.Unmarshal(ask(t, connect(t, n), "cantus.admin.status", "").Data, &s); err != nil {
			t.Fatal(err)
		}
		return s.Nodes[0].Unready
	}
	if err := os.Rename(lower, conf); err != nil {
		t.Fatal(err)
	}
	if err := n.Reload(broker.Options{NATSConfig: conf}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is found after a reload", func() bool {
		return strings.Contains(unready(n), "partition 1 can't be read as a whole: txid 2 makes")
	})
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n, _ = openNode(t, dir, broker.Options{Partitions: 2, NATSConfig: conf})
	eventually(t, "it is found after a start", func() bool {
		return strings.Contains(unready(n), "partition 1 can't be read as a whole: txid 2 makes")
	})
}

// TestStoredTransactionsThatCanBeSentAgain raises max_payload again, by a
// reload.
func TestStoredTransactionsThatCanBeSentAgain(t *testing.T) {
	dir, conf := t.TempDir(), config(t, "")
	n, nc := openNode(t, dir, broker.Options{Partitions: 1, NATSConfig: conf})
	appendTx(t, nc, "cantus.append.0", strings.Repeat("x", 30_000))
	reload := func(more string) {
		t.Helper()
		if err := os.Rename(config(t, more), conf); err != nil {
			t.Fatal(err)
		}
		if err := n.Reload(broker.Options{NATSConfig: conf}); err != nil {
			t.Fatal(err)
		}
	}
	reload("max_payload: 20000")
	nc = connect(t, n)
	wantRefusal(t, ask(t, nc, "cantus.get.0", `{"txid":1}`), subjects.TooLarge)
	if n.Ready() {
		t.Error("ready, and a transaction can't be read")
	}
	reload("")
	if !n.Ready() {
		t.Error("not ready with the old max_payload")
	}
}

// TestUnanswerableRequests sends requests whose reply subject is so long that
// the server would close the node's connection because of the answer.
func TestUnanswerableRequests(t *testing.T) {
	var log logged
	n, nc := one(t, broker.Options{Prefix: "c", NATSConfig: config(t, ""), Logger: log.logger()})
	payload := strings.Repeat("x", 100_000)
	appendTx(t, nc, "c.append.0", payload)
	raw := dialRaw(t, n.ClientURL())
	const body = `{"txid":1}`
	for room := range 40 { // the server takes a control line of 4,096 bytes
		reply := strings.Repeat("r", 4096-len("c.get.0")-len(" ")-len(" 10")-room)
		raw.send(t, fmt.Sprintf("PUB c.get.0 %s %d\r\n%s\r\n", reply, len(body), body))
		raw.send(t, fmt.Sprintf("PUB c.read.0 %s 2\r\n{}\r\n", reply[1:]))
		raw.send(t, fmt.Sprintf("PUB c.info %s 2\r\n{}\r\n", reply))
		raw.send(t, fmt.Sprintf("PUB c.append.0 %s 0\r\n\r\n", reply[8:]))
	}
	raw.send(t, fmt.Sprintf("PUB c.get.0 answer %d\r\n%s\r\n", len(body), body)) // behind all of them
	if got := raw.reply(t); !strings.HasSuffix(got, payload) {
		t.Errorf("answer %.200q", got)
	}
	appendTx(t, nc, "c.append.0", "x")
	if log.has("connection to the NATS server lost") {
		t.Error("the node's own connection was cut")
	}
}

// TestUnwantedReadsEnd disconnects clients while their reads wait: the node
// stops waiting.
func TestUnwantedReadsEnd(t *testing.T) {
	n, nc := one(t, broker.Options{})
	inbox := nc.NewRespInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		t.Fatal(err)
	}
	for range 8 {
		if err := nc.PublishRequest("cantus.read.0", inbox, []byte(`{"wait":"60s"}`)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the node serves the reads", func() bool { return broker.Reading(n) == 8 })
	if err := sub.Unsubscribe(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the reads have ended", func() bool { return broker.Reading(n) == 0 })
}

// TestReadsThroughAnAccountImport reads from another account, with the export
// that the documentation asks for.
func TestReadsThroughAnAccountImport(t *testing.T) {
	const count = 200
	n, _ := one(t, broker.Options{Account: "LOG", NATSConfig: config(t, `
max_pending: 8388608
accounts {
  LOG { users: [{user: log, password: log}], exports: [
    {service: "cantus.read.*", response_type: stream}, {service: "cantus.replica.read.*", response_type: stream}, {service: "cantus.batch.*"}] }
  APP { users: [{user: app, password: app}], imports: [
    {service: {account: LOG, subject: "cantus.read.*"}}, {service: {account: LOG, subject: "cantus.replica.read.*"}},
    {service: {account: LOG, subject: "cantus.batch.*"}}] }
}`)})
	nc := connect(t, n, nats.UserInfo("app", "app"))
	wide(t, nc, 0, count)
	for _, options := range []string{"", `,"packed":true`, `,"kinds":["a"]`} {
		step := uint64(1)
		if strings.Contains(options, "kinds") {
			step = 2
		}
		wholly(t, nc, "cantus.read.0", options, step, count)
		wholly(t, nc, "cantus.replica.read.0", options, step, count)
	}
}

// Reads take turns at scanning the log. Those that wait too long are refused,
// appends continue, and reads that only wait at the log's end take no turn.
func TestReadsTakeTurns(t *testing.T) {
	n, nc := openNode(t, t.TempDir(), broker.Options{Partitions: 1})
	appendTx(t, nc, "cantus.append.0", "1")
	release, err := broker.HoldScans(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	if a := collect(t, nc, "cantus.read.0", `{"kinds":["zz"]}`); a.refusal == nil || !strings.HasPrefix(a.refusal.Header.Get(subjects.HeaderError), string(subjects.Busy)) {
		t.Errorf("a read without a turn: %+v", a)
	}
	if a := collect(t, nc, "cantus.read.0", `{"from":2}`); a.refusal != nil || a.next != 2 {
		t.Errorf("a read at the log's end needs a turn: %+v", a)
	}
	waiting := nc.NewRespInbox()
	sub, err := nc.SubscribeSync(waiting)
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.PublishRequest("cantus.read.0", waiting, []byte(`{"from":2,"wait":"1m"}`)); err != nil {
		t.Fatal(err)
	}
	release()
	if r := appendTx(t, nc, "cantus.append.0", "2"); r.Txid != 2 {
		t.Errorf("%+v", r)
	}
	if m, err := sub.NextMsg(patience); err != nil || string(m.Data) != "2" {
		t.Errorf("%+v, %v", m, err)
	}
	if a := collect(t, nc, "cantus.read.0", ""); len(a.transactions) != 2 {
		t.Errorf("%+v", a)
	}
}

// A read that gets no further turn after it has waited for its client ends
// early, and says where to continue: after what it has sent.
func TestAReadWithoutAnotherTurnEndsEarly(t *testing.T) {
	testkit.NotShort(t, "reads wait for their turns to end")
	const count = 500
	n, nc := openNode(t, t.TempDir(), broker.Options{NATSConfig: smallPending(t), Partitions: 1})
	wide(t, nc, 0, count)
	slow := slowly(t, n, 2<<20)
	sub, err := slow.SubscribeSync(slow.NewRespInbox())
	if err != nil {
		t.Fatal(err)
	}
	if err := slow.PublishRequest("cantus.read.0", sub.Subject, []byte(`{"max":65536,"max_bytes":8388608}`)); err != nil {
		t.Fatal(err)
	}
	var sent uint64
	for release := func() {}; ; sent++ {
		m, err := sub.NextMsg(patience)
		if err != nil {
			t.Fatal(err)
		}
		if m.Header.Get("Status") == subjects.StatusEnd {
			release()
			if next := number(t, m, subjects.HeaderNext); sent == count || next != sent+1 || number(t, m, subjects.HeaderLast) != sent {
				t.Errorf("%d transactions came; the end says %v", sent, m.Header)
			}
			return
		}
		if sent == 0 {
			if release, err = broker.HoldScans(t.Context(), n); err != nil {
				t.Fatal(err)
			}
		}
	}
}
