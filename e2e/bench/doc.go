// Bench measures etcd with the append workload of `cantus bench`: transactions
// that commit only if none of the keys that they lock has changed since the
// writer saw it. It is a module of its own, so that etcd is no dependency of
// Cantus.
//
//	go run . --members 3 --conns 64 --in-flight 1 --locks 2 --cantus ../../bin/cantus
//
// # What a transaction is
//
// One Txn that compares the modification revision of each of its keys with
// what the load knows of it, and puts each: the first with the payload, the
// others empty. If a comparison fails, the same round trip brings the keys'
// revisions, and the transaction is tried again with them. Connections share
// what they know, so that none is refused for what it could have known.
//
// # How it measures
//
// As `cantus bench` does: a closed loop of a fixed number of transactions in
// flight, rounds with a warm-up, answers that come after a round's time not
// counted. Each member is a process of its own, run by this program with the
// etcd server that is linked in; etcd syncs before it answers. With --cantus,
// each round is followed by one of `cantus bench append` with the same
// numbers, so that what else happens on the machine meets both.
//
// The JSON has the names of `cantus bench --json`. Quantiles are medians of
// the rounds' quantiles.
package main
