package main

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"github.com/nats-io/nats.go"
)

// FuzzMessage prints a message that a node, or anybody else, has sent: a
// transaction or a refusal. The line of a transaction is one line and moves no
// cursor; its JSON is JSON.
func FuzzMessage(f *testing.F) {
	f.Add([]byte("NATS/1.0\r\nCantus-Txid: 7\r\nCantus-Partition: 0\r\nCantus-Time: 2026-11-22T09:00:00.1Z\r\nCantus-Kind: tx\r\nCantus-Write-Lock: a,b\r\nApp: x\r\n\r\n"), []byte("p"))
	f.Add([]byte("NATS/1.0\r\nCantus-Txid: 1\r\nCantus-Partition: 0\r\nCantus-Time: 2026-11-22T09:00:00Z\r\nCantus-Kind: \x1b[2J\r\nCantus-High-Water-Mark: -1\r\n\r\n"), []byte("\x1b]0;x\x07\xff"))
	f.Add([]byte("NATS/1.0\r\nNats-Service-Error-Code: 409\r\nNats-Service-Error: x\r\n\r\n"), []byte(`{"error":{"code":409,"reason":"conflict","message":"m"}}`))
	f.Add([]byte("NATS/1.0\r\nNats-Service-Error-Code: 500\r\n\r\n"), []byte(`{"error":null}`))
	f.Fuzz(func(t *testing.T, block, data []byte) {
		m := &nats.Msg{Data: data}
		var err error
		if m.Header, err = nats.DecodeHeadersMsg(block); err != nil {
			return // nats.go does not deliver it
		}
		if e := refused(m); e != nil && refusal(e).Error() == "" {
			t.Fatalf("%q is refused without a reason", data)
		}
		for _, headersOnly := range []bool{false, true} {
			tx, err := parseTransaction(m, headersOnly)
			if err != nil {
				continue
			}
			line := tx.line()
			for _, r := range line {
				if r != ' ' && !unicode.IsPrint(r) {
					t.Fatalf("%q prints as %q", block, line)
				}
			}
			var out bytes.Buffer
			if err := printJSON(&out, tx); err != nil || !json.Valid(out.Bytes()) || strings.Count(out.String(), "\n") != 1 {
				t.Fatalf("%q, %v", out.String(), err)
			}
			if headersOnly != (tx.Payload == nil && tx.PayloadBase64 == nil && (headersOnly || len(data) > 0)) && len(data) > 0 {
				t.Fatalf("%+v", tx)
			}
		}
	})
}

// FuzzValues gives a text to each type of value that flags, the environment and
// configuration files take. A value that is taken is taken again as it prints.
func FuzzValues(f *testing.F) {
	for _, s := range []string{"256MiB", "1e30GB", "-1", "00", "4096", "1025", "5s", "0s", "127.0.0.1:4222", "[::1]:4222", ":99999", "off", "n1,n2,n3", "a,,b", "n1:1,n2:2", "a.>", "> ", "x.y", "2026-11-01", "2026-11-01 08:30", "2026-11-01T08:30:00.5+01:00", "90m", "\xff", "é", strings.Repeat("9", 40)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, v := range []encoding.TextUnmarshaler{
			new(byteSize), new(count), new(partitionCount), new(partition), new(txid), new(duration), new(listenAddr), new(optionalAddr), new(token),
			new(nodeNames), new(addresses), new(replicaCount), new(prefix), new(inboxPrefix), new(lockName), new(position), new(moment),
		} {
			if err := v.UnmarshalText([]byte(s)); err != nil && err.Error() == "" {
				t.Fatalf("%q is refused by %T without a reason", s, v)
			}
		}
	})
}

// FuzzToken reads a file with the cluster's token.
func FuzzToken(f *testing.F) {
	f.Add([]byte(strings.Repeat("x", 64) + "\n"))
	f.Add([]byte(" \n\t"))
	f.Add([]byte{0xff, 0})
	f.Fuzz(func(t *testing.T, text []byte) {
		file := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		secret, err := (&serveFlags{SecretFile: file}).secret()
		if (err != nil) != (strings.TrimSpace(string(text)) == "") || err != nil && strings.Contains(err.Error(), secret) && secret != "" {
			t.Fatalf("%q is the token %q, %v", text, secret, err)
		}
	})
}

// FuzzCheckFile has the command check a history.
func FuzzCheckFile(f *testing.F) {
	f.Add([]byte(`{"history":{"version":1,"partitions":1}}` + "\n" + `{"operation":{"client":"c","partition":0,"start":1,"end":2,"append":{"content":"x"},"outcome":"ok","txid":1,"time":5}}` + "\n"))
	f.Add([]byte(`{"history":{"version":1,"partitions":1}}` + "\n" + `{"drain":{"replica":"n1","partition":0,"first_txid":1,"high_water_mark":18446744073709551615}}` + "\n"))
	f.Add([]byte(`{"history":{"version":2}}`))
	f.Add([]byte("\n\n{"))
	f.Fuzz(func(t *testing.T, text []byte) {
		file := filepath.Join(t.TempDir(), "history")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, asJSON := range []bool{false, true} {
			err := (&checkCmd{File: file, JSON: asJSON}).Run(&program{out: io.Discard, errOut: io.Discard})
			var failed *failure
			if err != nil && (!errors.As(err, &failed) || failed.status != exitFailed && failed.status != exitUsage) {
				t.Fatalf("%q: %v", text, err)
			}
		}
	})
}
