package page

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cantuslog/cantus/internal/testkit"
)

// fake is a source whose transactions are those of anybody, or of alice.
type fake struct {
	open bool // to everybody

	mu     sync.Mutex
	opened []*fakeViewer
}

func (f *fake) Status(context.Context) (any, error) {
	return map[string]string{"text": "Writes are safe.\ndata: <b>"}, nil
}

func (f *fake) Login(_ context.Context, c Credentials) (Viewer, error) {
	if !(c.User == "alice" && c.Password == "secret" || f.open && c.anonymous()) {
		return nil, ErrCredentials
	}
	v := &fakeViewer{user: c.User, done: make(chan struct{})}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.opened = append(f.opened, v)
	return v, nil
}

// newest returns the viewer that logged in last.
func (f *fake) newest() *fakeViewer {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.opened[len(f.opened)-1]
}

type fakeViewer struct {
	user  string
	done  chan struct{}
	close sync.Once
}

func (v *fakeViewer) User() string          { return v.user }
func (v *fakeViewer) Done() <-chan struct{} { return v.done }
func (v *fakeViewer) Close()                { v.close.Do(func() { close(v.done) }) }

func (v *fakeViewer) Tail(ctx context.Context, f Filter, emit func(string, any)) {
	emit("transaction", map[string]any{"payload": "</script>", "partitions": f.Partitions})
	emit("gap", map[string]any{"first": "2", "last": "9"})
	<-ctx.Done()
}

func (v *fakeViewer) Transaction(_ context.Context, p int, txid uint64) (any, error) {
	if txid > 9 {
		return nil, errors.New("past the end")
	}
	return map[string]any{"partition": p, "txid": txid}, nil
}

func (v *fakeViewer) Around(_ context.Context, q AroundQuery) (any, error) { return q, nil }

func (v *fakeViewer) Lock(_ context.Context, p int, lock string, below uint64) (any, error) {
	return fmt.Sprint(p, lock, below), nil
}

// server serves a page on loopback.
func server(t *testing.T, p *Page) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(p)
	t.Cleanup(s.Close)
	t.Cleanup(p.Close)
	return s
}

// request makes a request as the page's script does. headers are names and
// values, which replace its own.
func request(t *testing.T, s *httptest.Server, method, path, body string, headers ...string) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set(ownHeader, "1")
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		if r.Header.Set(headers[i], headers[i+1]); headers[i] == "Host" {
			r.Host = headers[i+1]
		}
	}
	answer, err := s.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = answer.Body.Close() })
	return answer
}

