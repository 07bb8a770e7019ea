package broker

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/broker/internal/natsserver"
)

// serverWatch checks whether the node's NATS server lets it serve.
type serverWatch struct {
	log        *slog.Logger
	server     watchedServer
	partitions func() int
	links      []*natslink.Link // the node's own
	reads      *natslink.Link
	control    func() *nats.Conn // for requests to nodes, this one among them
	serviceID  string            // in discovery

	result atomic.Pointer[natsCheck]
}

// checkInterval is the time between two checks if the NATS server has a
// configuration file, so that its accounts may change, or after a failed check.
// Otherwise it is checkIntervalFixed.
const (
	checkInterval      = time.Second
	checkIntervalFixed = 10 * time.Second
)

// run checks again and again, and when the NATS server has reloaded its
// configuration, until ctx ends.
func (w *serverWatch) run(ctx context.Context) {
	for {
		err := w.check(ctx)
		if ctx.Err() != nil {
			return
		}
		last, now := w.latest(), natsCheck{err}
		w.result.Store(&now)
		switch {
		case err == nil && last.err != nil:
			w.log.Info("the NATS server lets the node serve again")
		case err != nil && last.String() != now.String():
			w.log.Error("the NATS server does not let the node serve", "err", err)
		}
		again := checkIntervalFixed
		if err != nil || w.server.Configured() {
			again = checkInterval
		}
		select {
		case <-ctx.Done():
			return
		case <-w.server.Reloaded():
		case <-time.After(again):
		}
	}
}

// natsCheck is the result of a check.
type natsCheck struct{ err error }

func (c natsCheck) String() string { return fmt.Sprint(c.err) }

// latest returns the result of the latest check.
func (w *serverWatch) latest() natsCheck {
	if c := w.result.Load(); c != nil {
		return *c
	}
	return natsCheck{}
}

// shadowedError names the subject mapping that keeps requests from the node.
type shadowedError string

func (e shadowedError) Error() string { return string(e) }

// check returns an error if requests do not reach the node: mappings redirect
// them, or the node does not hear its own.
func (w *serverWatch) check(ctx context.Context) error {
	if err := w.checkMappings(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, natslink.AuditTimeout)
	defer cancel()
	if err := w.reads.Flush(ctx); err != nil {
		return err
	}
	subject := fmt.Sprintf("%s.%s.%s.%s", micro.APIPrefix, micro.PingVerb, natsserver.ServiceName, w.serviceID)
	if _, err := w.control().RequestWithContext(ctx, subject, nil); err != nil {
		return fmt.Errorf("the node does not hear its own requests: %w", err)
	}
	return nil
}

// checkMappings maps appends by key if they are not mapped: an account that is
// replaced loses the node's mapping. It returns an error if another of the
// node's subjects is mapped.
func (w *serverWatch) checkMappings() error {
	what, keys, err := w.server.Shadowed(w.partitions())
	if err != nil {
		return err
	}
	if !keys {
		w.log.Warn("appends by key are mapped again")
		if err := w.server.RemapKeys(); err != nil {
			return err
		}
	}
	if what != "" {
		return shadowedError(what)
	}
	return nil
}

// trouble returns what keeps the node from serving over its NATS server, "" if
// nothing does.
func (w *serverWatch) trouble() string {
	for _, l := range w.links {
		if why := l.Trouble(); why != "" {
			return why
		}
	}
	if err := w.latest().err; err != nil {
		return err.Error()
	}
	return ""
}
