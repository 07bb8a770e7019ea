package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
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
	httpEndTime    = 2 * time.Second  // for requests under way when the node stops
)

// startHTTP serves health and metrics, and profiles where the operator asks
// for them.
func startHTTP(n *Node) error {
	l, err := n.opts.httpPort().Listen()
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "alive") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if why := n.unready(); why != "" {
			http.Error(w, why, http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ready")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(n.metrics.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 8}))
	if n.opts.Profiles {
		addr, ok := l.Addr().(*net.TCPAddr)
		if !ok || !addr.IP.IsLoopback() {
			return errors.Join(fmt.Errorf("%w: profiles are served on loopback only, and HTTP is on %s: use 127.0.0.1, or leave profiles off",
				ErrOptions, l.Addr()), l.Close())
		}
		addProfiles(mux, addr.String())
	}
	n.httpAddr = l.Addr().String()
	n.http = &http.Server{
		Handler: marking(mux), ConnContext: withConn, MaxHeaderBytes: httpHeaderSize,
		ReadTimeout: httpReadTime, WriteTimeout: httpWriteTime, IdleTimeout: httpIdleTime,
	}
	n.httpConns = &httpListener{Listener: l, most: httpConns}
	n.background.Go(func() {
		if err := n.http.Serve(n.httpConns); err != nil && !errors.Is(err, http.ErrServerClosed) {
			n.log.Error("HTTP server ended", "err", err)
		}
	})
	return nil
}

// stopHTTP closes the port at once, and waits a little for the answers that
// are under way.
func (n *Node) stopHTTP() error {
	if n.http == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), httpEndTime)
	defer cancel()
	if err := n.http.Shutdown(ctx); err != nil {
		return n.http.Close()
	}
	return nil
}
