//go:build postgres

package sqlview_test

import (
	"context"
	"database/sql"
	"sync"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/cantuslog/cantus/cantustest"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/client/sqlview"
	"github.com/cantuslog/cantus/internal/postgres"
)

func init() {
	server := sync.OnceValues(func() (*postgres.Server, error) { return postgres.Open(context.Background()) })
	databases["postgresql"] = func(t *testing.T) database {
		s, err := server()
		if err != nil {
			t.Fatal(err)
		}
		d := database{dialect: sqlview.PostgreSQL, driver: "pgx", dsn: s.Database(t)}
		d.copy = func(t *testing.T) string { return s.Copy(t, d.dsn) }
		return d
	}
	atEnd = func() error {
		s, err := server()
		if err != nil {
			return err
		}
		return s.Close()
	}
}

// The server is killed while a view catches up: OnError is not called, and each
// transaction is applied once.
func TestServerThatFallsIsWaitedFor(t *testing.T) {
	s := postgres.Start(t)
	d := database{dialect: sqlview.PostgreSQL, driver: "pgx", dsn: s.Database(t)}
	l := cantustest.New(t, cantustest.Options{})
	const count = 600
	fill(t, l, 0, count)
	reached := make(chan uint64, count*10)
	v, db := openView(t, l, d, func(ctx context.Context, in *sql.Tx, tx *client.Transaction) error {
		reached <- tx.Txid
		return insert(ctx, in, tx)
	}, sqlview.Options{Follow: client.FollowOptions{
		MaxBatch: 1, MinBackoff: time.Millisecond, MaxBackoff: 20 * time.Millisecond,
		OnError: func(_ *client.Transaction, err error, _ int) client.Decision {
			t.Errorf("asked about %v", err)
			return client.DecideSkip
		},
	}})
	run(t, v)
	for i := uint64(1); i <= 3; i++ {
		for at, ctx := uint64(0), soon(t); at < i*count/4; {
			select {
			case at = <-reached:
			case <-ctx.Done():
				t.Fatalf("the view stands still at %d", at)
			}
		}
		s.Kill()
		if err := s.Start(soon(t)); err != nil {
			t.Fatal(err)
		}
	}
	wait(t, v, 0, count)
	checkJournal(t, l, db, 0)
}
