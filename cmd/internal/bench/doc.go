// Package bench is `cantus bench`: it puts load on a Cantus node, and on
// JetStream beside it, and reports what came of it.
//
// Its nouns are [Command] (the flags), the contestant (a server with a way to
// talk to it), the worker (one connection under load), the round (one
// contestant measured once) and the [Report].
//
// # How it measures
//
// The loop is closed: each connection keeps a fixed number of requests in
// flight and sends the next one when an answer comes. Answers that arrive
// during the warm-up, or after the round's time, are not counted. Contestants
// take turns, round by round, so that what else happens on the machine meets
// all of them; the report has the median and the spread of the rounds, and
// for a peer the median and the spread of the ratios within a round.
//
// A server that bench starts is a process of its own on the same machine, so
// that its processor time and memory are told apart from the load's. Bytes
// written are the device's own counter between two syncs of everything, over
// the whole round with its warm-up: what other programs write meanwhile is in
// it.
//
// # What it does not do
//
// It drops no caches, pins nothing to a processor and knows no fixed rate.
// Figures from the time in which another program works are worth little;
// ratios suffer less.
//
// A [Command] is run once, by one goroutine.
package bench
