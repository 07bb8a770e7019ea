package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/workload"
)

// badJSON is a body that must be refused.
type badJSON struct {
	body   string
	names  string
	code   int
	reason string
}

func broken(body, names string) badJSON { return badJSON{body, names, 400, "bad_request"} }

// brokenEverywhere are bodies that every subject with a JSON body must refuse.
var brokenEverywhere = []badJSON{
	broken("{", ""), broken("}", ""), broken("[]", ""), broken(`"x"`, ""), broken("7", ""), broken("true", ""),
	broken(`{"txid":1,}`, ""), broken(`{"txid":1} {"txid":2}`, ""), broken(`{"txid":1}x`, ""), broken("{\"txid\":1}\x00", ""),
	broken("\xff\xfe", ""), broken(`{"nonsense":1}`, "nonsense"), broken(`{'txid':1}`, ""),
	broken(strings.Repeat("[", 4_000), ""), broken(`{"nonsense":`+strings.Repeat("[", 4_000), ""),
}

func checkBadJSON(t *testing.T, n *node, subject string, cases ...badJSON) {
	t.Helper()
	r := dialRaw(t, n.url)
	for _, b := range append(brokenEverywhere, cases...) {
		t.Run(fmt.Sprintf("%s %.40s", subject, b.body), func(t *testing.T) {
			r.tb = t
			checkRefused(t, r.request(subject, nil, []byte(b.body)), b.code, b.reason, b.names)
		})
	}
}

func TestBadJSON(t *testing.T) {
	t.Parallel()
	n := startNode(t, t.TempDir())
	c := dial(t, n.url)
	mustAppend(t, c, 0, "one", "Cantus-Append-Lock", "a.b")
	mustAppend(t, c, 0, "two")
	before := mustInfo(t, c, 0)
	checkBadJSON(t, n, "cantus.read.0",
		broken(`{"from":-1}`, "from"), broken(`{"from":"1"}`, "from"), broken(`{"from":1.5}`, "from"), broken(`{"from":18446744073709551616}`, "from"),
		broken(`{"max":-1}`, "max"), broken(`{"max":65537}`, "max"), broken(`{"max":1e99}`, "max"), broken(`{"max":"all"}`, "max"),
		broken(`{"max_bytes":-1}`, "max_bytes"), broken(`{"max_bytes":8388609}`, "max_bytes"),
		broken(`{"wait":"-1s"}`, "wait"), broken(`{"wait":"60.1s"}`, "wait"), broken(`{"wait":"soon"}`, "wait"), broken(`{"wait":5}`, "wait"),
		broken(`{"kinds":["a.b"]}`, "a.b"), broken(`{"kinds":["ok","*"]}`, "kind"), broken(`{"kinds":[""]}`, "kind"), broken(`{"kinds":"tx"}`, "kinds"),
		broken(`{"lock":"a..b"}`, "lock"), broken(`{"lock":"a.*"}`, "lock"), broken(`{"headers_only":1}`, "headers_only"),
		badJSON{`{"from":4}`, "4", 412, "ahead"}, badJSON{`{"from":18446744073709551615}`, "18446744073709551615", 412, "ahead"},
	)
	checkBadJSON(t, n, "cantus.get.0",
		broken(``, ""), broken(`{}`, "txid"), broken(`{"txid":1,"lock":"a"}`, "lock"), broken(`{"txid":-1}`, "txid"), broken(`{"txid":"1"}`, "txid"),
		broken(`{"txid":0}`, "txid"), broken(`{"lock":""}`, "lock"), broken(`{"lock":"a..b"}`, "lock"), broken(`{"lock":7}`, "lock"),
		badJSON{`{"txid":3}`, "3", 412, "ahead"}, badJSON{`{"txid":18446744073709551615}`, "18446744073709551615", 412, "ahead"},
		badJSON{`{"lock":"never.seen"}`, "never.seen", 404, "not_found"},
	)
	checkBadJSON(t, n, "cantus.cursor.0.c1",
		broken(`{}`, "txid"), broken(`{"expected":1}`, "txid"), broken(`{"txid":-1}`, "txid"), broken(`{"txid":"1"}`, "txid"),
		broken(`{"txid":1,"expected":-1}`, "expected"), broken(`{"txid":null}`, "txid"),
		badJSON{`{"txid":3}`, "3", 412, "ahead"}, badJSON{`{"txid":1,"expected":1}`, "0", 409, "wrong_last"},
	)
	r := dialRaw(t, n.url)
	for _, body := range []string{"", `{"txid":1}`} {
		checkRefused(t, r.request("cantus.cursor.0."+strings.Repeat("c", 65), nil, []byte(body)), 400, "bad_request", "65")
	}
	for _, subject := range []string{"cantus.info.0", "cantus.info", "cantus.admin.status", "cantus.admin.cluster.balance", "$SRV.INFO"} {
		checkBadJSON(t, n, subject, broken("null", ""), broken(`{"node":"n1"}`, "node"))
	}
	for _, subject := range []string{"get.0", "cursor.0.c1", "info", "info.0", "admin.status", "admin.cluster.drain", "admin.trim.0"} {
		checkRefused(t, r.request("cantus."+subject, nil, []byte(strings.Repeat("[", 100_000))), 413, "too_large", "4096")
	}
	if after := mustInfo(t, c, 0); after.HighWaterMark != before.HighWaterMark {
		t.Errorf("the high-water mark went from %d to %d", before.HighWaterMark, after.HighWaterMark)
	}
	if at := cursor(t, c, 0, "c1", ""); at.Txid != 0 {
		t.Errorf("the cursor moved to %d", at.Txid)
	}
}

