// Package e2e tests the built binary from outside: it starts `cantus serve`,
// speaks to it as any NATS client would, kills it, damages its directory, and
// compares what comes back with what must come back.
//
// It imports nothing of the project. Subjects, headers, replies and codes are
// spelled out here a second time on purpose: what these tests rely on is what
// a client in another language relies on.
//
// The tests with the build tag interop need more than Go: Node.js and npm for
// the folder node, a C compiler and libnats for the folder c.
package e2e
