// Package cluster holds what the nodes of a cluster agree on, and how
// partitions are placed on nodes.
//
// Its nouns are [Facts], the state that every node has a copy of, and
// [Command], a change to it. Facts are a function of how the cluster was
// founded and of the commands since, in their order: the same on every node.
// Where replicas should be is decided by the methods of [Facts] that give
// commands; that they come to be there is for others to see to.
//
// The package is a pure machine: no I/O, goroutine or clock, and what it
// decides does not depend on map order. Facts are not safe for concurrent use.
package cluster
