package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
)

func txMessage(payload string, extra ...string) *nats.Msg {
	msg := nats.NewMsg("inbox")
	msg.Header.Set("Cantus-Txid", "813")
	msg.Header.Set("Cantus-Partition", "2")
	msg.Header.Set("Cantus-Time", "2026-11-22T09:00:00.12Z")
	msg.Header.Set("Cantus-Kind", "tx")
	for i := 0; i < len(extra); i += 2 {
		msg.Header.Add(extra[i], extra[i+1])
	}
	msg.Data = []byte(payload)
	return msg
}

func TestTransactionForms(t *testing.T) {
	const head = "813  2026-11-22T09:00:00.120000000Z  tx  "
	const jsonHead = `{"partition":2,"txid":813,"time":"2026-11-22T09:00:00.12Z","kind":"tx",`
	for _, c := range []struct {
		name, line, json string
		headersOnly      bool
		msg              *nats.Msg
	}{
		{name: "plain", msg: txMessage("hello"), line: head + "-  hello", json: jsonHead + `"payload":"hello"}`},
		{name: "empty", msg: txMessage(""), line: head + "-  ", json: jsonHead + `"payload":""}`},
		{name: "headers only", msg: txMessage(""), headersOnly: true, line: head + "-  ", json: strings.TrimSuffix(jsonHead, ",") + "}"},
		{name: "control characters", msg: txMessage("a\x1b[2J\r\nb\u202e<&>"),
			line: head + `-  a\x1b[2J\r\nb\u202e<&>`, json: jsonHead + `"payload":"a\u001b[2J\r\nb` + "\u202e" + `<&>"}`},
		{name: "binary", msg: txMessage("\xff\x00\x01"), line: head + "-  ff0001 (3 bytes, binary)", json: jsonHead + `"payload_base64":"/wAB"}`},
		{name: "long", msg: txMessage(strings.Repeat("ä", 81)),
			line: head + "-  " + strings.Repeat("ä", 80) + "… (162 bytes)", json: jsonHead + `"payload":"` + strings.Repeat("ä", 81) + `"}`},
		{name: "locks and headers",
			msg: txMessage("x", "Cantus-Write-Lock", "a.1,a.2", "Cantus-Read-Lock", "b.>", "Cantus-Append-Lock", "c",
				"Cantus-High-Water-Mark", "0", "Cantus-Msg-Id", "id-1", "Trace", "7f", "Nats-Msg-Id", "cantus.2.813"),
			line: head + "w:a.1 w:a.2 r:b.> a:c  x",
			json: jsonHead + `"write_locks":["a.1","a.2"],"read_locks":["b.>"],"append_locks":["c"],"high_water_mark":0,` +
				`"msg_id":"id-1","headers":{"Trace":["7f"]},"payload":"x"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			tx, err := parseTransaction(c.msg, c.headersOnly)
			if err != nil {
				t.Fatal(err)
			}
			if got := tx.line(); got != c.line {
				t.Errorf("line %q, want %q", got, c.line)
			}
			var out bytes.Buffer
			if err := printTransaction(&out, tx); err != nil {
				t.Fatal(err)
			}
			if got := strings.TrimSuffix(out.String(), "\n"); got != c.json {
				t.Errorf("JSON\n%s, want\n%s", got, c.json)
			}
		})
	}
}

func TestMessageThatIsNoTransaction(t *testing.T) {
	for _, header := range []string{"Cantus-Txid", "Cantus-Partition", "Cantus-Time"} {
		msg := txMessage("x")
		msg.Header.Set(header, "nonsense")
		if _, err := parseTransaction(msg, false); err == nil || !strings.Contains(err.Error(), header) {
			t.Errorf("bad %s: error %v, want one that names it", header, err)
		}
	}
}
