// Bank is an example of a service on a log: accounts, transfers between them,
// and closing them. No balance is ever negative, however many instances run.
//
// With a node on this machine (cantus serve) it needs no more; "go run
// ./examples/bank" stands for bank in a clone of the repository:
//
//	bank open alice 100
//	bank open bob 0
//	bank transfer alice bob 30
//	bank show
//	bank watch
//	bank close alice
//	bank load --name a --transfers 10000
//
// The bank shares partition 0 with whatever else is there: its transactions
// have kinds of its own.
//
// The log is the truth. Each instance applies it to a database, SQLite in
// bank.db unless --db says otherwise (a file, or postgres://…), which instances
// may share; reads what it decides by there; and appends the decision with the
// locks of what it read. Lose the database, and the next start rebuilds it.
//
//   - event.go has the transactions, and the locks of each.
//   - store.go applies them to the database, and reads it.
//   - bank.go decides.
//   - watch.go shows the accounts live, load.go moves money at random.
package main
