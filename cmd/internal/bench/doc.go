// Package bench is `cantus bench`: it puts load on a Cantus cluster, and on
// JetStream beside it, and reports what came of it.
//
// Its nouns are [Command] (the flags), the cluster (servers of one kind), the
// contestant (a cluster with ways to put the workload on it), the point (how
// hard it is pushed), the worker (one connection under load), the round (one
// contestant measured once at one point) and the [Report].
//
// # How it measures
//
// In a closed loop each connection keeps a fixed number of requests in flight
// and sends the next one when an answer comes. Answers that arrive during the
// warm-up, or after the round's time, are not counted. At a fixed rate
// requests fall due at evenly spaced times, whatever the answers do; above 5,000
// a second those of 0.2 ms are sent together. A latency
// is then from when a request was due, and belongs to the round if it was due
// in it, however late its answer; what was never sent counts with the time
// until the end. So a pause of the server is met by all that would have come
// meanwhile.
//
// Contestants take turns, round by round, so that what else happens on the
// machine meets all of them; the report has the median and the spread of the
// rounds, and for a peer the median and the spread of the ratios within a
// round.
//
// Connections are spread over a cluster's nodes, the first at the node that
// leads the first partition or stream when the round begins: with one
// connection, what is measured does not depend on chance.
//
// NATS delivers at most once: a request that is on its way to a leader when it
// is replaced may have no answer. Such requests are given up after a while,
// and the report says how many they were.
//
// Servers that bench starts are processes of their own on the same machine,
// Cantus's and the peer's alike, so that their processor time and memory are
// told apart from the load's. Bytes written are the device's own counter
// between two syncs of everything, over the whole round with its warm-up: what
// other programs write meanwhile is in it.
//
// Failover is about pauses, not rates: appends fall due steadily, each with a
// message id and sent again until it is acknowledged, while the leader is
// ended again and again. At the end the log must have as many transactions as
// were acknowledged.
//
// # What it does not do
//
// It drops no caches and pins nothing to a processor. Figures from the time in
// which another program works are worth little; ratios suffer less.
//
// A [Command] is run once, by one goroutine.
package bench
