package broker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// FuzzBody gives a body to every request but a read that takes one. What is
// refused is a bad request, or too large; what is not means to encoding/json
// what it means to the node.
func FuzzBody(f *testing.F) {
	for _, s := range []string{
		``, `{}`, `{"txid":812,"expected":800}`, `{"txid":0}`, `{"lock":"account.>"}`, `{"before":1}`, `{"age":"720h"}`, `{"begin":{"cluster":"c","txid":1,"digest":"00","time":"2026-11-22T09:00:00Z"}}`, `{"bytes":18446744073709551616}`,
		`{"node":"n4","standby":true,"key":"ab"}`, `{"partition":0,"to":"n2"}`, `{"txid":1}{"txid":2}`, `{"txid":null}`, `{"TXID":1}`, `{"txid":1,"txid":2}`,
		`{"lock":"\ud800"}`, `{"lock":"\\ud800"}`, "{\"lock\":\"\xff\"}", `[{"txid":1}]`,
		`{"at":"2026-11-01T08:00:00Z"}`, `{"at":"2026-11-01"}`, `{"at":"9999-12-31T23:59:59Z"}`,
		`{"key":{"a":[null]}}`, strings.Repeat(`{"a":`, 50),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, to := range []any{new(subjects.CursorRequest), new(subjects.GetRequest), new(subjects.TrimRequest), new(subjects.AdminRequest),
			new(subjects.BatchesRequest), new(subjects.CursorsRequest), new(subjects.RestoreRequest)} {
			if err := smallJSON(body, to); err != nil {
				checkBodyRefused(t, body, err)
				continue
			}
			if len(bytes.TrimSpace(body)) == 0 {
				continue
			}
			again := reflect.New(reflect.TypeOf(to).Elem()).Interface()
			if err := json.Unmarshal(body, again); err != nil || !reflect.DeepEqual(again, to) {
				t.Fatalf("%q is %+v, and to encoding/json %+v, %v", body, to, again, err)
			}
		}
		if err := noBody(body); err != nil {
			checkBodyRefused(t, body, err)
		}
		if at, err := infoBody(body); err != nil {
			checkBodyRefused(t, body, err)
		} else if at != nil && !time.Unix(0, at.UnixNano()).Equal(*at) {
			t.Fatalf("%q is %v, which has no number of nanoseconds", body, at)
		}
		if r, err := operationBody(&natslink.Message{Payload: body}, "node"); err != nil {
			checkBodyRefused(t, body, err)
		} else if r.To != "" || r.Partition != nil || r.Standby || r.Key != "" {
			t.Fatalf("%q is taken for %+v", body, r)
		}
	})
}

func checkBodyRefused(t *testing.T, body []byte, err error) {
	t.Helper()
	var e *subjects.Error
	if !errors.As(err, &e) || e.Message == "" ||
		e.Reason != subjects.BadRequest && (e.Reason != subjects.TooLarge || len(body) <= subjects.MaxBody) {
		t.Fatalf("%q: %v", body, err)
	}
}

// FuzzCursor sends requests to a cursor, whose name is a part of the subject.
func FuzzCursor(f *testing.F) {
	f.Add("billing", []byte(`{"txid":3,"expected":1}`))
	f.Add("billing", []byte(`{"txid":3,"owner":"b","expected_owner":"a"}`))
	f.Add("billing", []byte(``))
	f.Add("a.b", []byte(`{"txid":99}`))
	f.Add("", []byte(`{}`))
	f.Add("é,", []byte(`{"txid":0}`))
	r := newTestReplica()
	r.mark.Store(10)
	names := subjects.Names{Prefix: "cantus"}
	w := &cursorWriter{state: r, refusals: &refusals{face: &face{names: names}, outer: names}}
	f.Fuzz(func(t *testing.T, name string, body []byte) {
		c, err := w.parse(&natslink.Message{Subject: names.Cursor(0, name), Reply: "r", Payload: body}, nil)
		if err != nil {
			var e *subjects.Error
			if !errors.As(err, &e) || e.Reason != subjects.BadRequest && e.Reason != subjects.TooLarge && e.Reason != subjects.Ahead {
				t.Fatalf("%q %q: %v", name, body, err)
			}
			return
		}
		if subjects.CheckCursor(c.name) != nil || c.Txid > 10 || c.write != (len(body) > 0) || !strings.HasSuffix(name, c.name) ||
			len(c.ExpectedOwner) > 0 && (!c.HasExpectedOwner || subjects.CheckCursor(string(c.ExpectedOwner)) != nil) {
			t.Fatalf("%q %q is taken for %+v", name, body, c)
		}
	})
}

