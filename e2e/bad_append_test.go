package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/workload"
)

// bad is a request that must be refused.
type bad struct {
	name    string
	block   []byte // header block, as sent
	payload []byte
	code    int
	reason  string
	names   string // what the message must name
}

// checkBad sends each request to the subject on one connection, and checks that
// each is refused as its entry says and that nothing is appended.
func checkBad(t *testing.T, n *node, subject string, partition int, cases []bad) {
	t.Helper()
	c, r := dial(t, n.url), dialRaw(t, n.url)
	before := mustInfo(t, c, partition)
	for _, b := range cases {
		t.Run(b.name, func(t *testing.T) {
			r.tb = t
			checkRefused(t, r.request(subject, b.block, b.payload), b.code, b.reason, b.names)
			if after := mustInfo(t, c, partition); after.HighWaterMark != before.HighWaterMark || after.Digest != before.Digest {
				t.Fatalf("appended all the same: the high-water mark went from %d to %d", before.HighWaterMark, after.HighWaterMark)
			}
		})
	}
}

// checkRefused checks that an answer is a refusal with the given code and
// reason, in the body and in the headers, and that its message contains names.
func checkRefused(t *testing.T, m *nats.Msg, code int, reason, names string) {
	t.Helper()
	var answer workload.Reply
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		t.Fatalf("answer %q, headers %v: %v", m.Data, m.Header, err)
	}
	if answer.Error == nil {
		t.Fatalf("not refused: %s", m.Data)
	}
	e := answer.Error
	if e.Code != code || e.Reason != reason {
		t.Errorf("refused as %d %s, want %d %s: %s", e.Code, e.Reason, code, reason, e.Message)
	}
	if !strings.Contains(e.Message, names) {
		t.Errorf("the message does not name %q: %s", names, e.Message)
	}
	if got := m.Header.Get("Nats-Service-Error-Code"); got != strconv.Itoa(code) || m.Header.Get("Nats-Service-Error") == "" {
		t.Errorf("headers %v, want the code %d and a text", m.Header, code)
	}
}

const (
	write  = "Cantus-Write-Lock: "
	mark0  = "Cantus-High-Water-Mark: 0"
	appnd0 = "cantus.append.0"
)

func TestBadHeaderBlock(t *testing.T) {
	t.Parallel()
	n := startNode(t, t.TempDir())
	seedPartition(t, n, 0)
	refuse := func(name, block, names string) bad {
		return bad{name: name, block: []byte(block), payload: []byte("x"), code: 400, reason: "bad_request", names: names}
	}
	checkBad(t, n, appnd0, 0, []bad{
		refuse("no colon", "NATS/1.0\r\nCantus-Write-Lock a\r\n\r\n", "Cantus-Write-Lock a"),
		refuse("no version", "Cantus-Write-Lock: a\r\nCantus-High-Water-Mark: 0\r\n\r\n", "NATS/1.0"),
		refuse("another version", "HTTP/1.1\r\nCantus-Write-Lock: a\r\n\r\n", "NATS/1.0"),
		refuse("no empty line", "NATS/1.0\r\nCantus-Write-Lock: a\r\nCantus-High-Water-Mark: 0\r\n", "line"),
		refuse("cut within a line", "NATS/1.0\r\nCantus-Write-Lock: a\r\nCantus-High-Wat", "line"),
		refuse("line feed alone", "NATS/1.0\r\nCantus-Write-Lock: a\nCantus-High-Water-Mark: 0\r\n\r\n", "line"),
		refuse("carriage return inside", "NATS/1.0\r\nFoo: a\rb\r\n\r\n", "Foo"),
		refuse("a status", "NATS/1.0 503\r\n\r\n", "503"),
		refuse("a status and locks", "NATS/1.0 100 Idle\r\nCantus-Write-Lock: a\r\n\r\n", "100"),
		refuse("no key", "NATS/1.0\r\n: a\r\n\r\n", "line"),
		refuse("space before the colon", "NATS/1.0\r\nCantus-Write-Lock : a\r\n\r\n", "Cantus-Write-Lock "),
		refuse("space before the key", "NATS/1.0\r\n Cantus-Write-Lock: a\r\n\r\n", "Cantus-Write-Lock"),
		refuse("NUL in a value", "NATS/1.0\r\nFoo: a\x00b\r\n\r\n", "Foo"),
		refuse("NUL in a key", "NATS/1.0\r\nFoo\x00: a\r\n\r\n", "Foo"),
		refuse("key not ASCII", "NATS/1.0\r\nCantüs-Write-Lock: a\r\n\r\n", "Cant"),
		refuse("more after the end", "NATS/1.0\r\n\r\nCantus-Write-Lock: a\r\n\r\n", "after"),
		refuse("nothing but bytes", "\x00\x01\x02\x03", "NATS/1.0"),
	})
}

