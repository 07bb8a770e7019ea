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
//   - [View], which follows partitions and hands each transaction to an [Apply]
//     function inside a database transaction.
//   - The mark, the txid up to which a partition is in the database. It is moved
//     by compare-and-set in the very transaction that applies.
//   - [Parked], a transaction that [Apply] could not apply and that was set aside
//     by decision.
//
// # Guarantees
//
// The database holds the effects of each transaction once, in txid order, with
// nothing left out before the mark, whatever crashes when: the process, the
// database, or the connection between them during a commit. Several views of
// one name on one database, in one process or many, share that guarantee: the
// instance that applies locks the mark's row, and one that comes second finds it
// moved and goes on behind it. What [Apply] does outside of its database
// transaction has no such guarantee.
//
// What waits is applied together, up to [client.FollowOptions.MaxBatch] in one
// database transaction, so that catching up shares commits.
//
// # Errors
//
// A database that is away, busy or deadlocked is tried again for ever; Progress
// shows its error. An error of Apply's own stops the partition, unless OnError of
// [Options].Follow decides to try again, with back-off, or to park the
// transaction. Parking stores it in the database with its error and moves the
// mark, in one database transaction.
//
// # Databases
//
// SQLite and PostgreSQL, through whatever database/sql driver the caller opens;
// tested with modernc.org/sqlite and pgx. SQLite wants a busy timeout and, for
// readers beside the view, WAL. The isolation level is the database's default;
// any will do.
//
// # Concurrency
//
// All methods are safe for concurrent use. Apply is called by one goroutine per
// partition.
package sqlview
