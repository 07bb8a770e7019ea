// Bank is an example of a service that uses a log: it opens and closes
// accounts, and transfers money between them. No balance is ever negative,
// however many instances run.
//
// It needs only a node on this machine (cantus serve). In a clone of the
// repository, replace bank by "go run ./examples/bank":
//
//	bank open alice 100
//	bank open bob 0
//	bank transfer alice bob 30
//	bank show
//	bank transfer alice bob 70
//	bank close alice
//	bank load --name a --transfers 10000
//	bank watch
//
// Only an empty account can be closed. "bank watch" shows the accounts live
// until it is interrupted.
//
// Other programs may use partition 0 too: the bank's transactions have kinds of
// their own.
//
// The log is the source of truth. Each instance applies it to a database:
// SQLite in bank.db, or the one that --db names (a file, or postgres://…).
// Instances may share a database. An instance decides by what it reads there,
// and appends its decision with locks for what it read. If the database is
// lost, the next start rebuilds it.
//
//   - event.go defines the transactions and their locks.
//   - store.go applies them to the database, and reads it.
//   - bank.go makes the decisions.
//   - watch.go shows the accounts live, load.go makes random transfers.
package main