func TestBadHeaders(t *testing.T) {
	t.Parallel()
	n := startNode(t, t.TempDir())
	seedPartition(t, n, 0)
	refuse := func(name, names string, lines ...string) bad {
		return bad{name: name, block: block(lines...), payload: []byte("x"), code: 400, reason: "bad_request", names: names}
	}
	ahead := refuse("mark past the end", "18446744073709551615", write+"a", "Cantus-High-Water-Mark: 18446744073709551615")
	ahead.code, ahead.reason = 412, "ahead"
	aheadByOne := refuse("mark past the end by one, no lock", "4", "Cantus-High-Water-Mark: 4")
	aheadByOne.code, aheadByOne.reason = 412, "ahead"
	wrongLast := refuse("expected last is not the last", "2", "Nats-Expected-Last-Sequence: 2")
	wrongLast.code, wrongLast.reason = 409, "wrong_last"
	cases := []bad{
		ahead, aheadByOne, wrongLast,
		refuse("write lock without mark", "Cantus-High-Water-Mark", write+"a"),
		refuse("read lock without mark", "Cantus-High-Water-Mark", "Cantus-Read-Lock: a"),
		refuse("mark twice", "Cantus-High-Water-Mark", write+"a", mark0, "Cantus-High-Water-Mark: 1"),
		refuse("mark twice alike", "Cantus-High-Water-Mark", write+"a", mark0, mark0),
		refuse("kind twice", "Cantus-Kind", "Cantus-Kind: a", "Cantus-Kind: b"),
		refuse("message id twice", "Nats-Msg-Id", "Nats-Msg-Id: a", "Nats-Msg-Id: b"),
		refuse("expected last twice", "Nats-Expected-Last-Sequence", "Nats-Expected-Last-Sequence: 3", "Nats-Expected-Last-Sequence: 3"),
		refuse("message id empty", "Nats-Msg-Id", "Nats-Msg-Id: "),
		refuse("message id of 129 bytes", "129", "Nats-Msg-Id: "+strings.Repeat("i", 129)),
		refuse("mark empty on a lock", "Cantus-High-Water-Mark", write+"a", "Cantus-High-Water-Mark:"),
	}
	for _, header := range []string{"Cantus-High-Water-Mark", "Nats-Expected-Last-Sequence"} {
		for _, value := range []string{"", "x", "-1", "+1", "1.0", "1e0", "0x1", "1 2", "18446744073709551616", "１"} {
			cases = append(cases, refuse(fmt.Sprintf("%s %q", header, value), header, header+": "+value))
		}
	}
	for _, header := range []string{
		"Cantus-Writelock", "Cantus-Wirte-Lock", "Cantus-", "Cantus-Txid", "Cantus-Partition", "Cantus-Time", "Cantus-Msg-Id", "Cantus-Next",
		"cantus-write-lock", "CANTUS-WRITE-LOCK", "Cantus-write-Lock", "cantus-foo", "cANTUS-High-Water-Mark",
		"nats-msg-id", "Nats-Msg-ID", "NATS-EXPECTED-LAST-SEQUENCE", "nats-expected-last-sequence",
		"Nats-Expected-Stream", "Nats-Expected-Last-Msg-Id", "Nats-Expected-Last-Subject-Sequence", "Nats-Expected-", "nats-expected-stream",
	} {
		cases = append(cases, refuse("header "+header, header, header+": 0"))
	}
	for _, kind := range []string{"", "a.b", "a b", "*", ">", "a>", strings.Repeat("k", 65), "\xff\xfe", "a\x01"} {
		cases = append(cases, refuse(fmt.Sprintf("kind %q", kind), "kind", "Cantus-Kind: "+kind))
	}
	checkBad(t, n, appnd0, 0, cases)
}

