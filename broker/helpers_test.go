package broker_test

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

// patience is how long a test waits for an event.
const patience = testkit.Patience

// message makes a message. headers are "Key", "value" pairs.
func message(subject, payload string, headers ...string) *nats.Msg {
	m := nats.NewMsg(subject)
	m.Data = []byte(payload)
	for i := 0; i < len(headers); i += 2 {
		m.Header.Add(headers[i], headers[i+1])
	}
	return m
}

// ask sends a request and returns the answer. A node that has just opened may
// not serve operations yet.
func ask(t *testing.T, nc *nats.Conn, subject, payload string, headers ...string) *nats.Msg {
	t.Helper()
	if strings.HasPrefix(subject, "cantus.admin.cluster.") && headers == nil {
		return askLeader(t, nc, subject, payload)
	}
	answer, err := nc.RequestMsg(message(subject, payload, headers...), patience)
	if err != nil {
		t.Fatalf("request %s %q: %v", subject, payload, err)
	}
	return answer
}

// askServed is ask for requests that a leader answers. It asks again while a
// node refuses because it leads no more: nothing was done then.
func askServed(t *testing.T, nc *nats.Conn, subject, payload string) (answer *nats.Msg) {
	t.Helper()
	eventually(t, subject+" is served", func() bool {
		answer = askLeader(t, nc, subject, payload)
		return !strings.Contains(string(answer.Data), `"reason":"unavailable"`)
	})
	return answer
}

// askLeader is ask for requests that a leader answers. It asks again while
// there is none: leaders may change at any time in a cluster that has just
// begun.
func askLeader(t *testing.T, nc *nats.Conn, subject, payload string) (answer *nats.Msg) {
	t.Helper()
	eventually(t, "there is a leader", func() bool {
		var err error
		answer, err = nc.Request(subject, []byte(payload), patience)
		if err != nil && !errors.Is(err, nats.ErrNoResponders) {
			t.Fatalf("request %s %q: %v", subject, payload, err)
		}
		return err == nil && !strings.Contains(string(answer.Data), "has no leader")
	})
	return answer
}

// times matches times, which no test can know beforehand.
var times = regexp.MustCompile(`"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z"`)

// timeless returns a body with every time replaced.
func timeless(body []byte) string { return times.ReplaceAllString(string(body), `"T"`) }

// wantBody compares a body byte by byte, except for times.
func wantBody(t *testing.T, m *nats.Msg, want string) {
	t.Helper()
	if got := timeless(m.Data); got != want {
		t.Errorf("answer\n got %s\nwant %s", got, want)
	}
}

