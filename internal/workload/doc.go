// Package workload asks a cluster for everything that the protocol has, and
// records what it is answered, for the judge. It is for tests of the built
// binary and for simulations in a bubble of package testing/synctest.
//
// A [Client] is a NATS connection that sends the requests of subjects.md. A
// [Recorder] keeps what clients ask for and are answered, as a history of
// package judge. A [Mix] is clients that make random requests from a seed until
// they are stopped. They expect nothing: the judge decides.
//
// The package spells out subjects, headers and answers a second time: it knows
// the contract, and nothing of a node. It has no clock but package time, and no
// connection but those of its clients. A Mix leaves no goroutine behind when it
// has ended.
//
// A Client and a Recorder may be used concurrently.
package workload