func TestBadLocks(t *testing.T) {
	t.Parallel()
	n := startNode(t, t.TempDir())
	seedPartition(t, n, 0)
	var cases []bad
	refuse := func(name, names string, lines ...string) {
		cases = append(cases, bad{name: name, block: block(lines...), payload: []byte("x"), code: 400, reason: "bad_request", names: names})
	}
	for _, lock := range []string{
		"", ".", "a..b", ".a", "a.", "*", "a.*", "a.*.b", "a.>.b", ">.a", "a.b>", "a*", "a.>.", ">>",
		strings.Repeat("t.", 16) + "t", strings.Repeat("t.", 16) + ">", strings.Repeat("x", 65), "a." + strings.Repeat("x", 65) + ".>",
		"\xff\xfe", "a.\xc3", "a.\xed\xa0\x80", "a b", "a\tb", "a\u00a0b", "a.\u2028", "a\x01", "a\x7f", "a\u0085",
	} {
		for _, mode := range []string{"Write", "Read", "Append"} {
			names := "lock"
			if len(lock) > 2 && lock[0] == 'a' {
				names = `"a`
			}
			refuse(fmt.Sprintf("%s %.20q of %d bytes", mode, lock, len(lock)), names, "Cantus-"+mode+"-Lock: "+lock, mark0)
		}
	}
	for _, list := range []string{",", "a,", ",a", "a,,b", "a, ,b", "a.b, c d", "a.b,c.*"} {
		refuse("list "+list, "lock", "Cantus-Write-Lock: "+list, mark0)
	}
	refuse("65 locks in one header", "64", mark0, write+strings.Repeat("a,", 64)+"a")
	many := []string{mark0}
	for i := range 65 {
		many = append(many, fmt.Sprintf("%sl%d", write, i))
	}
	refuse("65 write locks", "64", many...)
	mixed := []string{mark0}
	for i := range 65 {
		mixed = append(mixed, fmt.Sprintf("Cantus-%s-Lock: l%d", []string{"Write", "Read", "Append"}[i%3], i))
	}
	refuse("65 locks of three modes", "64", mixed...)
	refuse("a good lock beside a bad one", "b..c", write+"a", write+"b..c", mark0)
	checkBad(t, n, appnd0, 0, cases)
}

