package sqlview_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	_ "modernc.org/sqlite"

	"github.com/cantuslog/cantus/cantustest"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/client/sqlview"
	"github.com/cantuslog/cantus/internal/testkit"
)

// atEnd is called when all tests are over.
var atEnd = func() error { return nil }

// tests runs all tests, and then atEnd.
type tests struct{ m *testing.M }

func (t tests) Run() int {
	code := t.m.Run()
	if err := atEnd(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func TestMain(m *testing.M) {
	testkit.Main(tests{m})
}

// soon returns a context that ends a test that would hang.
var soon = testkit.Soon

// database is an empty database.
type database struct {
	dialect sqlview.Dialect
	driver  string
	dsn     string
	// copy returns the connection string of a copy of it.
	copy func(t *testing.T) string
}

// databases has a constructor for each kind of database that this build tests.
var databases = map[string]func(t *testing.T) database{"sqlite": newSQLite}

func newSQLite(t *testing.T) database {
	dir := t.TempDir()
	name := func(file string) string {
		return "file:" + filepath.Join(dir, file) + "?_pragma=busy_timeout(10000)&_pragma=journal_mode(wal)&_pragma=synchronous(normal)"
	}
	d := database{dialect: sqlview.SQLite, driver: "sqlite", dsn: name("view.db")}
	d.copy = func(t *testing.T) string {
		db := d.open(t)
		if _, err := db.ExecContext(soon(t), "VACUUM INTO ?", filepath.Join(dir, "copy.db")); err != nil {
			t.Fatal(err)
		}
		return name("copy.db")
	}
	return d
}

// onEach runs a test on each kind of database.
func onEach(t *testing.T, test func(t *testing.T, d database)) {
	for name, make := range databases {
		t.Run(name, func(t *testing.T) { test(t, make(t)) })
	}
}

// open returns separate connections, as another process would have them.
func (d database) open(t testing.TB) *sql.DB {
	t.Helper()
	db, err := sql.Open(d.driver, d.dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// at returns the database at another connection string.
func (d database) at(dsn string) database { d.dsn = dsn; return d }

// The view of these tests stores the payloads in the order in which they are
// applied, so that it shows if any is applied twice, left out or out of order.
// Its statement is the same in all dialects.
const journal = `CREATE TABLE IF NOT EXISTS journal (partition BIGINT, txid BIGINT, payload TEXT)`

func insert(ctx context.Context, db *sql.Tx, tx *client.Transaction) error {
	payload := strings.ReplaceAll(string(tx.Payload), "'", "''")
	_, err := db.ExecContext(ctx, fmt.Sprintf(`INSERT INTO journal VALUES (%d, %d, '%s')`, tx.Partition, tx.Txid, payload))
	return err
}

var errPoison = errors.New("poison")

// picky is insert, except that it fails for payloads that begin with "poison".
func picky(ctx context.Context, db *sql.Tx, tx *client.Transaction) error {
	if err := insert(ctx, db, tx); err != nil {
		return err
	}
	if strings.HasPrefix(string(tx.Payload), "poison") {
		return fmt.Errorf("%w: \x00\xff", errPoison)
	}
	return nil
}

func prepare(t testing.TB, db *sql.DB) {
	t.Helper()
	if _, err := db.ExecContext(soon(t), journal); err != nil {
		t.Fatal(err)
	}
}

// openView opens a view with connections and a client of its own. It does not
// run it.
func openView(t testing.TB, l *cantustest.Log, d database, apply sqlview.Apply, opts sqlview.Options) (*sqlview.View, *sql.DB) {
	t.Helper()
	db := d.open(t)
	prepare(t, db)
	v, err := sqlview.Open(soon(t), l.NewClient(t, client.Options{}), db, d.dialect, apply, opts)
	if err != nil {
		t.Fatal(err)
	}
	return v, db
}

// run runs a view until the test ends, or stop is called.
func run(t testing.TB, v *sqlview.View) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = v.Run(ctx) // tests that expect an error use Progress
	}()
	stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	for p := range 2 { // while Progress has the end of an earlier run
		testkit.Until(t, "it runs again", func() bool { return !errors.Is(v.Progress(p).Err, context.Canceled) })
	}
	return stop
}

func wait(t testing.TB, v *sqlview.View, partition int, txid uint64) {
	t.Helper()
	if err := v.Wait(soon(t), partition, txid); err != nil {
		t.Fatalf("wait for txid %d: %v; %+v", txid, err, v.Progress(partition))
	}
}

// fill appends payloads "0" to "n-1".
func fill(t testing.TB, l *cantustest.Log, partition, n int) {
	t.Helper()
	c := l.NewClient(t, client.Options{})
	futures := make([]*client.Future, n)
	for i := range futures {
		var err error
		if futures[i], err = c.AppendAsync(soon(t), &client.Request{Partition: partition, Payload: fmt.Append(nil, i)}); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range futures {
		if _, err := f.Wait(soon(t)); err != nil {
			t.Fatal(err)
		}
	}
}

// checkJournal checks that the database contains exactly what the log contains,
// except the txids left out.
func checkJournal(t testing.TB, l *cantustest.Log, db *sql.DB, partition int, without ...uint64) {
	t.Helper()
	want, err := l.Transactions(soon(t), partition)
	if err != nil {
		t.Fatal(err)
	}
	want = slices.DeleteFunc(want, func(tx *client.Transaction) bool { return slices.Contains(without, tx.Txid) })
	rows, err := db.QueryContext(soon(t), fmt.Sprintf(`SELECT txid, payload FROM journal WHERE partition = %d ORDER BY txid`, partition))
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	n := 0
	for ; rows.Next(); n++ {
		var txid uint64
		var payload string
		if err := rows.Scan(&txid, &payload); err != nil {
			t.Fatal(err)
		}
		if n >= len(want) || want[n].Txid != txid || string(want[n].Payload) != payload {
			t.Fatalf("row %d is txid %d, %q: applied twice, or what is not in the log", n, txid, payload)
		}
	}
	if err := rows.Err(); err != nil || n != len(want) {
		t.Fatalf("%d rows, want %d; %v", n, len(want), err)
	}
}