// text returns an answer's body.
func text(t *testing.T, answer *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// login logs in, and returns the header that says so.
func login(t *testing.T, s *httptest.Server, body string) []string {
	t.Helper()
	answer := request(t, s, http.MethodPost, "/page/login", body)
	got := text(t, answer)
	_, rest, ok := strings.Cut(got, `"token":"`)
	if answer.StatusCode != http.StatusOK || !ok {
		t.Fatalf("%d: %s", answer.StatusCode, got)
	}
	token, _, _ := strings.Cut(rest, `"`)
	if len(token) < 40 {
		t.Errorf("the token is %q", token)
	}
	return []string{"Authorization", "Bearer " + token}
}

const (
	anonymous = `{}`
	alice     = `{"user":"alice","password":"secret"}`
)

// ofTransactions are the requests whose answers have transactions in them.
var ofTransactions = []string{
	"/page/transaction?partition=0&txid=1", "/page/around?partition=0&txid=1&lock=a", "/page/lock?partition=0&lock=a", "/page/live?tail=1",
}

// Without --page full nobody sees transactions, whatever they log in with, and
// everybody sees the status.
func TestAPageOfStatusHasNoTransactions(t *testing.T) {
	f := &fake{open: true}
	s := server(t, New(Options{Source: f}))
	for _, path := range ofTransactions {
		if answer := request(t, s, http.MethodGet, path, ""); answer.StatusCode != http.StatusForbidden {
			t.Errorf("%s: %d", path, answer.StatusCode)
		}
	}
	for _, body := range []string{anonymous, alice} {
		if answer := request(t, s, http.MethodPost, "/page/login", body); answer.StatusCode != http.StatusForbidden {
			t.Errorf("login %s: %d", body, answer.StatusCode)
		}
	}
	if len(f.opened) > 0 {
		t.Error("somebody was logged in")
	}
	lines := events(t, request(t, s, http.MethodGet, "/page/live", ""))
	lines.await(`"full":false`)
	lines.await("Writes are safe")
}

// Where the NATS server has users, nobody sees a transaction without a login.
func TestTransactionsNeedALogin(t *testing.T) {
	p := New(Options{Source: &fake{}, Full: true})
	p.sessions.pause = 0
	s := server(t, p)
	for _, path := range ofTransactions {
		for _, headers := range [][]string{nil, {"Authorization", "Bearer x"}, {"Authorization", "Bearer "}, {"Cookie", "token=x"}} {
			if answer := request(t, s, http.MethodGet, path, "", headers...); answer.StatusCode != http.StatusUnauthorized {
				t.Errorf("%s with %v: %d", path, headers, answer.StatusCode)
			}
		}
	}
	for _, body := range []string{anonymous, `{"user":"alice"}`, `{"user":"alice","password":"x"}`, `{"token":"secret"}`} {
		if answer := request(t, s, http.MethodPost, "/page/login", body); answer.StatusCode != http.StatusUnauthorized {
			t.Errorf("login %s: %d", body, answer.StatusCode)
		}
	}
	for _, body := range []string{"", "alice", `{"user":1}`, `{"name":"alice"}`, `{"user":"` + strings.Repeat("a", maxLogin) + `"}`} {
		if answer := request(t, s, http.MethodPost, "/page/login", body); answer.StatusCode != http.StatusBadRequest {
			t.Errorf("login %.40s: %d", body, answer.StatusCode)
		}
	}
	in := login(t, s, alice)
	for _, path := range ofTransactions[:3] {
		if answer := request(t, s, http.MethodGet, path, "", in...); answer.StatusCode != http.StatusOK {
			t.Errorf("%s of alice: %d: %s", path, answer.StatusCode, text(t, answer))
		}
	}
	if answer := request(t, s, http.MethodPost, "/page/logout", "", in...); answer.StatusCode != http.StatusNoContent {
		t.Errorf("logout: %d", answer.StatusCode)
	}
	if answer := request(t, s, http.MethodGet, ofTransactions[0], "", in...); answer.StatusCode != http.StatusUnauthorized {
		t.Errorf("after the logout: %d", answer.StatusCode)
	}
}

// A page under another name, which resolves to this machine, gets nothing; nor
// does a script of another site.
func TestOtherSitesGetNothing(t *testing.T) {
	s := server(t, New(Options{Source: &fake{open: true}, Full: true, Hosts: []string{"node1"}}))
	in := login(t, s, anonymous)
	for _, host := range []string{"evil.example", "evil.example:8222", "127.0.0.1.evil.example", "localhost.evil.example", "node1.evil.example", "node2", ""} {
		for _, path := range append([]string{"/", "/page/page.js"}, ofTransactions...) {
			answer := request(t, s, http.MethodGet, path, "", append(in, "Host", host)...)
			if host != "" && answer.StatusCode != http.StatusMisdirectedRequest {
				t.Errorf("%s of host %s: %d", path, host, answer.StatusCode)
			}
		}
	}
	for host, want := range map[string]int{"localhost:1": 200, "127.0.0.1": 200, "[::1]:8222": 200, "node1:80": 403, "10.0.0.1:8222": 403} {
		if answer := request(t, s, http.MethodGet, ofTransactions[0], "", append(in, "Host", host)...); answer.StatusCode != want {
			t.Errorf("a transaction of host %s: %d", host, answer.StatusCode)
		}
		if answer := request(t, s, http.MethodGet, "/", "", "Host", host); answer.StatusCode != http.StatusOK {
			t.Errorf("the page of host %s: %d", host, answer.StatusCode)
		}
	}
	for _, headers := range [][]string{
		{ownHeader, ""}, {"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Sec-Fetch-Site", "none"},
	} {
		for _, path := range append([]string{"/page/live"}, ofTransactions...) {
			if answer := request(t, s, http.MethodGet, path, "", append(in, headers...)...); answer.StatusCode != http.StatusForbidden {
				t.Errorf("%s with %v: %d", path, headers, answer.StatusCode)
			}
		}
	}
	if answer := request(t, s, http.MethodPost, "/page/login", anonymous, "Origin", "http://evil.example"); answer.StatusCode != http.StatusForbidden {
		t.Errorf("a login from another origin: %d", answer.StatusCode)
	}
	if answer := request(t, s, http.MethodPost, "/page/login", anonymous, "Content-Type", "text/plain"); answer.StatusCode != http.StatusBadRequest {
		t.Errorf("a login that a form could send: %d", answer.StatusCode)
	}
	preflight := request(t, s, http.MethodOptions, ofTransactions[0], "", "Origin", "http://evil.example", "Access-Control-Request-Headers", ownHeader)
	if preflight.StatusCode < 400 || preflight.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("another site may ask: %d, %v", preflight.StatusCode, preflight.Header)
	}
}