// wantRefusal checks code and reason in headers and body, and returns the
// error.
func wantRefusal(t *testing.T, m *nats.Msg, reason subjects.Reason) *subjects.Error {
	t.Helper()
	var r struct {
		Error *subjects.Error `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &r); err != nil || r.Error == nil {
		t.Fatalf("answer %q is no refusal, want %s", m.Data, reason)
	}
	if r.Error.Reason != reason || r.Error.Code != reason.Code() {
		t.Fatalf("refused with %v, want %s", r.Error, reason)
	}
	if got := m.Header.Get(subjects.HeaderErrorCode); got != strconv.Itoa(reason.Code()) {
		t.Errorf("%s is %q", subjects.HeaderErrorCode, got)
	}
	if got := m.Header.Get(subjects.HeaderError); got == "" || got[:len(reason)] != string(reason) {
		t.Errorf("%s is %q", subjects.HeaderError, got)
	}
	return r.Error
}

// item is one transaction of a batch message.
func item(payload string, headers ...string) []byte {
	var block []byte
	if len(headers) > 0 {
		block = append(block, "NATS/1.0\r\n"...)
		for i := 0; i < len(headers); i += 2 {
			block = fmt.Appendf(block, "%s: %s\r\n", headers[i], headers[i+1])
		}
		block = append(block, "\r\n"...)
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(len(block)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	return append(append(b, block...), payload...)
}

// answers is everything that a read is answered with.
type answers struct {
	transactions []*nats.Msg
	end          *nats.Msg // the message of status 204; nil if it was refused
	refusal      *nats.Msg
	next, mark   uint64
}

// collect sends a request and collects its answers up to the end.
func collect(t *testing.T, nc *nats.Conn, subject, body string) answers {
	t.Helper()
	return begin(t, nc, subject, body)(t)
}

// begin sends a request and returns a function that waits for its answers.
func begin(t *testing.T, nc *nats.Conn, subject, body string) func(*testing.T) answers {
	t.Helper()
	inbox := nc.NewRespInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.PublishRequest(subject, inbox, []byte(body)); err != nil {
		t.Fatal(err)
	}
	return func(t *testing.T) answers {
		t.Helper()
		a, err := receive(t, sub)
		if err != nil {
			t.Fatalf("%s %s: %v after %d transactions", subject, body, err, len(a.transactions))
		}
		return a
	}
}

// receive waits for the answers to a read. The error is that of the
// subscription, such as nats.ErrNoResponders.
func receive(t *testing.T, sub *nats.Subscription) (a answers, err error) {
	t.Helper()
	defer func() { _ = sub.Unsubscribe() }()
	for {
		m, err := sub.NextMsg(patience)
		if err != nil {
			return a, err
		}
		switch {
		case m.Header.Get("Status") == subjects.StatusEnd:
			a.end, a.next, a.mark = m, number(t, m, subjects.HeaderNext), number(t, m, subjects.HeaderHighWaterMark)
			return a, nil
		case m.Header.Get(subjects.HeaderErrorCode) != "" || m.Header.Get("Status") != "":
			a.refusal = m
			return a, nil
		}
		a.transactions = append(a.transactions, m)
	}
}

func number(t *testing.T, m *nats.Msg, header string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(m.Header.Get(header), 10, 64)
	if err != nil {
		t.Fatalf("header %s is %q", header, m.Header.Get(header))
	}
	return n
}

// txids returns the ids of messages, and their payloads.
func txids(t *testing.T, ms []*nats.Msg) (ids []uint64, payloads []string) {
	t.Helper()
	for _, m := range ms {
		ids, payloads = append(ids, number(t, m, subjects.HeaderTxid)), append(payloads, string(m.Data))
	}
	return ids, payloads
}

// checkLog is the oracle of every log: a read returns dense txids from 1 and
// rising times, and info agrees about the end.
func checkLog(t *testing.T, nc *nats.Conn, partition int) []*nats.Msg {
	t.Helper()
	ms := readAll(t, nc, partition, 1)
	last := ""
	for i, m := range ms {
		if id := number(t, m, subjects.HeaderTxid); id != uint64(i+1) {
			t.Fatalf("partition %d: transaction %d has txid %d", partition, i+1, id)
		}
		at, err := time.Parse(time.RFC3339Nano, m.Header.Get(subjects.HeaderTime))
		if err != nil {
			t.Fatal(err)
		}
		sortable := at.UTC().Format("2006-01-02T15:04:05.000000000")
		if sortable <= last {
			t.Fatalf("partition %d: time of txid %d is %s, after %s", partition, i+1, sortable, last)
		}
		last = sortable
	}
	if i := info(t, nc, partition); i.HighWaterMark != uint64(len(ms)) {
		t.Fatalf("partition %d: info says %d, %d transactions were read", partition, i.HighWaterMark, len(ms))
	}
	return ms
}

// info asks again while a leader begins or ends.
func info(t *testing.T, nc *nats.Conn, partition int) (i subjects.PartitionInfo) {
	t.Helper()
	eventually(t, "the partition has a leader", func() bool {
		m := ask(t, nc, subjects.Names{}.PartitionInfo(partition), "")
		i = subjects.PartitionInfo{}
		if err := json.Unmarshal(m.Data, &i); err != nil || i.Error != nil && i.Error.Reason != subjects.Unavailable {
			t.Fatalf("info: %s, %v", m.Data, err)
		}
		return i.Error == nil
	})
	return i
}

// one opens a node with one partition.
func one(t *testing.T, opts broker.Options) (*broker.Node, *nats.Conn) {
	t.Helper()
	opts.Partitions = 1
	return openNode(t, t.TempDir(), opts)
}

// reopen closes a node and opens its directory again.
func reopen(t *testing.T, n *broker.Node, dir string, opts broker.Options) (*broker.Node, *nats.Conn) {
	t.Helper()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	return openNode(t, dir, opts)
}
