package main

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/cantuslog/cantus/subjects"
)

// anyTransaction draws a transaction that a log may hold.
func anyTransaction(t *rapid.T) *transaction {
	text := rapid.StringMatching(`[^\r\n\x00]{0,12}`)
	bytes := rapid.Map(rapid.SliceOfN(rapid.ByteRange(1, 255), 0, 12), func(b []byte) string {
		return strings.Trim(strings.NewReplacer("\r", "", "\n", "").Replace(string(b)), " \t")
	})
	values := rapid.OneOf(rapid.Map(text, func(s string) string { return strings.Trim(s, " \t") }), bytes)
	lock := rapid.StringMatching(`[a-zé%]{1,5}(\.[a-z]{1,3}){0,2}(\.>)?`)
	tx := &transaction{
		Partition: rapid.IntRange(0, 1023).Draw(t, "partition"), Txid: rapid.Uint64Min(1).Draw(t, "txid"),
		Time: time.Unix(0, rapid.Int64Min(0).Draw(t, "time")).UTC(), Kind: rapid.StringMatching(`[a-zä,]{1,8}`).Draw(t, "kind"),
		WriteLocks: rapid.SliceOfN(lock, 0, 3).Draw(t, "write"), ReadLocks: rapid.SliceOfN(lock, 0, 2).Draw(t, "read"),
		AppendLocks: rapid.SliceOfN(lock, 0, 2).Draw(t, "append"),
	}
	if rapid.Bool().Draw(t, "has mark") {
		mark := rapid.Uint64().Draw(t, "mark")
		tx.HighWaterMark = &mark
	}
	tx.setMsgID(rapid.OneOf(rapid.Just(""), bytes).Draw(t, "id"))
	var own headers
	for range rapid.IntRange(0, 5).Draw(t, "headers") {
		own = append(own, header{rapid.SampledFrom([]string{"A", "a", "Trace", "X-1"}).Draw(t, "name"), values.Draw(t, "value")})
	}
	tx.setHeaders(own)
	tx.data = []byte(rapid.OneOf(text, rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) })).Draw(t, "payload"))
	tx.setPayload(tx.data)
	return tx
}

// TestJSONKeepsEverything prints transactions as lines and reads them back.
func TestJSONKeepsEverything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tx := anyTransaction(t)
		var out bytes.Buffer
		if err := printTransaction(&out, tx); err != nil {
			t.Fatal(err)
		}
		line := out.String()
		if strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") || !utf8.ValidString(line) {
			t.Fatalf("it is not a line of text: %q", line)
		}
		again, err := decodeTransaction([]byte(line))
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if len(again.Headers) != len(tx.Headers) || len(tx.Headers) > 0 && !reflect.DeepEqual(again.Headers, tx.Headers) {
			t.Fatalf("%s: headers %q, want %q", line, again.Headers, tx.Headers)
		}
		if again.MsgID != tx.MsgID || !bytes.Equal(again.appendPayload(nil), tx.data) || !again.Time.Equal(tx.Time) || again.Txid != tx.Txid || again.Kind != tx.Kind ||
			again.Partition != tx.Partition || again.locks() != tx.locks() ||
			(again.HighWaterMark == nil) != (tx.HighWaterMark == nil) || tx.HighWaterMark != nil && *again.HighWaterMark != *tx.HighWaterMark {
			t.Fatalf("%s: %+v, want %+v", line, again, tx)
		}
	})
}

// Lines that would lose something are refused.
func TestLinesThatAreNoTransaction(t *testing.T) {
	for line, want := range map[string]string{
		``:                                           "not a transaction in JSON",
		`[]`:                                         "not a transaction in JSON",
		`{"payload":"x"`:                             "not a transaction in JSON",
		`{"payload":"x"} {}`:                         "not a transaction in JSON",
		`{"payload":"x","payload":"y"}`:              "duplicate",
		`{"payload":"x","Kind":"y"}`:                 "unknown",
		`{"payload":"x","time":"noon"}`:              `its time is not one: write date, time and zone, such as "time":"2026-`,
		`{"payload":"x","time":5}`:                   "its time is not one",
		`{"txid":-1,"payload":"x"}`:                  "txid",
		"{\"payload\":\"\xff\"}":                     "UTF-8",
		`{"payload":"\ud800"}`:                       "surrogate",
		`{"kind":"a"}`:                               "--headers-only",
		`{"payload":"","payload_base64":""}`:         "both payload and payload_base64",
		`{"payload_base64":"?"}`:                     "base64",
		`{"payload":"","headers":{"A":"x"}}`:         "headers",
		`{"payload":"","headers":["A"]}`:             "headers",
		`{"payload":"","headers_base64":"QTogeA=="}`: "headers_base64 are not header lines",
	} {
		if tx, err := decodeTransaction([]byte(line)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v; want an error with %q", line, tx, err, want)
		}
	}
}

