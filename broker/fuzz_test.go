package broker

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/cantuslog/cantus/lockmgr"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

func FuzzCutBatch(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 1, 'x'})
	f.Add([]byte{0, 0, 0, 1, 0, 0, 0, 1, 'h', 'p', 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		const most = 100
		items, err := parseBatch(b, most)
		if err != nil {
			if items.count != 0 || err.Reason != subjects.BadRequest && err.Reason != subjects.TooLarge {
				t.Fatalf("%d items, %v", items.count, err)
			}
			return
		}
		if items.count == 0 || items.count > most {
			t.Fatalf("%d items", items.count)
		}
		var again []byte // what was cut is what there is
		for range items.count {
			header, payload := items.next()
			again = binary.BigEndian.AppendUint32(again, uint32(len(header)))
			again = binary.BigEndian.AppendUint32(again, uint32(len(payload)))
			again = append(append(again, header...), payload...)
		}
		if !bytes.Equal(again, b) {
			t.Fatalf("cut into something else: %x from %x", again, b)
		}
	})
}

func FuzzRequest(f *testing.F) {
	f.Add("NATS/1.0\r\nCantus-Write-Lock: a.b\r\nCantus-High-Water-Mark: 7\r\n\r\n", "payload")
	f.Add("NATS/1.0\r\nCantus-Write-Lock: a.b, c,d.>\r\nCantus-High-Water-Mark: 7\r\n\r\n", "payload")
	f.Add("NATS/1.0\r\nCantus-Read-Lock:a.>\r\nCantus-Append-Lock: b\r\nCantus-High-Water-Mark: 0\r\nNats-Msg-Id: x\r\nApp: y\r\n\r\n", "")
	f.Add("NATS/1.0\r\nCantus-Kind: pay\r\nNats-Expected-Last-Sequence: 3\r\n\r\n", "x")
	f.Add("NATS/1.0\r\nnats-msg-id: x\r\n\r\n", "x")
	f.Add("NATS/1.0\r\nCantus-High-Water-Mark: 7\r\nCantus-Unless: {\"kinds\":[\"a\"],\"locks\":[\"b.>\",\"c\"]}\r\n\r\n", "x")
	f.Add("NATS/1.0\r\nCantus-Unless:[{\"locks\" : [\"b\"]},{\"kinds\":[\"\\u0061\"]}]\r\nCantus-High-Water-Mark: 0\r\n\r\n", "")
	f.Add("", "x")
	f.Fuzz(func(t *testing.T, block, payload string) {
		const limit = 2000
		o := newRequestArena()
		defer o.free()
		r := o.add("reply")
		if err := r.decode([]byte(block), []byte(payload), limit); err != nil {
			if err.Code != err.Reason.Code() || err.Message == "" {
				t.Fatalf("%+v", err)
			}
			return
		}
		// Each lock that the block names is a lock of the request.
		named := 0
		for _, line := range strings.Split(block, "\r\n") {
			for _, h := range lockHeaders {
				if strings.HasPrefix(line, h+":") {
					named += 1 + strings.Count(line, ",")
				}
			}
		}
		if len(r.cert.Locks) != named || len(r.tx.Locks) != named {
			t.Fatalf("%d locks of %d in %q", len(r.cert.Locks), named, block)
		}
		for _, l := range r.cert.Locks {
			if subjects.CheckLock(l.Name) != nil || l.Mode != lockmgr.Append && !r.cert.HasHighWaterMark {
				t.Fatalf("lock %q without a mark in %q", l.Name, block)
			}
		}
		checkUnless(t, r)
		// It is read back from the log unchanged, and the answer to a read is
		// well-formed and no larger than allowed.
		var w wal.BatchWriter
		w.Begin(wal.Transactions, 1, 1, 0)
		w.Add(&r.tx)
		b, err := wal.ParseBatch(w.Finish())
		if err != nil {
			t.Fatal(err)
		}
		var back wal.Transaction
		if records := b.Read(); !records.Next(&back) {
			t.Fatal(records.Err())
		}
		back.Txid, back.Time = 0, 0
		if string(back.Payload) != payload || string(back.Kind) != string(r.tx.Kind) || string(back.Header) != string(r.tx.Header) ||
			string(back.MsgID) != string(r.tx.MsgID) || len(back.Locks) != named || back.HasHighWaterMark != r.tx.HasHighWaterMark || back.HighWaterMark != r.tx.HighWaterMark {
			t.Fatalf("stored %+v, read %+v", r.tx, back)
		}
		enc := encoder{names: subjects.Names{Prefix: "cantus"}}
		out := enc.append(nil, "s", &back, true)
		if len(out) > limit+feedRoom {
			t.Fatalf("%d bytes of %d are given back as %d", len(block)+len(payload), limit, len(out))
		}
		if err := subjects.ScanBlock(enc.header, func(_, _ []byte) error { return nil }); err != nil {
			t.Fatalf("given back malformed: %v: %q", err, enc.header)
		}
		var cert lockmgr.Transaction // certification of what is stored is that of what was sent
		lockTransaction(&back, &cert)
		if cert.ID != r.cert.ID || cert.Fingerprint != r.cert.Fingerprint || named > 0 && !reflect.DeepEqual(cert.Locks, r.cert.Locks) {
			t.Fatalf("certified as %+v, recorded as %+v", r.cert, cert)
		}
	})
}

