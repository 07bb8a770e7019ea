package broker_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/testcert"
	"github.com/cantuslog/cantus/internal/testkit"
)

// get requests a path with a Host header and others, and returns the status.
func get(t *testing.T, n *broker.Node, path, host string, headers ...string) (status int) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+n.HTTPAddr()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = host
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	answer, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	_ = answer.Body.Close()
	return answer.StatusCode
}

func TestProfilesAreOffByDefault(t *testing.T) {
	n, _ := one(t, broker.Options{HTTPListen: "127.0.0.1:0"})
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/cmdline"} {
		if status := get(t, n, path, ""); status != http.StatusNotFound {
			t.Errorf("%s: %d", path, status)
		}
	}
	mustNotOpen(t, t.TempDir(), broker.Options{HTTPListen: "0.0.0.0:0", Profiles: true}, broker.ErrOptions, "loopback")
}

// A web page in a browser on the same machine must not reach the profiles:
// neither under a name of its own that resolves to 127.0.0.1, nor from another
// site.
func TestProfilesAreForThisMachine(t *testing.T) {
	n, _ := one(t, broker.Options{HTTPListen: "127.0.0.1:0", Profiles: true})
	for _, host := range []string{"localhost", "localhost:8222", "127.0.0.1:1", "[::1]:8222", "[::1]", n.HTTPAddr()} {
		if status := get(t, n, "/debug/pprof/goroutine", host); status != http.StatusOK {
			t.Errorf("host %s: %d", host, status)
		}
	}
	for _, host := range []string{"evil.example", "evil.example:8222", "127.0.0.1.evil.example", "localhost.evil.example:80", "10.0.0.1"} {
		for _, path := range []string{"/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/profile", "/debug/pprof/block?seconds=1", "/debug/pprof/trace"} {
			if status := get(t, n, path, host); status != http.StatusForbidden {
				t.Errorf("host %s, %s: %d", host, path, status)
			}
		}
		if status := get(t, n, "/readyz", host); status != http.StatusOK {
			t.Errorf("host %s, ready: %d", host, status)
		}
	}
	for site, want := range map[string]int{"none": 200, "same-origin": 200, "cross-site": 403, "same-site": 403} {
		if status := get(t, n, "/debug/pprof/goroutine", "localhost", "Sec-Fetch-Site", site); status != want {
			t.Errorf("from site %s: %d", site, status)
		}
	}
}

func TestHTTPLimits(t *testing.T) {
	n, _ := one(t, broker.Options{HTTPListen: "127.0.0.1:0"})
	if l := broker.HTTPLimits(n); l.ReadTimeout <= 0 || l.WriteTimeout <= 0 || l.IdleTimeout <= 0 || l.MaxHeaderBytes <= 0 {
		t.Errorf("%+v", l)
	}
	if status := get(t, n, "/healthz", "", "X-Long", strings.Repeat("x", 64<<10)); status != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a large header: %d", status)
	}
}

// A client that is slow to ask, or to take its answer, keeps a connection for a
// while only.
func TestHTTPSlowClients(t *testing.T) {
	testkit.SlowHTTPClients(t, broker.NewHTTPServer)
}

// However many connections a client opens, the node holds a bounded number of
// them, and answers others meanwhile.
func TestHTTPConnections(t *testing.T) {
	n, _ := one(t, broker.Options{HTTPListen: "127.0.0.1:0"})
	dial := func(text string) net.Conn {
		t.Helper()
		conn, err := net.Dial("tcp", n.HTTPAddr())
		if err == nil {
			_, err = io.WriteString(conn, text)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	const request = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
	for i := range 2 * broker.HTTPConns {
		dial([]string{"", request[:20], request}[i%3])
	}
	line, err := bufio.NewReader(dial(request)).ReadString('\n')
	if err != nil || !strings.Contains(line, "200") {
		t.Fatalf("a probe beside many connections: %q, %v", line, err)
	}
	if open := broker.HTTPOpen(n); open > broker.HTTPConns {
		t.Errorf("%d connections are open", open)
	}
}

// A node that stops answers requests that it had before, and waits for no
// others.
func TestHTTPEndsWithTheNode(t *testing.T) {
	n, _ := one(t, broker.Options{HTTPListen: "127.0.0.1:0", Profiles: true})
	idle, err := net.Dial("tcp", n.HTTPAddr()) // sends nothing
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.HTTPAddr()+"/debug/pprof/trace?seconds=60", nil)
	if err != nil {
		t.Fatal(err)
	}
	long := make(chan error, 1)
	go func() {
		answer, err := http.DefaultTransport.RoundTrip(r)
		if err == nil {
			_, err = io.Copy(io.Discard, answer.Body)
			_ = answer.Body.Close()
		}
		long <- err
	}()
	eventually(t, "a trace under way", func() bool { return broker.HTTPOpen(n) == 2 })
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-long; err == nil {
		t.Error("a trace of a minute has ended in time")
	}
	if _, err := net.DialTimeout("tcp", n.HTTPAddr(), time.Second); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the port is open: %v", err)
	}
}

