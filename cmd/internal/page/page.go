package page

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"
)

// Options says what a page shows, and to whom.
type Options struct {
	Source Source
	// Full also shows transactions, to viewers that the source lets log in. The
	// port must be on loopback then.
	Full bool
	// Hosts are names that the page is asked for by, besides addresses and
	// localhost.
	Hosts  []string
	Logger *slog.Logger
}

// Limits of a page.
const (
	maxStreams     = 32               // live streams at a time
	maxStreamsEach = 16               // of one address
	slowTime       = 5 * time.Second  // a write that takes longer ends a stream
	deadTime       = 30 * time.Second // a write that takes longer ends the connection
	silentTime     = 2 * time.Second  // an empty line is sent after it
	maxQuery       = 4096             // bytes of a query
	queryTime      = 20 * time.Second // for an answer that is searched for
)

// Page is the page's handler.
type Page struct {
	opts     Options
	mux      *http.ServeMux
	status   *poller
	sessions *sessions
	streams  streamSlots
	slow     time.Duration // slowTime
}

// New returns a page.
func New(o Options) *Page {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Page{
		opts: o, mux: http.NewServeMux(), status: newPoller(o.Source.Status), sessions: newSessions(),
		streams: streamSlots{of: map[string]int{}}, slow: slowTime,
	}
	for name, a := range assets {
		p.mux.Handle("GET "+name, a)
	}
	p.mux.HandleFunc("GET /page/live", p.api(p.live))
	p.mux.HandleFunc("POST /page/login", p.api(p.local(p.login)))
	p.mux.HandleFunc("POST /page/logout", p.api(p.local(p.logout)))
	p.mux.HandleFunc("GET /page/transaction", p.api(p.local(p.viewing(transaction))))
	p.mux.HandleFunc("GET /page/around", p.api(p.local(p.viewing(around))))
	p.mux.HandleFunc("GET /page/lock", p.api(p.local(p.viewing(lock))))
	return p
}

// Close ends all sessions. Streams end with the contexts of their requests.
func (p *Page) Close() { p.sessions.close() }

// ServeHTTP implements [http.Handler].
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	if !p.isOwnHost(r.Host) {
		http.Error(w, "the page answers to its address, to localhost and to its machine's name only", http.StatusMisdirectedRequest)
		return
	}
	p.mux.ServeHTTP(w, r)
}

// policy lets the browser load nothing from elsewhere, and run no script but
// the page's own. Scripts can't make markup out of text either.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// isOwnHost reports whether a Host header can't be a name that somebody else
// has pointed at this machine: it is an address, or one of the machine's names.
func (p *Page) isOwnHost(host string) bool {
	name := hostname(host)
	return net.ParseIP(name) != nil || name == "localhost" ||
		slices.ContainsFunc(p.opts.Hosts, func(own string) bool { return strings.EqualFold(own, name) })
}

// hostname returns a Host header without its port.
func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// ownHeader is what the page's script sends with each request. The script of
// another site can't send it: the browser would ask for permission first.
const ownHeader = "Cantus-Page"

// api wraps a handler of requests of the page's script: it refuses those of
// other sites.
func (p *Page) api(next http.HandlerFunc) http.HandlerFunc {
	sameOrigin := http.NewCrossOriginProtection()
	return func(w http.ResponseWriter, r *http.Request) {
		site := r.Header.Get("Sec-Fetch-Site")
		if r.Header.Get(ownHeader) == "" || site != "" && site != "same-origin" || sameOrigin.Check(r) != nil {
			fail(w, http.StatusForbidden, "this is for the page's own script, which sends the header "+ownHeader)
			return
		}
		if len(r.URL.RawQuery) > maxQuery {
			fail(w, http.StatusRequestURITooLong, "the query is too long")
			return
		}
		next(w, r)
	}
}

// local wraps a handler of transactions: they are for requests to a loopback
// address, of a page that shows them.
func (p *Page) local(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if why := p.withholds(r); why != "" {
			fail(w, http.StatusForbidden, why)
			return
		}
		next(w, r)
	}
}

// withholds returns why a request may see no transactions, whoever makes it, ""
// if it may.
func (p *Page) withholds(r *http.Request) string {
	from, _, _ := net.SplitHostPort(r.RemoteAddr)
	switch {
	case !p.opts.Full:
		return "the page shows no transactions: the node was not started with --page full"
	case !isLoopback(from) || !isLoopback(hostname(r.Host)):
		return "transactions are for this machine: the page has no TLS. Reach it by ssh -L, or by a proxy on this machine"
	}
	return ""
}

// proxied reports whether a proxy says that a request is of somebody else, who
// may be on another machine.
func proxied(r *http.Request) bool {
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Real-Ip", "Via"} {
		if r.Header.Get(name) != "" {
			return true
		}
	}
	return false
}

// fail answers with an error.
func fail(w http.ResponseWriter, status int, text string) {
	answer(w, status, map[string]string{"error": text})
}

// answer answers with JSON.
func answer(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{"error":"the answer can't be encoded"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

//go:embed assets
var files embed.FS

// asset is a file of the page.
type asset struct {
	name string
	text []byte
	tag  string
}

// assets are the page's files by their paths.
var assets = func() map[string]asset {
	all := map[string]asset{}
	entries, err := fs.ReadDir(files, "assets")
	if err != nil {
		panic("page: " + err.Error()) // they are embedded
	}
	for _, e := range entries {
		text, err := files.ReadFile(path.Join("assets", e.Name()))
		if err != nil {
			panic("page: " + err.Error())
		}
		sum := sha256.Sum256(text)
		at := "/page/" + e.Name()
		if e.Name() == "index.html" {
			at = "/{$}"
		}
		all[at] = asset{e.Name(), text, `"` + hex.EncodeToString(sum[:8]) + `"`}
	}
	return all
}()

// ServeHTTP implements [http.Handler].
func (a asset) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("ETag", a.tag)
	types := map[string]string{".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
	w.Header().Set("Content-Type", types[path.Ext(a.name)]+"; charset=utf-8")
	http.ServeContent(w, r, a.name, time.Time{}, bytes.NewReader(a.text))
}
