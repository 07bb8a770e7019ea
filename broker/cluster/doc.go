// Package cluster holds what the nodes of a cluster agree on, and how
// partitions are placed on nodes.
//
// Its nouns are [Facts], the state of which every node has a copy, and
// [Command], a change to it. Facts are a function of the founders and of the
// commands since, in their order, and so are the same on every node. The
// methods of [Facts] that return a [Command] decide where replicas are to be;
// package broker moves them there.
//
// The package is a deterministic state machine: it has no I/O, goroutine or
// clock, and its decisions do not depend on the order of maps. Facts are not
// safe for concurrent use.
package cluster
