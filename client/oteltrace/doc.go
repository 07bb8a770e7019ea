// Package oteltrace makes OpenTelemetry traces of what a client of Cantus does.
// It is a module of its own, so that only programs that use OpenTelemetry
// depend on it.
//
//	c, err := client.New(nc, client.Options{Tracer: oteltrace.New(provider, oteltrace.Options{})})
//
// An append is a span of kind producer, below the span of the caller's context.
// Its context travels with the transaction, in the headers traceparent and
// tracestate, which the log keeps. Each call of a handler is a span of kind
// consumer, linked to the appends of its transactions. If it handles a single
// one, it is also a child of that append, so that both are in one trace. What
// the handler does with its context is below it.
//
// Names and attributes follow OpenTelemetry's semantic conventions for
// messaging; what these don't have begins with "cantus.". docs/traces.md lists
// them.
package oteltrace
