package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/cmd/internal/page"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

// pageOf is a node with its page.
type pageOf struct {
	*inProcess
	token string
}

// openPage opens a node of one partition with a NATS configuration, and its
// page.
func openPage(t *testing.T, what, config string) *pageOf {
	t.Helper()
	return openPageWith(t, what, config, broker.Options{})
}

func openPageWith(t *testing.T, what, config string, o broker.Options) *pageOf {
	t.Helper()
	o.HTTPListen = "127.0.0.1:0"
	if config != "" {
		o.NATSConfig = filepath.Join(t.TempDir(), "nats.conf")
		if err := os.WriteFile(o.NATSConfig, []byte("listen: 127.0.0.1:-1\n"+config), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	source := (&serveFlags{Page: what, HTTP: "127.0.0.1:0", Prefix: "cantus"}).newPage(&o)
	n := openInProcess(t, o)
	t.Cleanup(source.attach(n.node, slog.New(slog.DiscardHandler)))
	return &pageOf{inProcess: n}
}

// ask makes a request as the page's script does. A body makes it a POST.
func (p *pageOf) ask(path, body string) *http.Response {
	p.t.Helper()
	method := http.MethodGet
	if body != "" {
		method = http.MethodPost
	}
	r, err := http.NewRequestWithContext(p.t.Context(), method, "http://"+p.node.HTTPAddr()+"/page/"+path, strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	r.Header.Set("Cantus-Page", "1")
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+p.token)
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = answer.Body.Close() })
	return answer
}

// get asks for JSON, and returns it and the status.
func (p *pageOf) get(path string, into any) int {
	p.t.Helper()
	answer := p.ask(path, "")
	if text, err := io.ReadAll(answer.Body); err != nil || json.Unmarshal(text, into) != nil {
		p.t.Fatalf("%s: %s, %v", path, text, err)
	}
	return answer.StatusCode
}

// login logs in, and returns the status and what is wrong.
func (p *pageOf) login(c page.Credentials) (status int, wrong string) {
	p.t.Helper()
	body, err := json.Marshal(c)
	if err != nil {
		p.t.Fatal(err)
	}
	answer := p.ask("login", string(body))
	var in struct{ Token, Error string }
	if err := json.NewDecoder(answer.Body).Decode(&in); err != nil {
		p.t.Fatal(err)
	}
	p.token = in.Token
	return answer.StatusCode, in.Error
}

// happened is an event of a stream.
type happened struct {
	event, data string
}

// follow returns the events of a live stream.
func (p *pageOf) events(query string) <-chan happened {
	p.t.Helper()
	answer := p.ask("live?"+query, "")
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(answer.Body)
		p.t.Fatalf("%s: %d: %s", query, answer.StatusCode, text)
	}
	all := make(chan happened, 1000)
	go func() {
		defer close(all)
		var h happened
		s := bufio.NewScanner(answer.Body)
		for s.Buffer(nil, 1<<20); s.Scan(); {
			if event, ok := strings.CutPrefix(s.Text(), "event: "); ok {
				h.event = event
			} else if h.data, ok = strings.CutPrefix(s.Text(), "data: "); ok {
				all <- h
			}
		}
	}()
	return all
}

// await returns the data of the next event of a kind.
func await(t *testing.T, all <-chan happened, event string) string {
	t.Helper()
	hang := time.After(testkit.Patience)
	for {
		select {
		case h, more := <-all:
			if !more {
				t.Fatalf("the stream ended without %s", event)
			}
			if h.event == event {
				return h.data
			}
		case <-hang:
			t.Fatalf("no %s", event)
		}
	}
}

// write appends a transaction with locks.
func (p *pageOf) write(kind string, mark uint64, locks ...string) {
	p.t.Helper()
	if _, err := p.Append(p.t.Context(), &client.Request{Kind: kind, Payload: []byte(`{"n":1}`), WriteLocks: locks, HighWaterMark: mark}); err != nil {
		p.t.Fatal(err)
	}
}

