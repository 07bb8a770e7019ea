//go:build postgres

package sqlview_test

import (
	"context"
	"sync"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"

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
			return nil // a test has said so
		}
		return s.Close()
	}
}
