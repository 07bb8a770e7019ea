package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"

	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/client/sqlview"
)

var schema = []string{
	`CREATE TABLE IF NOT EXISTS accounts (name TEXT PRIMARY KEY, balance BIGINT NOT NULL CHECK (balance >= 0), active BOOLEAN NOT NULL)`,
	`CREATE TABLE IF NOT EXISTS transfers (request TEXT PRIMARY KEY, txid BIGINT NOT NULL, sender TEXT NOT NULL, receiver TEXT NOT NULL, amount BIGINT NOT NULL)`,
}

// account is a row of the view.
type account struct {
	Name    string
	Balance int64
	Active  bool
}

// store is the view's database.
type store struct {
	db      *sql.DB
	dialect sqlview.Dialect
}

// openStore opens PostgreSQL if location is its URL, and a SQLite file
// otherwise.
func openStore(ctx context.Context, location string) (*store, error) {
	s := &store{dialect: sqlview.SQLite}
	driver, dsn := "sqlite", "file:"+location+"?_pragma=busy_timeout(10000)&_pragma=journal_mode(wal)&_pragma=synchronous(normal)"
	if strings.HasPrefix(location, "postgres://") || strings.HasPrefix(location, "host=") {
		s.dialect, driver, dsn = sqlview.PostgreSQL, "pgx", location
	}
	var err error
	if s.db, err = sql.Open(driver, dsn); err != nil {
		return nil, err
	}
	if err := s.create(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("database %s: %w", location, err), s.db.Close())
	}
	return s, nil
}

// create creates the tables. It retries, because both databases may refuse if
// another instance does the same at that moment.
func (s *store) create(ctx context.Context) (err error) {
	for range 20 {
		err = nil
		for _, table := range schema {
			_, failed := s.db.ExecContext(ctx, table)
			err = errors.Join(err, failed)
		}
		if err == nil {
			return nil
		}
		select {
		case <-time.After(retryDelay):
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		}
	}
	return err
}

// apply applies one transaction to the view.
func (s *store) apply(ctx context.Context, db *sql.Tx, tx *client.Transaction) error {
	switch tx.Kind {
	case kindOpen:
		var e opened
		return errors.Join(json.Unmarshal(tx.Payload, &e),
			s.exec(ctx, db, `INSERT INTO accounts (name, balance, active) VALUES (?, ?, ?)`, e.Account, e.Balance, true))
	case kindTransfer:
		var e transferred
		return errors.Join(json.Unmarshal(tx.Payload, &e),
			s.exec(ctx, db, `INSERT INTO transfers (request, txid, sender, receiver, amount) VALUES (?, ?, ?, ?, ?)`, e.Request, int64(tx.Txid), e.From, e.To, e.Amount),
			s.exec(ctx, db, `UPDATE accounts SET balance = balance - ? WHERE name = ?`, e.Amount, e.From),
			s.exec(ctx, db, `UPDATE accounts SET balance = balance + ? WHERE name = ?`, e.Amount, e.To))
	case kindClose:
		var e closed
		return errors.Join(json.Unmarshal(tx.Payload, &e),
			s.exec(ctx, db, `UPDATE accounts SET active = ? WHERE name = ?`, false, e.Account))
	}
	return fmt.Errorf("kind %q is not the bank's", tx.Kind)
}

// exec executes a statement that must change exactly one row.
func (s *store) exec(ctx context.Context, db *sql.Tx, statement string, args ...any) error {
	r, err := db.ExecContext(ctx, s.dialect.Statement(statement), args...)
	if err != nil {
		return err
	}
	if n, err := r.RowsAffected(); err != nil || n != 1 {
		return errors.Join(err, fmt.Errorf("%d rows changed by %s %v", n, statement, args))
	}
	return nil
}

// empty deletes all rows, for a rebuild.
func (s *store) empty(ctx context.Context, db *sql.Tx) error {
	for _, table := range []string{"accounts", "transfers"} {
		if _, err := db.ExecContext(ctx, `DELETE FROM `+table); err != nil {
			return err
		}
	}
	return nil
}

// account returns one account. It is not Active if it does not exist.
func (s *store) account(ctx context.Context, db *sql.Tx, name string) (a account, err error) {
	err = db.QueryRowContext(ctx, s.dialect.Statement(`SELECT name, balance, active FROM accounts WHERE name = ?`), name).
		Scan(&a.Name, &a.Balance, &a.Active)
	if errors.Is(err, sql.ErrNoRows) {
		return account{}, nil
	}
	return a, err
}

// done reports whether a request's transfer was made.
func (s *store) done(ctx context.Context, db *sql.Tx, request string) (bool, error) {
	var n int
	err := db.QueryRowContext(ctx, s.dialect.Statement(`SELECT COUNT(*) FROM transfers WHERE request = ?`), request).Scan(&n)
	return n > 0, err
}

// accounts returns all accounts, by name.
func (s *store) accounts(ctx context.Context) (all []account, err error) {
	rows, err := s.db.QueryContext(ctx, `SELECT name, balance, active FROM accounts ORDER BY name`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var a account
		if err := rows.Scan(&a.Name, &a.Balance, &a.Active); err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	return all, rows.Err()
}
