// Package traces makes spans of OpenTelemetry from what a node has done for an
// append. The parts of the data path note moments that they know anyway; the
// spans are made afterwards, on a goroutine of their own, so that nothing waits
// for them. See docs/adr/0046-traces.md.
package traces
