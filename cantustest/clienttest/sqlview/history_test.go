package sqlview_test

import (
	"errors"
	"testing"

	"github.com/cantuslog/cantus/cantustest"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/client/sqlview"
	"github.com/cantuslog/cantus/internal/testkit"
)

// A database that has more than the backup from which the cluster was restored
// is not brought forward by another history, while the view runs and when it is
// opened again. One that has no more goes on.
func TestAViewOfARestoredCluster(t *testing.T) {
	onEach(t, func(t *testing.T, d database) {
		l := cantustest.New(t, cantustest.Options{})
		v, db := openView(t, l, d, insert, sqlview.Options{})
		stop := run(t, v)
		fill(t, l, 0, 10)
		wait(t, v, 0, 10)
		atBackup := d.copy(t)
		b, err := l.Backup(soon(t))
		if err != nil {
			t.Fatal(err)
		}
		fill(t, l, 0, 5)
		wait(t, v, 0, 15)
		testkit.Until(t, "the mark names the cluster", func() bool { return clusterOf(t, db.QueryRow) != "" })
		if err := l.Restore(soon(t), b); err != nil {
			t.Fatal(err)
		}
		fill(t, l, 0, 20) // past the mark of the database
		var other *client.HistoryError
		testkit.Until(t, "the view has stopped", func() bool { return errors.As(v.Progress(0).Err, &other) })
		if other.After != 15 || other.Common != 10 {
			t.Errorf("%+v", other)
		}
		stop()
		_, err = sqlview.Open(soon(t), l.NewClient(t, client.Options{}), db, d.dialect, insert, sqlview.Options{})
		if !errors.As(err, &other) || other.After != 15 || other.Common != 10 {
			t.Errorf("opened again: %v", err)
		}
		v, db = openView(t, l, d.at(atBackup), insert, sqlview.Options{})
		run(t, v)
		wait(t, v, 0, 30)
		checkJournal(t, l, db, 0)
	})
}

// scanner is QueryRow of a database.
type scanner interface{ Scan(dest ...any) error }

// clusterOf returns the cluster that the mark of partition 0 is from.
func clusterOf[R scanner](t *testing.T, query func(query string, args ...any) R) (id string) {
	t.Helper()
	if err := query(`SELECT cluster FROM cantus_marks WHERE partition = 0`).Scan(&id); err != nil {
		t.Fatal(err)
	}
	return id
}

// A table of a version that did not know the cluster gets the column.
func TestAnOlderTableGetsTheCluster(t *testing.T) {
	onEach(t, func(t *testing.T, d database) {
		l := cantustest.New(t, cantustest.Options{})
		db := d.open(t)
		for _, s := range []string{
			`CREATE TABLE cantus_marks (view TEXT NOT NULL, partition BIGINT NOT NULL, txid BIGINT NOT NULL, stamp TEXT NOT NULL, PRIMARY KEY (view, partition))`,
			`INSERT INTO cantus_marks VALUES ('main', 0, 3, '')`,
		} {
			if _, err := db.ExecContext(soon(t), s); err != nil {
				t.Fatal(err)
			}
		}
		fill(t, l, 0, 5)
		for range 2 {
			v, db := openView(t, l, d, insert, sqlview.Options{})
			if at := v.Applied(0); at < 3 {
				t.Errorf("it goes on from %d", at)
			}
			stop := run(t, v)
			wait(t, v, 0, 5)
			fill(t, l, 0, 1)
			stop()
			if _, err := db.ExecContext(soon(t), `SELECT cluster FROM cantus_marks`); err != nil {
				t.Error(err)
			}
		}
	})
}