// FuzzBatches sends requests for batches.
func FuzzBatches(f *testing.F) {
	for _, s := range []string{``, `{}`, `{"from":3,"max_bytes":100,"wait":"5s"}`, `{"from":0}`, `{"max":1}`, `{"from":null}`, `{"wait":"61s"}`, `{"from":[1]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		q, err := parseBatchQuery(body)
		if err != nil {
			checkBodyRefused(t, body, err)
			return
		}
		if q.from == 0 || q.maxBytes < 1 || q.maxBytes > subjects.MaxReadBytes || q.wait < 0 || q.wait.Seconds() > subjects.MaxReadWaitSeconds ||
			q.kinds != nil || q.lock != "" || q.packed || !q.payload {
			t.Fatalf("%q is decoded as %+v", body, q)
		}
	})
}

// FuzzCursors sends requests for cursors, and makes the answers to them from
// cursors with a given name.
func FuzzCursors(f *testing.F) {
	f.Add([]byte(`{"after":"a","max":3}`), "billing", 600)
	f.Add([]byte(`{"after":"a.b"}`), "é,", 1000)
	f.Add([]byte(``), "\"\"\"", 0)
	f.Add([]byte(`{"max":1001}`), "x", 1<<20)
	r := newTestReplica()
	l := &cursorList{state: r}
	f.Fuzz(func(t *testing.T, body []byte, name string, most int) {
		request, err := parseCursorsRequest(body)
		if err != nil {
			checkBodyRefused(t, body, err)
			return
		}
		if request.After != "" && subjects.CheckCursor(request.After) != nil || request.Max < 1 || request.Max > subjects.MaxCursorList {
			t.Fatalf("%q is decoded as %+v", body, request)
		}
		if subjects.CheckCursor(name) != nil {
			return
		}
		clear(r.cursors)
		for _, n := range []string{name, name + "1", name + "2"} {
			r.cursors[n] = cursor{Txid: 1<<64 - 1, Time: 1<<63 - 1}
		}
		after := request.After
		for range 4 {
			reply := l.list(subjects.CursorsRequest{After: after, Max: request.Max}, most)
			if len(reply.Cursors) > 1 && len(mustJSON(reply)) > most {
				t.Fatalf("%d bytes, at most %d are wanted", len(mustJSON(reply)), most)
			}
			for _, c := range reply.Cursors {
				if c.Name <= after {
					t.Fatalf("%q comes after %q", c.Name, after)
				}
				after = c.Name
			}
			if reply.Next == "" {
				return
			}
		}
		t.Fatal("the pages don't end")
	})
}

// FuzzTrim sends requests to trim a partition's log.
func FuzzTrim(f *testing.F) {
	for _, s := range []string{`{"before":5}`, `{"before":12}`, `{"age":"1h"}`, `{"age":"-1h"}`, `{"bytes":1}`, `{"before":1,"bytes":1}`, ``, `{"age":"9999999h"}`} {
		f.Add([]byte(s))
	}
	r := newTestReplica()
	r.mark.Store(10)
	end := trimPoint{Base: wal.Base{Txid: 10}}
	trims := &trimmer{state: r}
	f.Fuzz(func(t *testing.T, body []byte) {
		may, before, err := trims.request(body)
		var e *subjects.Error
		switch {
		case err != nil && (!errors.As(err, &e) || e.Reason != subjects.BadRequest && e.Reason != subjects.TooLarge && e.Reason != subjects.Ahead):
			t.Fatalf("%q: %v", body, err)
		case err == nil && (before > 11 || before == 11 && !may(end) || before > 0 && before < 11 && may(end)):
			t.Fatalf("%q keeps from %d of 10", body, before)
		}
	})
}

// FuzzHTTP sends requests to the HTTP port's handler.
func FuzzHTTP(f *testing.F) {
	for _, s := range []string{
		"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", "GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n", "GET /livez HTTP/1.1\r\nHost: a\r\n\r\n", "GET /metrics HTTP/1.0\r\n\r\n",
		"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", "GET /debug/pprof/profile?seconds=9 HTTP/1.1\r\nHost: evil\r\n\r\n",
		"GET //healthz/../readyz?x HTTP/1.1\r\nHost: a\r\nAccept: \xff\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	handler := httpHandler(newMetrics(), func() string { return "not yet" }, func(context.Context) error { return context.DeadlineExceeded })
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
		if err != nil {
			return // net/http answers it
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		switch code := w.Code; {
		case code == http.StatusOK && r.URL.Path != "/healthz" && r.URL.Path != "/metrics":
			t.Fatalf("%q is served", r.URL.Path)
		case code == http.StatusServiceUnavailable && (r.URL.Path == "/readyz" || r.URL.Path == "/livez"), code == http.StatusOK:
		case code < 300 || code >= 500:
			t.Fatalf("%q is answered with %d", raw, code)
		}
	})
}