// Lines that an import refuses, with what it says about them.
func TestLinesThatNoLogTakes(t *testing.T) {
	e := lineEncoder{id: "0123456789abcdef", count: 10, most: 1 << 20, largest: subjects.MaxTransaction}
	for line, want := range map[string]string{
		`{"payload":"x","kind":"a.b"}`:                                                                           "kind",
		`{"payload":"x","write_locks":["a..b"]}`:                                                                 "a..b",
		`{"payload":"x","append_locks":["a,b"]}`:                                                                 "comma",
		`{"payload":"x","headers":{"Cantus-Kind":["x"]}}`:                                                        "Cantus-Kind",
		`{"payload":"x","headers":{"Nats-Stream":["x"]}}`:                                                        "NATS's own",
		`{"payload":"x","headers":{"status":["x"]}}`:                                                             "status",
		`{"payload":"x","headers":{"A B":["x"]}}`:                                                                "visible ASCII",
		`{"payload":"x","headers":{"A":["x\ny"]}}`:                                                               "CR, LF or NUL",
		`{"payload":"x","msg_id":"` + strings.Repeat("i", 129) + `"}`:                                            "msg_id",
		`{"payload":"x","write_locks":[` + strings.Repeat(`"a",`, 60) + `"a"],"append_locks":["b","c","d","e"]}`: "65 locks",
		`{"payload":"x","headers":{"A":[` + strings.Repeat(`"a",`, 252) + `"a"]}}`:                               "headers",
		`{"payload":"` + strings.Repeat("x", subjects.MaxTransaction-50) + `"}`:                                  "--plain",
	} {
		if _, _, err := e.appendText(1, chainTag{}, line); err == nil || !strings.Contains(plain(err).Error(), want) {
			t.Errorf("%.80s: %v; want an error with %q", line, err, want)
		}
	}
}

// appendText encodes a line.
func (e *lineEncoder) appendText(n uint64, tag chainTag, line string) ([]byte, int, error) {
	t, err := decodeTransaction([]byte(line))
	if err != nil {
		return nil, 0, err
	}
	return e.appendLine(nil, appendLineID(nil, e.id, n, tag), t)
}

// FuzzImportLine imports a line of a file: what is sent is what the line says,
// or the line is refused.
func FuzzImportLine(f *testing.F) {
	for _, line := range []string{
		`{"partition":0,"txid":7,"time":"2026-11-22T09:00:00.5Z","kind":"pay","write_locks":["a.1"],"read_locks":["b.>"],"append_locks":["c"],"high_water_mark":6,"msg_id":"m","headers":{"A":["1","2"]},"payload":"x"}`,
		`{"payload_base64":"/wAB","headers_base64":"QTogMQ0KQjogMg0KQTogMw0K","msg_id_base64":"/w=="}`, `{"payload":""}`, `{}`, `null`, `{"payload":"\u0000","headers":{"":[""]}}`,
	} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		e := lineEncoder{id: "0123456789abcdef", count: 10, most: 1 << 20, largest: subjects.MaxTransaction}
		message, size, err := e.appendText(3, chainTag{1}, string(line))
		if err != nil {
			if len(message) > 0 || plain(err).Error() == "" {
				t.Fatalf("%q: %v, and %d bytes", line, err, len(message))
			}
			return
		}
		tx, err := decodeTransaction(line)
		if err != nil || size > subjects.MaxTransaction {
			t.Fatalf("%q is sent with %d bytes, although: %v", line, size, err)
		}
		sent := frame(t, message)
		if string(sent.payload) != string(tx.appendPayload(nil)) || sent.lines[0] != (header{subjects.HeaderMsgID, "import-0123456789abcdef-3-010000000000"}) {
			t.Fatalf("%q is sent as %+v", line, sent)
		}
		for _, h := range tx.Headers {
			want := header{h.key, strings.Trim(h.value, " \t")}
			found := false
			for _, l := range sent.lines {
				found = found || l == want
			}
			if !found {
				t.Fatalf("%q is sent without %q", line, h)
			}
		}
	})
}

// sentLine is a transaction of a batch message.
type sentLine struct {
	lines   headers
	payload []byte
}

// frame decodes a batch message of one transaction.
func frame(t *testing.T, message []byte) (s sentLine) {
	t.Helper()
	n := int(message[0])<<24 | int(message[1])<<16 | int(message[2])<<8 | int(message[3])
	if err := subjects.ScanBlock(message[8:8+n], func(key, value []byte) error {
		s.lines = append(s.lines, header{string(key), string(value)})
		return nil
	}); err != nil {
		t.Fatalf("%q: %v", message, err)
	}
	s.payload = message[8+n:]
	return s
}