// Transactions are for requests of this machine, even if the port is open to
// others, and through a proxy for users only.
func TestTransactionsStayOnTheMachine(t *testing.T) {
	p := New(Options{Source: &fake{open: true}, Full: true})
	in := login(t, server(t, p), anonymous)
	for _, path := range ofTransactions {
		r := httptest.NewRequest(http.MethodGet, path, nil)
		r.Host, r.RemoteAddr = "127.0.0.1:8222", "10.0.0.7:1234"
		r.Header.Set(ownHeader, "1")
		r.Header.Set(in[0], in[1])
		w := httptest.NewRecorder()
		if p.ServeHTTP(w, r); w.Code != http.StatusForbidden {
			t.Errorf("%s from another machine: %d", path, w.Code)
		}
	}
	s := server(t, New(Options{Source: &fake{open: true}, Full: true}))
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Real-IP", "Via"} {
		if answer := request(t, s, http.MethodPost, "/page/login", anonymous, name, "10.0.0.7"); answer.StatusCode != http.StatusUnauthorized {
			t.Errorf("somebody unknown behind a proxy (%s): %d", name, answer.StatusCode)
		}
		login(t, s, alice)
	}
}

// The files of the page load nothing from elsewhere, and the browser is told
// to refuse what would.
func TestPageLoadsNothingFromElsewhere(t *testing.T) {
	s := server(t, New(Options{Source: &fake{}}))
	if len(assets) < 7 {
		t.Errorf("%d files: the test would see little", len(assets))
	}
	for path, a := range assets {
		answer := request(t, s, http.MethodGet, strings.TrimSuffix(path, "{$}"), "")
		h := answer.Header
		if got := text(t, answer); got != string(a.text) || answer.StatusCode != http.StatusOK {
			t.Errorf("%s: %d", path, answer.StatusCode)
		}
		for _, part := range []string{"default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'", "trusted-types 'none'"} {
			if csp := h.Get("Content-Security-Policy"); !strings.Contains(csp, part) || strings.Contains(csp, "unsafe") {
				t.Errorf("%s: policy %s", path, csp)
			}
		}
		if h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Cross-Origin-Resource-Policy") != "same-origin" || h.Get("Referrer-Policy") != "no-referrer" {
			t.Errorf("%s: %v", path, h)
		}
		for _, no := range []string{"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "https://", "style=", "onclick=", "<script>", "localStorage", "document.cookie"} {
			if strings.Contains(string(a.text), no) {
				t.Errorf("%s has %s", path, no)
			}
		}
		if again := request(t, s, http.MethodGet, strings.TrimSuffix(path, "{$}"), "", "If-None-Match", a.tag); again.StatusCode != http.StatusNotModified {
			t.Errorf("%s again: %d", path, again.StatusCode)
		}
	}
	for _, path := range []string{"/page/", "/page/index.html", "/page/../page.go", "/x", "/page/page.js.map"} {
		if answer := request(t, s, http.MethodGet, path, ""); answer.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %d", path, answer.StatusCode)
		}
	}
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete} {
		if answer := request(t, s, method, "/page/transaction", ""); answer.StatusCode < 400 {
			t.Errorf("%s: %d", method, answer.StatusCode)
		}
	}
}

// lines are those of an answer that goes on.
type lines struct {
	t    *testing.T
	next chan string
}

func events(t *testing.T, answer *http.Response) *lines {
	t.Helper()
	if answer.StatusCode != http.StatusOK || answer.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("no events: %d: %s", answer.StatusCode, text(t, answer))
	}
	l := &lines{t, make(chan string, 1000)}
	go func() {
		defer close(l.next)
		for s := bufio.NewScanner(answer.Body); s.Scan(); {
			l.next <- s.Text()
		}
	}()
	return l
}

