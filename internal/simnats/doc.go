// Package simnats is a NATS server for simulations in a bubble of package
// testing/synctest. It speaks the protocol of clients over connections within
// the process, and forwards messages between servers over a simulated network
// (package simnet).
//
// It does what the nodes and their clients need: subjects with wildcards, queue
// groups, headers, replies, and "no responders". A queue group's message goes
// to a member on the same server if there is one, as in NATS. It has no
// permissions, accounts, limits or slow consumers: what it buffers is not
// bounded.
//
// Two servers know each other's subscriptions while there is a route between
// them. A route is a connection, which breaks when it is reset, when the other
// process ends, or when no answer to a ping arrives for about four seconds.
// Messages that were on their way are lost then, as in NATS.
package simnats
