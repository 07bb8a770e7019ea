package sqlview

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/cantuslog/cantus/client"
)

// A row of cantus_marks says how far a partition is in the database; stamp is
// the time of that transaction, which distinguishes this log from others, and
// cluster the id of the cluster that it is from, as far as it is known.
var tables = []string{
	`CREATE TABLE IF NOT EXISTS cantus_marks (
		view TEXT NOT NULL, partition BIGINT NOT NULL, txid BIGINT NOT NULL, stamp TEXT NOT NULL,
		cluster TEXT NOT NULL DEFAULT '',
		PRIMARY KEY (view, partition))`,
	`CREATE TABLE IF NOT EXISTS cantus_parked (
		view TEXT NOT NULL, partition BIGINT NOT NULL, txid BIGINT NOT NULL,
		body TEXT NOT NULL, error TEXT NOT NULL, since TEXT NOT NULL,
		PRIMARY KEY (view, partition, txid))`,
}

// marks accesses the view's rows of the two tables.
type marks struct {
	db      *sql.DB
	dialect Dialect
	view    string
}

// create creates missing tables and rows. If several instances do so
// concurrently, PostgreSQL may refuse all but one; the caller retries.
func (m *marks) create(ctx context.Context, partitions []int) error {
	for _, s := range tables {
		if _, err := m.db.ExecContext(ctx, s); err != nil {
			return fmt.Errorf("create the tables: %w", err)
		}
	}
	if err := m.addCluster(ctx); err != nil {
		return fmt.Errorf("add a column to cantus_marks: %w", err)
	}
	insert := m.dialect.Statement(`INSERT INTO cantus_marks (view, partition, txid, stamp) VALUES (?, ?, 0, '') ON CONFLICT DO NOTHING`)
	for _, p := range partitions {
		if _, err := m.db.ExecContext(ctx, insert, m.view, p); err != nil {
			return fmt.Errorf("create the mark of partition %d: %w", p, err)
		}
	}
	return nil
}

// addCluster adds the column cluster to a table of an older version.
func (m *marks) addCluster(ctx context.Context) error {
	rows, err := m.db.QueryContext(ctx, `SELECT cluster FROM cantus_marks WHERE 1 = 0`)
	if err == nil {
		return errors.Join(rows.Err(), rows.Close())
	}
	_, err = m.db.ExecContext(ctx, `ALTER TABLE cantus_marks ADD COLUMN cluster TEXT NOT NULL DEFAULT ''`)
	return err
}

// mark is a row of cantus_marks.
type mark struct {
	txid    uint64
	stamp   string
	cluster string
}

type queryer interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// get returns a partition's mark.
func (m *marks) get(ctx context.Context, from queryer, partition int) (at mark, err error) {
	var n int64
	err = from.QueryRowContext(ctx, m.dialect.Statement(`SELECT txid, stamp, cluster FROM cantus_marks WHERE view = ? AND partition = ?`),
		m.view, partition).Scan(&n, &at.stamp, &at.cluster)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return mark{}, fmt.Errorf("partition %d: %w", partition, ErrNoPosition)
	case err != nil:
		return mark{}, fmt.Errorf("read the mark of partition %d: %w", partition, err)
	}
	at.txid = uint64(n)
	return at, nil
}

// move sets a partition's mark to tx, which is from a cluster, if it is at
// expected, and locks it until the end of the database transaction.
func (m *marks) move(ctx context.Context, in *sql.Tx, tx *client.Transaction, cluster string, expected uint64) (moved bool, err error) {
	if tx.Txid > math.MaxInt64 {
		return false, fmt.Errorf("txid %d is beyond the range of a BIGINT", tx.Txid)
	}
	r, err := in.ExecContext(ctx, m.dialect.Statement(
		`UPDATE cantus_marks SET txid = ?, stamp = ?, cluster = ? WHERE view = ? AND partition = ? AND txid = ?`),
		int64(tx.Txid), stamp(tx), cluster, m.view, tx.Partition, int64(expected))
	if err != nil {
		return false, err
	}
	n, err := r.RowsAffected()
	return n == 1, err
}

// reset sets a partition's mark unconditionally.
func (m *marks) reset(ctx context.Context, in *sql.Tx, partition int, txid uint64) error {
	r, err := in.ExecContext(ctx, m.dialect.Statement(
		`UPDATE cantus_marks SET txid = ?, stamp = '', cluster = '' WHERE view = ? AND partition = ?`), int64(txid), m.view, partition)
	if err != nil {
		return err
	}
	if n, err := r.RowsAffected(); err != nil || n != 1 {
		return errors.Join(err, fmt.Errorf("partition %d: %w", partition, ErrNoPosition))
	}
	return nil
}

func stamp(tx *client.Transaction) string { return tx.Time.UTC().Format(time.RFC3339Nano) }