// cursorReply is the answer to a cursor request.
type cursorReply struct {
	Partition     int               `json:"partition"`
	Name          string            `json:"name"`
	Txid          uint64            `json:"txid"`
	HighWaterMark uint64            `json:"high_water_mark"`
	Error         *workload.Refusal `json:"error"`
}

// cursor reads a cursor, or sets it if there is a body.
func cursor(t *testing.T, c *workload.Client, partition int, name, body string) cursorReply {
	t.Helper()
	m := nats.NewMsg(fmt.Sprintf("cantus.cursor.%d.%s", partition, name))
	m.Data = []byte(body)
	answer, err := c.Request(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	var r cursorReply
	if err := json.Unmarshal(answer.Data, &r); err != nil {
		t.Fatalf("cursor answers %q: %v", answer.Data, err)
	}
	return r
}

// TestNoSuchPartition checks that NATS itself answers at once that there are no
// responders.
func TestNoSuchPartition(t *testing.T) {
	t.Parallel()
	n := startNode(t, t.TempDir(), "--partitions", "4")
	c := dial(t, n.url)
	for _, subject := range []string{
		"append.4", "append.99999999999999999999", "append.-1", "append.00", "append.x", "append.0.1.2", "append.key", "append",
		"batch.4", "read.4", "replica.read.4", "get.4", "info.4", "cursor.4.c", "cursor.0", "reed.0",
	} {
		_, err := c.Request(t.Context(), nats.NewMsg("cantus."+subject))
		if !errors.Is(err, nats.ErrNoResponders) {
			t.Errorf("cantus.%s: %v, want no responders", subject, err)
		}
	}
	for p := range 4 {
		if answer := mustAppend(t, c, p, "x"); answer.Txid != 1 || answer.Partition != p {
			t.Errorf("partition %d answers %v as partition %d", p, answer, answer.Partition)
		}
	}
}

// TestLongPoll checks that a read at the end waits for new transactions, and
// ends empty if there are none.
func TestLongPoll(t *testing.T) {
	t.Parallel()
	n := startNode(t, t.TempDir())
	reader, writer := dial(t, n.url), dial(t, n.url)
	mustAppend(t, writer, 0, "one")
	got, end, refused, err := reader.Read(t.Context(), 0, map[string]any{"from": 2})
	if err != nil || refused != nil || len(got) != 0 || end.Next != 2 || end.HighWaterMark != 1 {
		t.Fatalf("at the end: %d messages, %+v, %v %v", len(got), end, refused, err)
	}
	got, end, refused, err = reader.Read(t.Context(), 0, map[string]any{"from": 2, "wait": "10ms"})
	if err != nil || refused != nil || len(got) != 0 || end.Next != 2 || end.HighWaterMark != 1 {
		t.Fatalf("after waiting: %d messages, %+v, %v %v", len(got), end, refused, err)
	}
	done := make(chan error, 1)
	go func() {
		got, end, refused, err := reader.Read(context.WithoutCancel(t.Context()), 0, map[string]any{"from": 2, "wait": "60s"})
		if err == nil && (refused != nil || len(got) != 1 || end.Next != 3 || end.HighWaterMark != 2) {
			err = fmt.Errorf("%d messages, %+v, %v", len(got), end, refused)
		}
		done <- err
	}()
	mustAppend(t, writer, 0, "two")
	if err := <-done; err != nil {
		t.Fatalf("waiting for the second: %v", err)
	}
}

// TestReadFilters checks that filters leave out exactly what they name, and
// that a read continues from Next after what was examined.
func TestReadFilters(t *testing.T) {
	t.Parallel()
	n := startNode(t, t.TempDir())
	c := dial(t, n.url)
	for i := range 12 {
		mustAppend(t, c, 0, strconv.Itoa(i+1), "Cantus-Kind", []string{"a", "b", "c"}[i%3], "Cantus-Append-Lock", fmt.Sprintf("l.%d", i%4), "Foo", "bar")
	}
	for name, f := range map[string]struct {
		request map[string]any
		want    string
		next    uint64
	}{
		"all":          {map[string]any{}, "1 2 3 4 5 6 7 8 9 10 11 12", 13},
		"from":         {map[string]any{"from": 11}, "11 12", 13},
		"max":          {map[string]any{"max": 2}, "1 2", 3},
		"kinds":        {map[string]any{"kinds": []string{"a", "c"}}, "1 3 4 6 7 9 10 12", 13},
		"a lock":       {map[string]any{"lock": "l.1"}, "2 6 10", 13},
		"a subtree":    {map[string]any{"lock": "l.>", "from": 9}, "9 10 11 12", 13},
		"nothing":      {map[string]any{"lock": "l"}, "", 13},
		"both and max": {map[string]any{"lock": "l.1", "kinds": []string{"b", "c"}, "max": 1}, "2", 3},
		"headers only": {map[string]any{"headers_only": true, "max": 1}, "", 2},
	} {
		got, end, refused, err := c.Read(t.Context(), 0, f.request)
		var payloads []string
		for _, m := range got {
			if len(m.Data) > 0 {
				payloads = append(payloads, string(m.Data))
			}
			if m.Header.Get("Foo") != "bar" {
				t.Errorf("%s: headers %v", name, m.Header)
			}
		}
		if err != nil || refused != nil || strings.Join(payloads, " ") != f.want || end.Next != f.next || end.HighWaterMark != 12 {
			t.Errorf("%s: %v, %+v, %v %v; want %s, next %d", name, payloads, end, refused, err, f.want, f.next)
		}
	}
}