// TestGoodAtTheLimit complements the tables above: a request exactly at the
// limits commits, and is read back as it was sent.
func TestGoodAtTheLimit(t *testing.T) {
	t.Parallel()
	n := startNode(t, t.TempDir())
	c, r := dial(t, n.url), dialRaw(t, n.url)
	lines, list := []string{mark0}, []string{}
	for i := range 64 {
		lock := fmt.Sprintf("%02d%s", i, strings.Repeat("x", 62))
		lines = append(lines, write+lock+strings.Repeat("."+strings.Repeat("y", 64), 15))
		list = append(list, "list."+lock)
	}
	big := block("Foo: bar")
	for _, g := range []struct {
		name    string
		block   []byte
		payload []byte
	}{
		{"no headers", nil, []byte("x")},
		{"an empty header block", block(), []byte("x")},
		{"an empty payload", nil, nil},
		{"64 locks of 16 tokens of 64 bytes", block(lines...), nil},
		{"64 locks in one header", block(mark0, write+strings.Join(list, " ,\t")), nil},
		{"an append lock needs no mark", block("Cantus-Append-Lock: a.b.>"), []byte("x")},
		{"the whole partition", block(write+">", "Cantus-High-Water-Mark: 6"), []byte("x")},
		{"letters beyond ASCII", block(write+"straße.東京.🙂", "Cantus-High-Water-Mark: 7", "Cantus-Kind: zahlung_ü"), []byte("x")},
		{"a message id of 128 bytes", block("Nats-Msg-Id: " + strings.Repeat("i", 128)), []byte("x")},
		{"no space after the colon", block("Cantus-Kind:k", "Foo:bar", "Foo:  baz"), []byte("x")},
		{"headers that are NATS's own", block("Nats-TTL: 1s", "Nats-Rollup: all", "Nats-Foo: x"), []byte("x")},
		{"1,000,000 bytes with headers", big, bytes.Repeat([]byte("x"), 1_000_000-len(big))},
		{"1,000,000 bytes without", nil, bytes.Repeat([]byte("x"), 1_000_000)},
	} {
		t.Run(g.name, func(t *testing.T) {
			r.tb = t
			before := mustInfo(t, c, 0).HighWaterMark
			answer, err := workload.DecodeReply(r.request(appnd0, g.block, g.payload))
			if err != nil || answer.Txid != before+1 {
				t.Fatalf("%v %v, want txid %d", answer, err, before+1)
			}
			got, _, refused, err := c.Read(t.Context(), 0, map[string]any{"from": answer.Txid})
			if err != nil || refused != nil || len(got) != 1 || !bytes.Equal(got[0].Data, g.payload) {
				t.Fatalf("read %d messages, %v %v", len(got), refused, err)
			}
			checkSent(t, got[0], g.block)
		})
	}
}

// checkSent checks that the headers of a request are read back, except NATS's
// own and those that are returned under another name.
func checkSent(t *testing.T, m *nats.Msg, block []byte) {
	t.Helper()
	want := nats.Header{}
	if block != nil {
		var err error
		if want, err = nats.DecodeHeadersMsg(block); err != nil {
			t.Fatal(err)
		}
	}
	if id := want["Nats-Msg-Id"]; id != nil {
		want["Cantus-Msg-Id"] = id
	}
	if want.Get("Cantus-Kind") == "" {
		want.Set("Cantus-Kind", "tx")
	}
	for key, values := range want {
		switch {
		case strings.HasPrefix(key, "Nats-"):
			delete(want, key)
		case strings.HasSuffix(key, "-Lock"):
			want.Set(key, regexp.MustCompile(`[ \t]*,[ \t]*`).ReplaceAllString(strings.Join(values, ","), ","))
		}
	}
	got := nats.Header{}
	for key, values := range m.Header {
		switch key {
		case "Cantus-Txid", "Cantus-Partition", "Cantus-Time", "Nats-Msg-Id":
		default:
			got[key] = values
		}
	}
	if fmt.Sprint(want) != fmt.Sprint(got) {
		t.Errorf("sent %.300v\nread %.300v", want, got)
	}
}

func TestBadSize(t *testing.T) {
	t.Parallel()
	n := startNode(t, t.TempDir())
	seedPartition(t, n, 0)
	head := block("Foo: bar")
	tooLarge := func(name string, block []byte, size int) bad {
		return bad{name: name, block: block, payload: bytes.Repeat([]byte("x"), size), code: 413, reason: "too_large", names: "1000000"}
	}
	checkBad(t, n, appnd0, 0, []bad{
		tooLarge("payload", nil, 1_000_001),
		tooLarge("payload and headers", head, 1_000_001-len(head)),
		tooLarge("headers", block("Foo: "+strings.Repeat("x", 1_000_000)), 0),
	})
}

// seedPartition appends three transactions.
func seedPartition(t *testing.T, n *node, partition int) {
	t.Helper()
	c := dial(t, n.url)
	for i := range 3 {
		mustAppend(t, c, partition, fmt.Sprintf("seed %d", i))
	}
}

func mustAppend(t *testing.T, c *workload.Client, partition int, payload string, headers ...string) workload.Reply {
	t.Helper()
	answer, err := c.Append(t.Context(), fmt.Sprintf("cantus.append.%d", partition), []byte(payload), headers...)
	if err != nil || answer.Error != nil {
		t.Fatalf("append: %v %v", answer, err)
	}
	return answer
}