// await waits for a line with a text in it.
func (l *lines) await(want string) string {
	l.t.Helper()
	hang := time.After(time.Minute)
	for {
		select {
		case line, more := <-l.next:
			if !more {
				l.t.Fatalf("the stream ended without %s", want)
			}
			if strings.Contains(line, want) {
				return line
			}
		case <-hang:
			l.t.Fatalf("no %s", want)
		}
	}
}

// ended waits until the stream has ended.
func (l *lines) ended() {
	l.t.Helper()
	hang := time.After(time.Minute)
	for {
		select {
		case _, more := <-l.next:
			if !more {
				return
			}
		case <-hang:
			l.t.Fatal("the stream goes on")
		}
	}
}

func TestLiveStream(t *testing.T) {
	f := &fake{open: true}
	s := server(t, New(Options{Source: f, Full: true}))
	in := login(t, s, anonymous)
	l := events(t, request(t, s, http.MethodGet, "/page/live?tail=1&partitions=0,3&kind=pay&lock=a.%3E&after=0:8,3:9", "", in...))
	if line := l.await("script"); !strings.Contains(line, "[0,3]") || strings.Contains(line, "</script>") {
		t.Errorf("a transaction: %s", line)
	}
	l.await(`"last":"9"`)
	f.newest().Close()
	l.await("event: end")
	l.await("the login has ended")
	l.ended()
	for _, query := range []string{"partitions=x", "partitions=-1", "partitions=70000", "after=1", "after=0:x", "after=x:1"} {
		if answer := request(t, s, http.MethodGet, "/page/live?tail=1&"+query, "", login(t, s, anonymous)...); answer.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %d", query, answer.StatusCode)
		}
	}
	if answer := request(t, s, http.MethodGet, "/page/live?x="+strings.Repeat("x", maxQuery), ""); answer.StatusCode != http.StatusRequestURITooLong {
		t.Errorf("a long query: %d", answer.StatusCode)
	}
}

// A viewer that takes its events late is told so, and its stream ends. It does
// not go on with a hole.
func TestASlowStreamIsEndedAndTold(t *testing.T) {
	p := New(Options{Source: &fake{open: true}, Full: true})
	p.slow = -1 // whatever it takes is late
	s := server(t, p)
	l := events(t, request(t, s, http.MethodGet, "/page/live?tail=1", "", login(t, s, anonymous)...))
	l.await("event: end")
	l.await("too slow")
	l.ended()
}

// A viewer that takes nothing holds up neither the source nor others, and its
// stream ends with its connection.
func TestAStreamThatTakesNothing(t *testing.T) {
	p := New(Options{Source: &fake{}})
	s := server(t, p)
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err == nil {
		_, err = io.WriteString(conn, "GET /page/live HTTP/1.1\r\nHost: localhost\r\nCantus-Page: 1\r\n\r\n")
	}
	if err != nil {
		t.Fatal(err)
	}
	testkit.Until(t, "the stream", func() bool { return p.watchers() == 1 })
	events(t, request(t, s, http.MethodGet, "/page/live", "")).await("Writes are safe")
	_ = conn.Close()
	testkit.Until(t, "the end of the stream", func() bool { return p.watchers() == 1 })
}

// watchers returns how many streams watch the status.
func (p *Page) watchers() int {
	p.status.mu.Lock()
	defer p.status.mu.Unlock()
	return p.status.watchers
}

// However many pages are open, the node serves a bounded number of streams, and
// says so to those that it refuses.
func TestStreamsAreBounded(t *testing.T) {
	p := New(Options{Source: &fake{}})
	s := server(t, p)
	for range maxStreamsEach {
		events(t, request(t, s, http.MethodGet, "/page/live", "")).await("event: begin")
	}
	answer := request(t, s, http.MethodGet, "/page/live", "")
	if got := text(t, answer); answer.StatusCode != http.StatusServiceUnavailable || !strings.Contains(got, "pages may be open") {
		t.Errorf("one more: %d: %s", answer.StatusCode, got)
	}
	var slots streamSlots
	slots.of = map[string]int{}
	var release func()
	for i := range maxStreams {
		if release = slots.take(fmt.Sprint(i)); release == nil {
			t.Fatalf("no slot for %d", i)
		}
	}
	if slots.take("another") != nil {
		t.Error("there is no bound")
	}
	release()
	if slots.take("another") == nil {
		t.Error("a slot was not given back")
	}
}

