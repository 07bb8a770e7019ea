// Bench measures etcd with the append workload of `cantus bench`: transactions
// that commit only if none of the keys that they lock has changed since the
// writer saw it. It is a module of its own, so that etcd is no dependency of
// Cantus.
//
//	go run . --members 3 --conns 64 --in-flight 1 --locks 2 --cantus ../../bin/cantus
//
// # What a transaction is
//
// One Txn that compares the modification revision of each of its keys with the
// last known one, and puts each key: the first with the payload, the others
// empty. If a comparison fails, the same round trip returns the keys'
// revisions, and the transaction is tried again with them. Connections share
// the known revisions, so that none is refused because of what another already
// knows.
//
// # How it measures
//
// As `cantus bench` does: in a closed loop with a fixed number of transactions
// in flight, and in rounds with a warm-up. Answers after a round's time are not
// counted. Each member is a process of its own, which this program starts with
// the etcd server that is linked in; etcd syncs before it answers. With
// --cantus, each round is followed by one of `cantus bench append` with the
// same numbers, so that other activity on the machine affects both.
//
// The JSON has the names of `cantus bench --json`. Quantiles are medians of
// the rounds' quantiles.
package main
