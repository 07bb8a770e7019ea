// Package traceexport sends a node's spans to an OpenTelemetry collector, by
// OTLP over HTTP. It is apart from package broker so that a program that embeds
// a node, and has a TracerProvider of its own, need not link it.
package traceexport
