package sqlview_test

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"os"
	"path/filepath"

	_ "modernc.org/sqlite"

	"github.com/cantuslog/cantus/cantustest"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/client/sqlview"
)

// A stock of things, and orders that never take more than there is.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "stock")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := cantustest.Open(ctx, cantustest.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	c, err := l.Client(client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "stock.db")+"?_pragma=busy_timeout(10000)&_pragma=journal_mode(wal)")
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(`CREATE TABLE stock (hats INTEGER); INSERT INTO stock VALUES (3)`); err != nil {
		log.Fatal(err)
	}

	view, err := sqlview.Open(ctx, c, db, sqlview.SQLite, func(ctx context.Context, db *sql.Tx, tx *client.Transaction) error {
		_, err := db.ExecContext(ctx, `UPDATE stock SET hats = hats - 2`)
		return err
	}, sqlview.Options{})
	if err != nil {
		log.Fatal(err)
	}
	running, stop := context.WithCancel(ctx)
	stopped := make(chan error)
	go func() { stopped <- view.Run(running) }()

	transactor, err := client.NewTransactor(c, view, client.TransactorOptions{WaitApplied: true})
	if err != nil {
		log.Fatal(err)
	}
	for range 2 {
		r, err := transactor.Transact(ctx, 0, func(req *client.Request) error {
			return view.Read(ctx, req, func(db *sql.Tx) error {
				var hats int
				if err := db.QueryRowContext(ctx, `SELECT hats FROM stock`).Scan(&hats); err != nil {
					return err
				}
				if hats < 2 {
					return fmt.Errorf("%d hats are left", hats)
				}
				req.WriteLock("stock.hats")
				req.Set("order", nil)
				return nil
			})
		})
		fmt.Println(r.Txid, err)
	}
	stop()
	<-stopped
	// Output:
	// 1 <nil>
	// 0 1 hats are left
}
