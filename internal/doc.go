// Package internal holds packages that the tests of several folders share, and
// the benchmark's NATS server without Cantus.
package internal
