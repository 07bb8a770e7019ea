package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Limits of the HTTP port. It answers probes and scrapes: small requests
// without bodies, and few at a time.
const (
	httpReadTime   = 10 * time.Second // for a whole request
	httpWriteTime  = 30 * time.Second // for a whole answer, the time that a profile watches not counted
	httpIdleTime   = time.Minute      // between two requests of a connection
	httpHeaderSize = 16 << 10         // bytes of a request's header
	httpConns      = 256              // open at a time; for one more an idle one is closed
	httpProbeTime  = 5 * time.Second  // for the node's own loops
	httpEndTime    = 2 * time.Second  // for requests under way when the node stops
)

// httpServer serves health and metrics.
type httpServer struct {
	server *http.Server
	conns  *httpListener
	addr   string             // host:port
	cancel context.CancelFunc // ends the contexts of the added handler's requests
	ended  sync.WaitGroup
}

// startHTTP serves health and metrics, profiles where the operator asks for
// them, and what the program that embeds the node adds. unready returns why the
// node is not ready, "" if it is. probe is [Node.Probe].
func startHTTP(o Options, m *metrics, unready func() string, probe func(context.Context) error) (*httpServer, error) {
	l, err := o.httpPort().Listen()
	if err != nil {
		return nil, err
	}
	mux := httpHandler(m, unready, probe)
	if o.Profiles {
		addr, ok := l.Addr().(*net.TCPAddr)
		if !ok || !addr.IP.IsLoopback() {
			return nil, errors.Join(profilesRefused(l.Addr().String()), l.Close())
		}
		addProfiles(mux, addr.String())
	}
	running, cancel := context.WithCancel(context.Background())
	if o.HTTPHandler != nil {
		mux.Handle("/", endingWith(running, o.HTTPHandler))
	}
	s := &httpServer{addr: l.Addr().String(), server: newHTTPServer(mux), cancel: cancel}
	s.conns = &httpListener{Listener: l, most: httpConns}
	s.ended.Go(func() {
		if err := s.server.Serve(s.conns); err != nil && !errors.Is(err, http.ErrServerClosed) {
			o.Logger.Error("HTTP server ended", "err", err)
		}
	})
	return s, nil
}

// endingWith returns a handler whose requests' contexts also end with running.
func endingWith(running context.Context, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(running, cancel)()
		h.ServeHTTP(w, r.WithContext(ctx))
	})
}

// newHTTPServer returns a server that waits for no client for long.
func newHTTPServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler: marking(h), ConnContext: withConn, MaxHeaderBytes: httpHeaderSize,
		ReadTimeout: httpReadTime, WriteTimeout: httpWriteTime, IdleTimeout: httpIdleTime,
	}
}

// httpHandler serves health and metrics.
func httpHandler(m *metrics, unready func() string, probe func(context.Context) error) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "alive") })
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), httpProbeTime)
		defer cancel()
		if err := probe(ctx); err != nil {
			http.Error(w, "the node's own loops do not answer", http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "alive")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if why := unready(); why != "" {
			http.Error(w, why, http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ready")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 8}))
	for _, path := range []string{"/healthz", "/livez", "/readyz", "/metrics"} {
		mux.HandleFunc(path, getOnly)
	}
	return mux
}

// getOnly refuses the methods that a path does not have. The mux does so too,
// but not beside a handler of all paths, such as that of the page.
func getOnly(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Allow", "GET, HEAD")
	http.Error(w, http.StatusText(http.StatusMethodNotAllowed), http.StatusMethodNotAllowed)
}

// stop closes the port at once, and waits a little for the answers that
// are under way.
func (s *httpServer) stop() error {
	if s == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), httpEndTime)
	defer cancel()
	s.cancel()
	err := s.server.Shutdown(ctx)
	if err != nil {
		err = s.server.Close()
	}
	s.ended.Wait()
	return err
}
