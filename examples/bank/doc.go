// Bank is an example of a service on a log: accounts, transfers between them,
// and closing them. No balance is ever negative, however many instances run.
//
// It needs nothing but a node on this machine (cantus serve). In a clone of the
// repository, write "go run ./examples/bank" for bank:
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
// Only an empty account can be closed. "bank watch" shows the accounts live until
// it is interrupted.
//
// The bank shares partition 0 with whatever else is there: its transactions
// have kinds of its own.
//
// The log is the truth. Each instance applies it to a database: SQLite in
// bank.db, or what --db names (a file, or postgres://…). Instances may share a
// database. An instance reads there what it decides by, and appends the decision
// with the locks of what it read. If the database is lost, the next start
// rebuilds it.
//
//   - event.go has the transactions, and the locks of each.
//   - store.go applies them to the database, and reads it.
//   - bank.go decides.
//   - watch.go shows the accounts live, load.go moves money at random.
package main