// checkUnless checks a condition that was accepted.
func checkUnless(t *testing.T, r *request) {
	t.Helper()
	if n := len(r.unless); n > subjects.MaxUnless || n > 0 && !r.cert.HasHighWaterMark {
		t.Fatalf("%d items, with a mark: %v", n, r.cert.HasHighWaterMark)
	}
	for _, item := range r.unless {
		if err := item.check("item"); err != nil {
			t.Fatalf("%+v: %v", item, err)
		}
	}
}

// Items as programs write them are what any JSON is.
func FuzzPlainItem(f *testing.F) {
	for _, s := range []string{`{"kinds":["a"]}`, `{"locks":["a.>","b"],"kinds":["k"]}`, `{"locks":["a"]`, `{"locks":["a"]}x`, `{"kinds":["a"],"kinds":["b"]}`, `{"kinds":[]}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		plain, ok := plainItem(value, nil)
		any, err := appendItems(nil, value)
		if ok && (err != nil || !reflect.DeepEqual(plain, any)) {
			t.Fatalf("%q is %q or %q, %v", value, plain, any, err)
		}
		var wrong *subjects.Error
		if err != nil && (!errors.As(err, &wrong) || wrong.Reason != subjects.BadRequest || !utf8.ValidString(value) && !strings.Contains(wrong.Message, "UTF-8")) {
			t.Fatalf("%q: %v", value, err)
		}
	})
}

func FuzzQuery(f *testing.F) {
	for _, s := range []string{``, `{}`, `{"from":3,"max":5,"max_bytes":100,"wait":"5s","kinds":["a","b"],"lock":"a.>","headers_only":true}`,
		`{"from":1,"from":2}`, `{"From":1}`, `{"from":null}`, `{} {}`, `{"kinds":[{"from":1}]}`, `[1]`, `{"wait":"1h"}`, `{"lock":"a","x":{}}`,
		`{"from":2,"from_time":"2026-11-01T08:00:00.000000001+01:00"}`, `{"from_time":"2026-11-01"}`, `{"from_time":1}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		q, err := parseQuery(body)
		if err != nil {
			var e *subjects.Error
			if !errors.As(err, &e) || e.Reason != subjects.BadRequest && len(body) <= subjects.MaxReadBody || e.Message == "" {
				t.Fatalf("%v", err)
			}
			return
		}
		if q.from == 0 || q.max < 1 || q.max > subjects.MaxReadCount || q.maxBytes < 1 || q.maxBytes > subjects.MaxReadBytes ||
			q.wait < 0 || q.wait.Seconds() > subjects.MaxReadWaitSeconds || q.lock != "" && subjects.CheckLock(q.lock) != nil {
			t.Fatalf("%q is decoded as %+v", body, q)
		}
		for _, k := range q.kinds {
			if subjects.CheckKind(k) != nil {
				t.Fatalf("%q is decoded as %+v", body, q)
			}
		}
		if trimmed := bytes.TrimSpace(body); len(trimmed) > 0 && !json.Valid(trimmed) {
			t.Fatalf("%q is no JSON", body)
		}
	})
}
