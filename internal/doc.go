// Package internal holds packages that tests of several folders share, and the bare
// NATS server of the benchmark.
package internal
