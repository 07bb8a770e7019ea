package main

import (
	"context"
	"log/slog"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/broker/traceexport"
)

// sendTraces has the node's spans sent to the collector that --traces names, if
// any, until end is called.
func (c *serveFlags) sendTraces(ctx context.Context, opts *broker.Options) (end func(), err error) {
	if c.Traces == "" {
		return func() {}, nil
	}
	otel.SetLogger(logr.FromSlogHandler(otelWarnings{opts.Logger.Handler()}))
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { opts.Logger.Warn("traces", "err", err) }))
	e, err := traceexport.Open(ctx, traceexport.Options{URL: string(c.Traces), Node: string(c.Name), Version: buildVersion(), Logger: opts.Logger})
	if err != nil {
		return nil, err
	}
	opts.TracerProvider, opts.SpansLost = e.Provider(), e.Lost
	return e.Close, nil
}

// otelWarnings passes on what OpenTelemetry says of a variable that it can't
// read, and not what it says of its own work, which it logs as information.
type otelWarnings struct{ slog.Handler }

func (otelWarnings) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn
}
