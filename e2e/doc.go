// Package e2e tests the built binary from outside: it starts `cantus serve`,
// speaks to it as any NATS client would, kills it, damages its directory, and
// compares what comes back with what must come back.
//
// It imports nothing of the project but helpers for tests. Subjects, headers,
// replies and codes are spelled out here a second time on purpose: what these
// tests rely on is what a client in another language relies on.
//
// Where clusters run through faults, what the clients do is recorded, and
// `cantus check` decides whether the history is right.
//
// The tests with the build tag interop need more than Go: Node.js and npm for
// the folder node, a C compiler and libnats for the folder c.
package e2e