// Sessions are bounded, and a session that nobody uses ends.
func TestSessionsAreBounded(t *testing.T) {
	f := &fake{open: true}
	p := New(Options{Source: f, Full: true})
	s := server(t, p)
	in := login(t, s, anonymous)
	idle := f.newest()
	for range maxSessions - 1 {
		login(t, s, anonymous)
	}
	answer := request(t, s, http.MethodPost, "/page/login", anonymous)
	if answer.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("one more: %d", answer.StatusCode)
	}
	select {
	case <-f.newest().Done():
	case <-time.After(time.Minute):
		t.Error("the viewer that was not let in is open")
	}
	p.sessions.mu.Lock()
	p.sessions.all[strings.TrimPrefix(in[1], "Bearer ")].idle.Reset(0)
	p.sessions.mu.Unlock()
	select { // a request would use the session, which is then not idle
	case <-idle.Done():
	case <-time.After(time.Minute):
		t.Fatal("the idle session does not end")
	}
	if answer := request(t, s, http.MethodGet, ofTransactions[0], "", in...); answer.StatusCode != http.StatusUnauthorized {
		t.Errorf("in the session that has ended: %d", answer.StatusCode)
	}
	p.Close()
	for _, v := range f.opened {
		<-v.Done()
	}
	if answer := request(t, s, http.MethodPost, "/page/login", anonymous); answer.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("after the end: %d", answer.StatusCode)
	}
}

// Passwords can't be tried fast: a few at a time, and each that is wrong keeps
// its place.
func TestLoginsTakeTurns(t *testing.T) {
	p := New(Options{Source: &fake{}, Full: true})
	s := server(t, p)
	for range maxLogins {
		p.sessions.logins <- struct{}{}
	}
	answers := make(chan int, loginQueue+1)
	for range loginQueue + 1 {
		go func() {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/page/login", strings.NewReader(alice))
			if err != nil {
				answers <- 0
				return
			}
			r.Header.Set(ownHeader, "1")
			r.Header.Set("Content-Type", "application/json")
			answer, err := s.Client().Do(r)
			if err != nil {
				answers <- 0
				return
			}
			_ = answer.Body.Close()
			answers <- answer.StatusCode
		}()
	}
	if status := <-answers; status != http.StatusTooManyRequests {
		t.Errorf("one too many: %d", status)
	}
	for range maxLogins {
		<-p.sessions.logins
	}
	for range loginQueue {
		if status := <-answers; status != http.StatusOK {
			t.Errorf("one that has waited: %d", status)
		}
	}
}

// The contexts of requests end when the node stops: streams say so.
func TestStreamsEndWithTheNode(t *testing.T) {
	p := New(Options{Source: &fake{}})
	ctx, stop := context.WithCancel(t.Context())
	s := httptest.NewUnstartedServer(p)
	s.Config.BaseContext = func(net.Listener) context.Context { return ctx }
	s.Start()
	t.Cleanup(s.Close)
	l := events(t, request(t, s, http.MethodGet, "/page/live", ""))
	l.await("Writes are safe")
	stop()
	l.await("the node stops")
	l.ended()
}

func TestQueriesSayWhatIsWrong(t *testing.T) {
	s := server(t, New(Options{Source: &fake{open: true}, Full: true}))
	in := login(t, s, anonymous)
	for path, want := range map[string]string{
		"transaction":                                        "partition",
		"transaction?partition=0":                            "txids begin at 1",
		"transaction?partition=-1&txid=1":                    "whole number",
		"transaction?partition=0&txid=1.5":                   "whole number",
		"around?partition=0&txid=1":                          "a lock",
		"around?partition=0&txid=1&lock=a&mark=x":            "whole number",
		"lock?partition=0":                                   "name a lock",
		"lock?partition=0&lock=a&below=x":                    "whole number",
		"lock?partition=0&lock=a&below=99999999999999999999": "whole number",
	} {
		answer := request(t, s, http.MethodGet, "/page/"+path, "", in...)
		if got := text(t, answer); answer.StatusCode != http.StatusBadRequest || !strings.Contains(got, want) {
			t.Errorf("%s: %d: %s", path, answer.StatusCode, got)
		}
	}
	answer := request(t, s, http.MethodGet, "/page/transaction?partition=0&txid=10", "", in...)
	if got := text(t, answer); answer.StatusCode != http.StatusNotFound || !strings.Contains(got, "past the end") {
		t.Errorf("a transaction that is not there: %d: %s", answer.StatusCode, got)
	}
}
