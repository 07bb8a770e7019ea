// Package broker is a node: an embedded NATS server, the replicas of
// partitions, and what turns requests on subjects into committed transactions.
//
//	node, err := broker.Open(context.Background(), dir, broker.Options{Partitions: 1})
//	defer node.Close()
//	nc, err := node.Conn() // package client goes on from here
//	defer nc.Close()
//
// The main type is [Node]. [Open] runs one on a directory, alone and without
// any port unless [Options] names one: a log inside a Go service, reached
// through [Node.Conn]. `cantus serve` is the same with ports.
//
// When an append is answered with a txid, the transaction is synced on a
// majority of the partition's replicas and applied by the leader.
//
// # The way of an append
//
//	link        the node's own connection to its NATS server: receives
//	  queue     bounded, per partition; full means `busy`
//	  sequencer decodes, certifies, proposes what passes as one batch
//	  raftstore one entry per batch: journal, fsync, followers
//	  state     applies the entry: lock table, digest
//	  responder replies, batch by batch, in order
//	  publisher publishes the transactions on the feed
//
// Sequencer, responder and publisher are the stages of a tenure, which serves
// a partition for one leader epoch. Several batches may be in flight; a refusal
// that depends on one of them is answered after it. If a proposal fails, the
// tenure ends, every batch in flight is answered by its own outcome, and the
// next tenure begins behind a barrier.
//
// # The parts of a node
//
// A Node makes its parts, opens and closes them (node.go, wiring.go, close.go).
// No part holds a reference to the node: each declares what it needs.
//
//	identity           names, the cluster's secret, signatures
//	gossip             the exchange of announcements between nodes
//	peers              the other nodes' last announcements
//	bootstrap          a new directory founds a cluster or joins one
//	membership         whether this node is still a member
//	meta               the replicated facts: members and placement (package cluster)
//	operations         the requests of operators
//	replicaController  opens, fetches and deletes this node's replica of a partition
//	generations        the recognition of older copies of data directories
//
// The connections to the NATS server and the server itself are packages of
// their own, internal/natslink and internal/natsserver.
//
// # The parts of a replica
//
// A replica makes its parts and takes them through its leader epochs
// (replica.go, leader.go). No part has the replica.
//
//	partitionState the state: a function of the log
//	queue          the requests that wait
//	refusals       refuses what the queues have no room for
//	requestServer  runs the handlers of requests that are not appends
//	reader         answers reads from the log
//	partitionInfo  answers what a partition's state is
//	cursorWriter   answers the requests to cursors
//	cursorList     answers which cursors there are
//	trimmer        removes the oldest transactions
//	retainer       trims by the retention policy
//	archiveReader  reads trimmed transactions from the archive
//	restorer       answers the steps of a restore
//	diskGate       whether disks have room
//	fencing        keeps a replica with a wrong log out of its group
//	transfer       moves leadership to another node
//	unsendable     finds transactions that are too large to send
//
// These are the data path. The control plane decides which nodes hold and lead
// which partitions: see docs/adr/0017-no-part-has-the-node.md for its parts.
//
// Reads (read.go) go past the way of an append, to the replica's log. All
// methods of Node are safe for concurrent use.
package broker
