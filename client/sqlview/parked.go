package sqlview

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
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
// another function may correct it. A nil apply drops it.
func (v *View) Resolve(ctx context.Context, partition int, txid uint64, apply Apply) error {
	in, err := v.marks.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer in.Rollback() // no effect after a commit
	p, err := v.marks.unpark(ctx, in, partition, txid)
	if err != nil {
		return fmt.Errorf("partition %d: txid %d: %w", partition, txid, err)
	}
	if apply != nil {
		if err := apply(ctx, in, p.Transaction); err != nil {
			return fmt.Errorf("partition %d: txid %d: %w", partition, txid, err)
		}
	}
	return in.Commit()
}

// unpark deletes the row first, which locks out others that resolve it.
func (m *marks) unpark(ctx context.Context, in *sql.Tx, partition int, txid uint64) (p Parked, err error) {
	var body, reason, since string
	err = in.QueryRowContext(ctx, m.dialect.Statement(
		`DELETE FROM cantus_parked WHERE view = ? AND partition = ? AND txid = ? RETURNING body, error, since`),
		m.view, partition, int64(txid)).Scan(&body, &reason, &since)
	if err == sql.ErrNoRows { // database/sql gives it bare
		return p, ErrNotParked
	}
	if err != nil {
		return p, err
	}
	return readParked(body, reason, since)
}
