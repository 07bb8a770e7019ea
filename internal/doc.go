// Package internal holds what tests of several folders share, and the bare NATS
// server of the benchmark.
package internal
