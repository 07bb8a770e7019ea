package sqlview

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/cantuslog/cantus/client"
)

// Parked is a transaction that was set aside.
type Parked struct {
	Transaction *client.Transaction
	// Err is the text of Apply's last error.
	Err   string
	Since time.Time
}

func (m *marks) park(ctx context.Context, in *sql.Tx, tx *client.Transaction, cause error) error {
	body, err := json.Marshal(tx)
	if err != nil {
		return err
	}
	_, err = in.ExecContext(ctx, m.dialect.Statement(
		`INSERT INTO cantus_parked (view, partition, txid, body, error, since) VALUES (?, ?, ?, ?, ?, ?)`),
		m.view, tx.Partition, int64(tx.Txid), string(body), strconv.Quote(cause.Error()), time.Now().UTC().Format(time.RFC3339Nano))
	return err
}

// Parked returns the parked transactions, by partition and txid.
func (v *View) Parked(ctx context.Context) (all []Parked, err error) {
	rows, err := v.marks.db.QueryContext(ctx, v.marks.dialect.Statement(
		`SELECT body, error, since FROM cantus_parked WHERE view = ? ORDER BY partition, txid`), v.marks.view)
	if err != nil {
		return nil, fmt.Errorf("list parked transactions: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var body, reason, since string
		if err := rows.Scan(&body, &reason, &since); err != nil {
			return nil, err
		}
		p, err := readParked(body, reason, since)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, rows.Err()
}

func readParked(body, reason, since string) (p Parked, err error) {
	p.Transaction = new(client.Transaction)
	if err := json.Unmarshal([]byte(body), p.Transaction); err != nil {
		return p, fmt.Errorf("decode a parked transaction: %w", err)
	}
	if p.Err, err = strconv.Unquote(reason); err != nil {
		return p, fmt.Errorf("decode the error of a parked transaction: %w", err)
	}
	p.Since, err = time.Parse(time.RFC3339Nano, since)
	return p, err
}

// Resolve removes a parked transaction and passes it to apply, in one database
// transaction; if apply fails, it stays parked. apply decides what becomes of
// it: the view's own Apply applies it now, later than in the order of the log;
// another function may correct it. A nil apply drops it. An atomic batch is
// resolved as a whole, by the txid of any of its transactions: apply gets them
// in order.
func (v *View) Resolve(ctx context.Context, partition int, txid uint64, apply Apply) error {
	in, err := v.marks.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer in.Rollback() // no effect after a commit
	all, err := v.marks.unpark(ctx, in, partition, txid)
	if err != nil {
		return fmt.Errorf("partition %d: txid %d: %w", partition, txid, err)
	}
	for _, tx := range all {
		if apply == nil {
			break
		}
		if err := apply(ctx, in, tx); err != nil {
			return fmt.Errorf("partition %d: txid %d: %w", partition, tx.Txid, err)
		}
	}
	return in.Commit()
}

// unpark returns a parked transaction with those that are parked of its atomic
// batch, in order. It deletes the rows first, which locks out others that
// resolve them.
func (m *marks) unpark(ctx context.Context, in *sql.Tx, partition int, txid uint64) (all []*client.Transaction, err error) {
	if all, err = m.deleteParked(ctx, in, partition, txid, txid); err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, ErrNotParked
	}
	if r := all[0].Atomic; r.First != 0 {
		others, err := m.deleteParked(ctx, in, partition, r.First, r.Last)
		if err != nil {
			return nil, err
		}
		all = append(all, others...)
		slices.SortFunc(all, func(a, b *client.Transaction) int { return cmp.Compare(a.Txid, b.Txid) })
	}
	return all, nil
}

// deleteParked deletes the parked transactions between two txids, and returns
// them.
func (m *marks) deleteParked(ctx context.Context, in *sql.Tx, partition int, first, last uint64) (all []*client.Transaction, err error) {
	rows, err := in.QueryContext(ctx, m.dialect.Statement(
		`DELETE FROM cantus_parked WHERE view = ? AND partition = ? AND txid >= ? AND txid <= ? RETURNING body, error, since`),
		m.view, partition, int64(first), int64(last))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var body, reason, since string
		if err := rows.Scan(&body, &reason, &since); err != nil {
			return nil, err
		}
		p, err := readParked(body, reason, since)
		if err != nil {
			return nil, err
		}
		all = append(all, p.Transaction)
	}
	return all, rows.Err()
}