// The page's sentence is the first line of cantus status.
func TestPageSaysWhatStatusSays(t *testing.T) {
	p := openPage(t, "status", "")
	p.append(1, 3)
	code, out := p.run("status")
	first, _, _ := strings.Cut(out, "\n")
	var s pageStatus
	if err := json.Unmarshal([]byte(await(t, p.events(""), "status")), &s); err != nil {
		t.Fatal(err)
	}
	if code != exitDone || first == "" || s.Text != first {
		t.Errorf("status says %q, the page %q", first, s.Text)
	}
	if len(s.Partitions) != 1 || s.Partitions[0].Mark != 3 || s.Partitions[0].Leader != "n1" || len(s.Nodes) != 1 || s.Nodes[0].State != "ready" {
		t.Errorf("%+v", s)
	}
	if status, wrong := p.login(page.Credentials{}); status != http.StatusForbidden || !strings.Contains(wrong, "--page full") {
		t.Errorf("a login: %d: %s", status, wrong)
	}
}

// What a page shows everybody has no addresses, and no words of transactions.
func TestPageStatusHidesAddresses(t *testing.T) {
	found := survey{status: &subjects.ClusterStatus{Nodes: []subjects.NodeStatus{{
		Name: "n1", State: "member", Alive: true, Ready: true, Raft: "10.1.2.3:7222", Key: "fingerprint", Damaged: "/var/lib/cantus/000001.vlog",
	}}}}
	text, err := json.Marshal(statusOfPage(found, "n1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, no := range []string{"10.1.2.3", "fingerprint", "/var/lib"} {
		if strings.Contains(string(text), no) {
			t.Errorf("%s is shown: %s", no, text)
		}
	}
}

const pageUsers = `
authorization { users: [
  { user: report, password: secret, permissions: {
      publish: ["cantus.read.*", "cantus.get.*", "cantus.info", "cantus.info.*"], subscribe: ["_INBOX_report.>"] } }
  { user: writer, password: secret, permissions: {
      publish: ["cantus.append.>", "cantus.info", "cantus.info.*"], subscribe: ["_INBOX_writer.>"] } }
  { user: other, password: secret, permissions: { publish: ["cantus.read.*"], subscribe: ["_elsewhere.>"] } }
  { user: all, password: secret }
] }`

// A viewer sees what its NATS user may read, and nothing without one.
func TestPageShowsWhatTheUserMayRead(t *testing.T) {
	p := openPage(t, "full", pageUsers)
	p.write("secret-kind", 0, "account.42")
	for _, c := range []page.Credentials{{}, {User: "report"}, {User: "report", Password: "x"}, {Token: "secret"}} {
		if status, wrong := p.login(c); status != http.StatusUnauthorized || p.token != "" {
			t.Errorf("login %+v: %d: %s", c, status, wrong)
		}
	}
	var tx pageTransaction
	if status, wrong := p.login(page.Credentials{User: "report", Password: "secret"}); status != http.StatusOK {
		t.Fatalf("report: %d: %s", status, wrong)
	}
	if status := p.get("transaction?partition=0&txid=1", &tx); status != http.StatusOK || tx.Kind != "secret-kind" {
		t.Errorf("report reads: %d: %+v", status, tx)
	}
	all := p.events("tail=1")
	if data := await(t, all, "transaction"); !strings.Contains(data, "secret-kind") {
		t.Errorf("report's tail: %s", data)
	}
	if data := await(t, p.events("tail=1"), "notice"); !strings.Contains(data, "cantus.advisory.conflict") {
		t.Errorf("report may not see conflicts: %s", data)
	}
	if status, wrong := p.login(page.Credentials{User: "writer", Password: "secret"}); status != http.StatusOK {
		t.Fatalf("writer: %d: %s", status, wrong)
	}
	for _, path := range []string{"transaction?partition=0&txid=1", "lock?partition=0&lock=account.42", "around?partition=0&txid=1&lock=account.42"} {
		var answer struct{ Error string }
		if status := p.get(path, &answer); status != http.StatusNotFound || !strings.Contains(answer.Error, "this user may not do that") {
			t.Errorf("writer asks for %s: %d: %s", path, status, answer.Error)
		}
	}
	hang := time.After(testkit.Patience)
	for tail, denied := p.events("tail=1"), false; !denied; {
		select {
		case h := <-tail:
			if h.event == "transaction" || strings.Contains(h.data, "secret-kind") {
				t.Fatalf("writer's tail: %+v", h)
			}
			denied = h.event == "notice" && strings.Contains(h.data, "cantus.read.0") && strings.Contains(h.data, "is not shown")
		case <-hang:
			t.Fatal("the writer is not told")
		}
	}
	if status, wrong := p.login(page.Credentials{User: "other", Password: "secret"}); status != http.StatusServiceUnavailable || !strings.Contains(wrong, "inbox prefix") {
		t.Errorf("without an inbox: %d: %s", status, wrong)
	}
	if status, wrong := p.login(page.Credentials{User: "other", Password: "secret", Inbox: "_elsewhere"}); status != http.StatusOK {
		t.Errorf("with an inbox: %d: %s", status, wrong)
	}
}

// The neighbors of a transaction along its locks are found by reads, and what
// was searched is said.
func TestPageFollowsLocks(t *testing.T) {
	p := openPage(t, "full", "")
	p.login(page.Credentials{})
	p.write("a", 0, "account.42")              // 1
	p.write("b", 1, "account.7")               // 2
	p.write("c", 2, "account.42", "account.7") // 3
	p.write("d", 3, "order.1")                 // 4
	p.write("e", 3, "account.42")              // 5
	p.write("f", 5, "order.2")                 // 6
	for _, c := range []struct {
		path          string
		before, after string
	}{
		{"txid=3&lock=account.42&mark=2", "1", "5"},
		{"txid=3&lock=account.7&mark=2", "2", "none"},
		{"txid=3&lock=account.>", "2", "5"},
		{"txid=1&lock=account.42&mark=0", "none", "3"},
		{"txid=5&lock=account.42&mark=3", "3", "none"},
		{"txid=6&lock=account.42", "5", "none"}, // one that it has not recorded
		{"txid=6&lock=order.>", "4", "none"},
		{"txid=6&lock=nothing", "none", "none"},
	} {
		var a aroundOfPage
		if status := p.get("around?partition=0&"+c.path, &a); status != http.StatusOK {
			t.Fatalf("%s: %d", c.path, status)
		}
		show := func(d direction) string {
			switch {
			case d.Found != nil:
				return fmt.Sprint(d.Found.Txid)
			case d.Exact:
				return "none"
			}
			return "none found"
		}
		if show(a.Before) != c.before || show(a.After) != c.after {
			t.Errorf("%s: %s, %s: %+v", c.path, show(a.Before), show(a.After), a)
		}
	}
	p.write("g", 1, "limits.1") // 7, whose check covers 2 to 6
	var a aroundOfPage
	if p.get("around?partition=0&txid=7&lock=limits.1&mark=1", &a); a.Before.Checked != 2 || a.Before.Last != 1 || !a.Before.Exact || a.Before.Found != nil {
		t.Errorf("a checked lock: %+v", a)
	}
	var l lockOfPage
	if p.get("lock?partition=0&lock=account.>", &l); len(l.Recorded) != 4 || l.Recorded[0].Txid != 5 || l.Recorded[3].Txid != 1 || !l.Exact || l.Newest != "5" {
		t.Errorf("account.>: %+v", l)
	}
	if p.get("lock?partition=0&lock=account.>&below=3", &l); len(l.Recorded) != 2 || l.Recorded[0].Txid != 2 || l.Last != 2 {
		t.Errorf("account.> below 3: %+v", l)
	}
	l = lockOfPage{}
	if p.get("lock?partition=0&lock=nothing", &l); len(l.Recorded) != 0 || !l.Exact {
		t.Errorf("a lock that nobody recorded: %+v", l)
	}
	for _, path := range []string{"lock?partition=0&lock=a..b", "around?partition=0&txid=1&lock=a,b", "transaction?partition=0&txid=99", "transaction?partition=7&txid=1"} {
		var answer struct{ Error string }
		if status := p.get(path, &answer); status != http.StatusNotFound || answer.Error == "" {
			t.Errorf("%s: %d: %+v", path, status, answer)
		}
	}
}

// A lock is found far away in both directions: by the index, and without one
// too while the log up to there is small.
func TestPageFindsLocksFarAway(t *testing.T) {
	testkit.NotShort(t, "appends 300,000 transactions")
	for _, index := range []bool{true, false} {
		p := openPageWith(t, "full", "", broker.Options{NoIndex: !index})
		p.login(page.Credentials{})
		p.write("a", 0, "account.42")
		const others = 3 * searchMost / 2
		var last *client.Future
		for range others {
			f, err := p.AppendAsync(t.Context(), &client.Request{})
			if err != nil {
				t.Fatal(err)
			}
			last = f
		}
		if _, err := last.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.write("z", others+1, "account.42")
		var back, ahead aroundOfPage
		p.get(fmt.Sprintf("around?partition=0&txid=%d&lock=account.>", others+2), &back)
		p.get("around?partition=0&txid=1&lock=account.>", &ahead)
		var l lockOfPage
		p.get("lock?partition=0&lock=account.42", &l)
		if back.Before.Found == nil || back.Before.Found.Txid != 1 || ahead.After.Found == nil || ahead.After.Found.Txid != others+2 || len(l.Recorded) != 2 || !l.Exact {
			t.Errorf("with an index %v: before %+v, after %+v, all %+v", index, back.Before, ahead.After, l)
		}
	}
}

// A tail begins at the newest transactions, filters, and says what it leaves
// out.
func TestPageTail(t *testing.T) {
	p := openPage(t, "full", "")
	p.login(page.Credentials{})
	p.append(1, 40)
	txid := func(data string) (tx pageTransaction) {
		t.Helper()
		if err := json.Unmarshal([]byte(data), &tx); err != nil {
			t.Fatal(err)
		}
		return tx
	}
	all := p.events("tail=1")
	if first := txid(await(t, all, "transaction")); first.Txid != 40-tailStart+1 || first.Payload != fmt.Sprint(first.Txid) {
		t.Errorf("the tail begins with %+v", first)
	}
	for n := uint64(40 - tailStart + 2); n <= 40; n++ {
		if tx := txid(await(t, all, "transaction")); tx.Txid != n {
			t.Errorf("%d comes after %d", tx.Txid, n-1)
		}
	}
	again := p.events("tail=1&after=0:39") // a page that was there a moment ago
	if tx := txid(await(t, again, "transaction")); tx.Txid != 40 {
		t.Errorf("after 39 comes %d", tx.Txid)
	}
	kind, lock := p.events("tail=1&kind=pay"), p.events("tail=1&lock=account.>")
	await(t, kind, "status")
	await(t, lock, "status")
	p.append(41, 41)
	p.write("pay", 41, "order.1")      // 42
	p.write("refund", 42, "account.1") // 43
	if tx := txid(await(t, all, "transaction")); tx.Txid != 41 {
		t.Errorf("after 40 comes %d", tx.Txid)
	}
	if tx := txid(await(t, kind, "transaction")); tx.Txid != 42 {
		t.Errorf("of kind pay: %+v", tx)
	}
	if tx := txid(await(t, lock, "transaction")); tx.Txid != 43 {
		t.Errorf("with account.>: %+v", tx)
	}
	// One that was away for long is told what it has missed.
	for range tailBehind {
		if _, err := p.AppendAsync(t.Context(), &client.Request{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Drain(testkit.Soon(t)); err != nil {
		t.Fatal(err)
	}
	var gap gapOfPage
	if err := json.Unmarshal([]byte(await(t, p.events("tail=1&after=0:3"), "gap")), &gap); err != nil || gap.First != 4 || gap.Last != 43+tailBehind-tailStart {
		t.Errorf("the gap is %+v, %v", gap, err)
	}
}

// untilConflict appends transactions that conflict until the page shows one: it
// may not listen yet.
func (p *pageOf) untilConflict(all <-chan happened, lock string) (data string) {
	p.t.Helper()
	testkit.Until(p.t, "a conflict of "+lock, func() bool {
		if _, err := p.Append(p.t.Context(), &client.Request{WriteLocks: []string{lock}}); err == nil {
			p.t.Fatal("no conflict")
		}
		for {
			select {
			case h := <-all:
				if h.event == "conflict" {
					data = h.data
					return true
				}
			default:
				return false
			}
		}
	})
	return data
}

// A refused transaction appears with its lock, and with the one that recorded
// it first.
func TestPageShowsConflicts(t *testing.T) {
	p := openPage(t, "full", "")
	p.login(page.Credentials{})
	p.write("a", 0, "account.42")
	all, orders := p.events("tail=1"), p.events("tail=1&lock=order.>")
	p.write("b", 1, "order.1")
	var c pageConflict
	data := p.untilConflict(all, "account.42")
	if err := json.Unmarshal([]byte(data), &c); err != nil || len(c.Conflicts) != 1 || c.Conflicts[0].Lock != "account.42" || c.Conflicts[0].Txid != 1 || c.Partition != 0 {
		t.Errorf("%s, %v", data, err)
	}
	data = p.untilConflict(orders, "order.1")
	if strings.Contains(data, "account.42") {
		t.Errorf("orders only: %s", data)
	}
}

// Anybody may publish an advisory where the NATS server has no users: it is
// text of others.
func TestForgedConflictsAreText(t *testing.T) {
	for _, text := range []string{"", "null", "[]", "{}", `{"error":null}`, `{"partition":"x","error":{}}`, "\xff"} {
		if c, ok := conflictOfPage([]byte(text), page.Filter{}); ok {
			t.Errorf("%q is taken for %+v", text, c)
		}
	}
	if _, ok := conflictOfPage([]byte(`{"partition":-1,"error":{"conflicts":[{"lock":"..","mode":"<b>"}]}}`), page.Filter{Lock: "a.>"}); ok {
		t.Error("a name that is no lock overlaps one")
	}
}

func TestPagePayloads(t *testing.T) {
	long := strings.Repeat("é", shownPayload)
	for payload, want := range map[string]pageTransaction{
		"{}":           {Payload: "{}", Bytes: 2},
		long:           {Payload: long[:shownPayload], Bytes: 2 * shownPayload, Cut: true},
		"a" + long:     {Payload: "a" + long[:shownPayload-2], Bytes: 2*shownPayload + 1, Cut: true},
		"\xff\x00":     {Payload: "00000000  ff 00                                             |..|\n", Bytes: 2, Binary: true},
		"</script><b>": {Payload: "</script><b>", Bytes: 12},
	} {
		got := wholeOfPage(&transaction{data: []byte(payload)})
		if got.Payload != want.Payload || got.Bytes != want.Bytes || got.Cut != want.Cut || got.Binary != want.Binary {
			t.Errorf("%.20q: %.40q, %d bytes, cut %t, binary %t", payload, got.Payload, got.Bytes, got.Cut, got.Binary)
		}
	}
	many := &transaction{}
	for range 3 * shownLocks {
		many.WriteLocks = append(many.WriteLocks, "a")
	}
	if row := rowOfPage(many); len(row.WriteLocks) != shownLocks || row.MoreLocks != 2*shownLocks {
		t.Errorf("%d locks, and %d more", len(row.WriteLocks), row.MoreLocks)
	}
}

// Transactions are not shown on a port that others reach.
func TestPageFullIsForLoopback(t *testing.T) {
	for at, want := range map[string]bool{
		"127.0.0.1:8222": true, "[::1]:8222": true, "localhost:0": true, "": true,
		":8222": false, "0.0.0.0:8222": false, "10.0.0.1:8222": false, "node1:8222": false, "[::]:8222": false,
	} {
		c := serveFlags{Page: "full", HTTP: optionalAddr(at)}
		if err := c.checkPage(); (err == nil) != want {
			t.Errorf("full on %q: %v", at, err)
		}
		c.Page = "status"
		if err := c.checkPage(); err != nil {
			t.Errorf("status on %q: %v", at, err)
		}
	}
}
