package sqlview_test

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/client/sqlview"
)

// A stock of things, and orders that never take more than there is. The program
// also imports a driver of SQLite, here modernc.org/sqlite.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "stock")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	nc, err := nats.Connect(url, nats.MaxReconnects(-1))
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	c, err := client.New(nc, client.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
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
