// Package bench is `cantus bench`: it puts load on a Cantus cluster, and on
// JetStream in turns with it, and reports the rates and latencies.
//
// Its main types are [Command] (the flags), cluster (servers of one kind),
// system (a system under test: a cluster with clients for the workload),
// loadLevel (requests in flight, or a rate), worker (one connection under
// load), round (one measurement of a system at a load level) and [Report].
//
// # How it measures
//
// In a closed loop each connection keeps a fixed number of requests in flight
// and sends the next one when an answer arrives. Answers that arrive during the
// warm-up, or after the round's time, are not counted. At a fixed rate requests
// are due at evenly spaced times that do not depend on answers; above 5,000 a
// second those of 0.2 ms are sent together. A latency then begins when the
// request was due. It belongs to the round in which the request was due,
// however late the answer is. A request that was never sent counts with the
// time until the end. So a pause of the server shows in every request that was
// due during it.
//
// Systems take turns, round by round, so that other activity on the machine
// affects all of them. The report has the median and the spread of the rounds,
// and for a peer the median and the spread of the ratios within a round.
//
// Connections are spread over a cluster's nodes. The first goes to the node
// that leads the first partition or stream when the round begins, so that with
// one connection the result does not depend on chance.
//
// NATS delivers at most once: a request that is on its way to a leader that is
// being replaced may have no answer. Such requests are given up after a while,
// and the report counts them.
//
// Servers that bench starts are processes of their own on the same machine, so
// that their processor time and memory are separate from the load's. Bytes
// written are the difference of the device's counter between two syncs of all
// file systems, over the whole round with its warm-up. They include what other
// programs write.
//
// Failover measures pauses, not rates. Appends are due at a steady rate, each
// with a message id, and are sent again until they are acknowledged, while the
// leader is ended again and again. At the end the log must have as many
// transactions as were acknowledged.
//
// # What it does not do
//
// It drops no caches and pins nothing to a processor. Figures taken while
// another program is busy are worth little; ratios suffer less.
//
// A [Command] is run once, by one goroutine.
package bench