// What a program adds to the port is beside the node's own paths, and learns
// that the node stops.
func TestHTTPHandlerOfTheProgram(t *testing.T) {
	stopped := make(chan error, 1)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/long" {
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			stopped <- r.Context().Err()
			return
		}
		w.WriteHeader(http.StatusTeapot)
	})
	n, _ := one(t, broker.Options{HTTPListen: "127.0.0.1:0", HTTPHandler: h})
	for path, want := range map[string]int{"/": 418, "/x": 418, "/healthz": 200, "/readyz": 200, "/metrics": 200, "/debug/pprof/": 418} {
		if status := get(t, n, path, ""); status != want {
			t.Errorf("%s: %d", path, status)
		}
	}
	get(t, n, "/long", "")
	if err := <-stopped; err == nil { // by the client, which has gone
		t.Error("the request goes on")
	}
	r, err := http.Get("http://" + n.HTTPAddr() + "/long")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-stopped; err == nil {
		t.Error("the request outlives the node")
	}
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		t.Errorf("the answer is cut off: %v", err)
	}
}

// What only answers GET says so, also beside a handler of all other paths.
func TestHTTPMethods(t *testing.T) {
	others := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) })
	for _, h := range []http.Handler{nil, others} {
		n, _ := one(t, broker.Options{HTTPListen: "127.0.0.1:0", HTTPHandler: h, Profiles: true})
		for _, path := range []string{"/healthz", "/livez", "/readyz", "/metrics", "/debug/pprof/heap", "/debug/pprof/"} {
			answer, err := http.Post("http://"+n.HTTPAddr()+path, "text/plain", strings.NewReader("x"))
			if err != nil {
				t.Fatal(err)
			}
			_ = answer.Body.Close()
			if allow := answer.Header.Get("Allow"); answer.StatusCode != http.StatusMethodNotAllowed || allow != "GET, HEAD" {
				t.Errorf("POST %s: %d, Allow: %q", path, answer.StatusCode, allow)
			}
		}
	}
}

// A connection within the process is let in where one over the client port is.
func TestLogin(t *testing.T) {
	users := `authorization { users: [ { user: app, password: secret }, { user: old, password: secret, allowed_connection_types: ["WEBSOCKET"] } ] }`
	guest := `no_auth_user: guest
authorization { users: [ { user: app, password: secret }, { user: guest, password: guest, permissions: { publish: ["cantus.info"] } } ] }`
	authority := testcert.NewAuthority(t)
	cert, key := authority.Files("n1", time.Now().Add(time.Hour))
	tls := fmt.Sprintf("tls { cert_file: %q, key_file: %q, ca_file: %q", cert, key, authority.CAFile())
	app, wrong, old := nats.UserInfo("app", "secret"), nats.UserInfo("app", "x"), nats.UserInfo("old", "secret")
	for _, c := range []struct {
		what, config string
		login        nats.Option
		want         error
	}{
		{"no users", "", nil, nil},
		{"users, nobody", users, nil, nats.ErrAuthorization},
		{"users, one", users, app, nil},
		{"users, a wrong password", users, wrong, nats.ErrAuthorization},
		{"users, one for websockets only", users, old, nats.ErrAuthorization},
		{"a token, none", `authorization { token: secret }`, nil, nats.ErrAuthorization},
		{"a token", `authorization { token: secret }`, nats.Token("secret"), nil},
		{"a guest", guest, nil, nil},
		{"TLS", tls + " }\n" + users, app, nil},
		{"certificates, none", tls + ", verify: true }", nil, broker.ErrLogin},
		{"certificates and users", tls + ", verify: true }\n" + users, app, broker.ErrLogin},
		{"certificates that map", tls + ", verify_and_map: true }\n" + users, app, broker.ErrLogin},
	} {
		config := ""
		if c.config != "" {
			config = filepath.Join(t.TempDir(), "nats.conf")
			if err := os.WriteFile(config, []byte("listen: 127.0.0.1:-1\n"+c.config), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		n, _ := one(t, broker.Options{NATSConfig: config, ClientListen: "127.0.0.1:0"})
		var opts []nats.Option
		if c.login != nil {
			opts = append(opts, c.login)
		}
		nc, err := n.Login(opts...)
		if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v", c.what, err)
		}
		if err != nil {
			continue
		}
		if _, err := nc.Request("cantus.info", nil, patience); err != nil {
			t.Errorf("%s: info: %v", c.what, err)
		}
		if c.what == "a guest" { // who may ask for nothing else
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			denied := make(chan error, 1)
			nc.SetErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { denied <- err; cancel() })
			if m, err := nc.RequestWithContext(ctx, "cantus.get.0", []byte(`{"txid":1}`)); err == nil {
				t.Errorf("a guest reads: %s", m.Data)
			}
			if err := <-denied; !errors.Is(err, nats.ErrPermissionViolation) {
				t.Errorf("a guest: %v", err)
			}
		}
		nc.Close()
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
	n, _ := one(t, broker.Options{})
	if _, err := n.Login(); !errors.Is(err, broker.ErrLogin) {
		t.Errorf("without a client port: %v", err)
	}
}
