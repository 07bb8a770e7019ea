// Package sqlview applies a log to a SQL database, exactly once.
//
//	view, err := sqlview.Open(ctx, c, db, sqlview.SQLite, func(ctx context.Context, db *sql.Tx, tx *client.Transaction) error {
//		_, err := db.ExecContext(ctx, `UPDATE stock SET hats = hats - 2`)
//		return err
//	}, sqlview.Options{})
//	go func() { stopped <- view.Run(running) }()
//
// Its nouns:
//
//   - [View] follows partitions and passes each transaction to an [Apply]
//     function inside a database transaction.
//   - The mark is the txid up to which a partition is in the database. It is
//     moved by compare-and-set in the same database transaction that applies.
//   - [Parked] is a transaction that [Apply] could not apply and that was set
//     aside by decision.
//
// # Guarantees
//
// The database contains the effects of each transaction once, in txid order,
// with none missing before the mark, after any crash of the process or the
// database, and after any loss of the connection between them, even during a
// commit. Views of the same name on one database, in one process or many, share
// that guarantee: the one that applies locks the row of the mark, and another
// finds it moved and continues after it. What [Apply] does outside of its
// database transaction has no such guarantee.
//
// Transactions that are waiting are applied together, up to
// [client.FollowOptions.MaxBatch] in one database transaction, so that a view
// that is behind catches up with fewer commits.
//
// An atomic batch is always applied in one database transaction: a reader of
// the database sees all of it or nothing.
//
// # Errors
//
// If the database is unavailable, busy or deadlocked, the view retries for
// ever; Progress returns the error. An error of Apply itself stops the
// partition, unless OnError of [Options].Follow decides to retry after a
// back-off, or to park the transaction. Parking stores the transaction in the
// database with its error and moves the mark, in one database transaction. An
// atomic batch is parked, and resolved, as a whole.
//
// # Databases
//
// The package supports SQLite and PostgreSQL, through any database/sql driver
// that the caller opens. It is tested with modernc.org/sqlite and pgx. SQLite
// needs a busy timeout, and WAL mode for readers beside the view. The isolation
// level is the database's default; any level is sufficient.
//
// # Concurrency
//
// All methods are safe for concurrent use. Apply is called by one goroutine per
// partition.
package sqlview
