package sqlview_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cantuslog/cantus/cantustest"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/client/sqlview"
)

func TestViewHoldsWhatTheLogHolds(t *testing.T) {
	onEach(t, func(t *testing.T, d database) {
		l := cantustest.New(t, cantustest.Options{Partitions: 2})
		fill(t, l, 0, 700)
		v, _ := openView(t, l, d, insert, sqlview.Options{})
		stop := run(t, v)
		fill(t, l, 1, 50)
		wait(t, v, 0, 700)
		wait(t, v, 1, 50)
		stop()
		fill(t, l, 0, 10) // while no view runs
		stop = run(t, v)
		wait(t, v, 0, 710)
		stop()
		fill(t, l, 0, 10)
		v, db := openView(t, l, d, insert, sqlview.Options{}) // as after a restart
		if v.Applied(0) != 710 {
			t.Errorf("it goes on from %d", v.Applied(0))
		}
		run(t, v)
		wait(t, v, 0, 720)
		for p := range 2 {
			checkJournal(t, l, db, p)
		}
		if g := v.Progress(0); g.Lag() != 0 || g.Err != nil {
			t.Errorf("%+v", g)
		}
	})
}

// Instances with connections of their own come and go while the log grows.
func TestInstancesShareADatabase(t *testing.T) {
	onEach(t, func(t *testing.T, d database) {
		l := cantustest.New(t, cantustest.Options{Partitions: 2})
		const instances, rounds, count = 3, 4, 150
		_, db := openView(t, l, d, insert, sqlview.Options{})
		for round := range rounds {
			var wg sync.WaitGroup
			stops := make([]func(), instances)
			views := make([]*sqlview.View, instances)
			for i := range instances {
				wg.Go(func() {
					views[i], _ = openView(t, l, d, insert, sqlview.Options{Follow: client.FollowOptions{MaxBatch: 1 + 7*i}})
					stops[i] = run(t, views[i])
				})
			}
			for p := range 2 {
				fill(t, l, p, count)
			}
			wg.Wait()
			for i := range instances - 1 { // at any point
				for p := range 2 {
					wait(t, views[i], p, uint64((round+1)*count))
				}
			}
			for _, stop := range stops {
				stop()
			}
			for p := range 2 {
				checkJournal(t, l, db, p)
			}
		}
	})
}

// Commits fail at random: before anything is done, after it is done, and in
// between, as they do when a connection breaks.
func TestFailedTransactionsAreAppliedOnce(t *testing.T) {
	onEach(t, func(t *testing.T, d database) {
		l := cantustest.New(t, cantustest.Options{})
		const count = 200
		fill(t, l, 0, count)
		calls := 0
		v, db := openView(t, l, d, func(ctx context.Context, in *sql.Tx, tx *client.Transaction) error {
			if err := insert(ctx, in, tx); err != nil {
				return err
			}
			calls++
			switch {
			case calls%13 == 0:
				return in.Commit() // applied in part, with the mark moved: a mistake of Apply
			case calls%7 == 0:
				return in.Rollback()
			case calls%5 == 0:
				return errors.New("not now")
			}
			return nil
		}, sqlview.Options{Follow: client.FollowOptions{
			MaxBatch: 1, MinBackoff: time.Millisecond, MaxBackoff: time.Millisecond,
			OnError: func(*client.Transaction, error, int) client.Decision { return client.DecideRetry },
		}})
		run(t, v)
		wait(t, v, 0, count)
		checkJournal(t, l, db, 0)
	})
}

// stateError and codeError are errors of the form that drivers return.
type stateError string

func (e stateError) Error() string    { return "SQLSTATE " + string(e) }
func (e stateError) SQLState() string { return string(e) }

type codeError int

func (e codeError) Error() string { return fmt.Sprint("code ", int(e)) }
func (e codeError) Code() int     { return int(e) }

// Errors due to the state of the database, and not to the transaction, are
// retried without a call of OnError.
func TestDatabaseErrorsAreRetried(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	fill(t, l, 0, 10)
	trouble := []error{
		stateError("40001"), stateError("40P01"), stateError("57P01"), stateError("08006"), stateError("53300"),
		codeError(5), codeError(6), codeError(517), driver.ErrBadConn, io.ErrUnexpectedEOF, &net.OpError{Op: "read", Err: errors.New("gone")},
	}
	met := 0
	v, db := openView(t, l, newSQLite(t), func(ctx context.Context, in *sql.Tx, tx *client.Transaction) error {
		if tx.Txid == 5 && met < len(trouble) {
			met++
			return fmt.Errorf("apply: %w", trouble[met-1])
		}
		return insert(ctx, in, tx)
	}, sqlview.Options{Follow: client.FollowOptions{
		MinBackoff: time.Millisecond, MaxBackoff: time.Millisecond,
		OnError: func(_ *client.Transaction, err error, _ int) client.Decision {
			t.Errorf("asked about %v", err)
			return client.DecideSkip
		},
	}})
	run(t, v)
	wait(t, v, 0, 10)
	if met != len(trouble) {
		t.Errorf("%d of %d troubles were met", met, len(trouble))
	}
	checkJournal(t, l, db, 0)
}

// The database reports that these errors are due to the transaction.
func TestConstraintErrorsAreDecidedByOnError(t *testing.T) {
	onEach(t, func(t *testing.T, d database) {
		l := cantustest.New(t, cantustest.Options{})
		fill(t, l, 0, 10)
		db := d.open(t)
		if _, err := db.ExecContext(soon(t), `CREATE TABLE fussy (txid BIGINT CHECK (txid <> 5))`); err != nil {
			t.Fatal(err)
		}
		asked := 0
		v, db := openView(t, l, d, func(ctx context.Context, in *sql.Tx, tx *client.Transaction) error {
			if _, err := in.ExecContext(ctx, fmt.Sprintf(`INSERT INTO fussy VALUES (%d)`, tx.Txid)); err != nil {
				return err
			}
			return insert(ctx, in, tx)
		}, sqlview.Options{Follow: client.FollowOptions{
			OnError: func(tx *client.Transaction, _ error, _ int) client.Decision {
				if asked++; tx.Txid != 5 {
					t.Errorf("asked about %d", tx.Txid)
				}
				return client.DecideSkip
			},
		}})
		run(t, v)
		wait(t, v, 0, 10)
		if asked != 1 {
			t.Errorf("asked %d times", asked)
		}
		checkJournal(t, l, db, 0, 5)
	})
}

func TestPoisonStopsOnlyItsPartition(t *testing.T) {
	onEach(t, func(t *testing.T, d database) {
		l := cantustest.New(t, cantustest.Options{Partitions: 2})
		c := l.NewClient(t, client.Options{})
		for _, payload := range []string{"a", "poison", "b"} {
			if _, err := c.Append(soon(t), &client.Request{Payload: []byte(payload)}); err != nil {
				t.Fatal(err)
			}
		}
		v, db := openView(t, l, d, picky, sqlview.Options{}) // without OnError it stops, as in package client
		run(t, v)
		fill(t, l, 1, 100)
		wait(t, v, 1, 100)
		if err := v.Wait(soon(t), 0, 3); !errors.Is(err, errPoison) {
			t.Fatalf("partition 0: %v", err)
		}
		if g := v.Progress(0); g.Applied != 1 || !errors.Is(g.Err, errPoison) {
			t.Errorf("%+v", g)
		}
		checkJournal(t, l, db, 0, 2, 3)
		checkJournal(t, l, db, 1)
	})
}

// Retried first, then parked by decision, and resolved later.
func TestPoisonIsParked(t *testing.T) {
	onEach(t, func(t *testing.T, d database) {
		l := cantustest.New(t, cantustest.Options{})
		c := l.NewClient(t, client.Options{})
		for i := range 30 {
			payload := fmt.Sprint(i)
			if i == 10 || i == 20 || i == 21 {
				payload = fmt.Sprint("poison ", i)
			}
			if _, err := c.Append(soon(t), &client.Request{Payload: []byte(payload), WriteLocks: []string{fmt.Sprint(i)}, ID: fmt.Sprint("id", i)}); err != nil {
				t.Fatal(err)
			}
		}
		var asked []string
		v, db := openView(t, l, d, picky, sqlview.Options{Follow: client.FollowOptions{
			MinBackoff: time.Millisecond,
			OnError: func(tx *client.Transaction, err error, attempt int) client.Decision {
				if !errors.Is(err, errPoison) {
					t.Errorf("asked about %v", err)
				}
				asked = append(asked, fmt.Sprint(tx.Txid, ":", attempt))
				if attempt < 3 {
					return client.DecideRetry
				}
				return client.DecideSkip
			},
		}})
		stop := run(t, v)
		wait(t, v, 0, 30)
		stop()
		if got := fmt.Sprint(asked); got != "[11:1 11:2 11:3 21:1 21:2 21:3 22:1 22:2 22:3]" {
			t.Errorf("asked %s", got)
		}
		checkJournal(t, l, db, 0, 11, 21, 22)
		parked, err := v.Parked(soon(t))
		if err != nil || len(parked) != 3 {
			t.Fatalf("parked %v, %v", parked, err)
		}
		if p := parked[0]; p.Transaction.Txid != 11 || string(p.Transaction.Payload) != "poison 10" || p.Transaction.ID != "id10" ||
			p.Transaction.WriteLocks[0] != "10" || p.Err != "poison: \x00\xff" || p.Since.IsZero() {
			t.Errorf("parked %+v: %+v", p, p.Transaction)
		}
		if err := v.Resolve(soon(t), 0, 11, picky); !errors.Is(err, errPoison) {
			t.Fatalf("resolved by a function that fails: %v", err)
		}
		if err := v.Resolve(soon(t), 0, 11, insert); err != nil {
			t.Fatal(err)
		}
		if err := v.Resolve(soon(t), 0, 21, nil); err != nil {
			t.Fatal(err)
		}
		if err := v.Resolve(soon(t), 0, 11, insert); !errors.Is(err, sqlview.ErrNotParked) {
			t.Fatalf("resolved twice: %v", err)
		}
		if parked, err = v.Parked(soon(t)); err != nil || len(parked) != 1 || parked[0].Transaction.Txid != 22 {
			t.Fatalf("parked %v, %v", parked, err)
		}
		checkJournal(t, l, db, 0, 21, 22)
	})
}

func TestViewIsRebuilt(t *testing.T) {
	onEach(t, func(t *testing.T, d database) {
		l := cantustest.New(t, cantustest.Options{})
		const half = 300
		fill(t, l, 0, half)
		v, db := openView(t, l, d, insert, sqlview.Options{PollInterval: time.Millisecond})
		stop := run(t, v)
		wait(t, v, 0, half)
		snapshot := d.at(d.copy(t)) // while it runs

		// A copy of the database continues by itself.
		fill(t, l, 0, half)
		wait(t, v, 0, 2*half)
		restored, copied := openView(t, l, snapshot, insert, sqlview.Options{})
		if restored.Applied(0) != half {
			t.Fatalf("the copy is at %d", restored.Applied(0))
		}
		run(t, restored)
		wait(t, restored, 0, 2*half)
		checkJournal(t, l, copied, 0)

		// From the log's start, while one instance runs, and by another that
		// does not run.
		other, _ := openView(t, l, d, insert, sqlview.Options{})
		var emptied int64 // rows
		empty := func(ctx context.Context, in *sql.Tx) error {
			r, err := in.ExecContext(ctx, `DELETE FROM journal`)
			if err == nil {
				emptied, err = r.RowsAffected()
			}
			return err
		}
		if err := other.Reset(soon(t), nil, empty); err != nil {
			t.Fatal(err)
		}
		if emptied != 2*half { // the other instance may have started to apply again by now
			t.Fatalf("%d rows deleted, want %d", emptied, 2*half)
		}
		run(t, other)
		wait(t, other, 0, 2*half)
		checkJournal(t, l, db, 0)
		stop()

		// By the instance itself, to a position in the middle, without anything
		// new in the log.
		run(t, v)
		err := v.Reset(soon(t), map[int]uint64{0: half}, func(ctx context.Context, in *sql.Tx) error {
			_, err := in.ExecContext(ctx, fmt.Sprintf(`DELETE FROM journal WHERE txid > %d`, half))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		wait(t, v, 0, 2*half)
		checkJournal(t, l, db, 0)

		// If load fails, nothing has changed.
		broken := errors.New("broken")
		err = v.Reset(soon(t), nil, func(ctx context.Context, in *sql.Tx) error { return errors.Join(empty(ctx, in), broken) })
		if !errors.Is(err, broken) {
			t.Fatal(err)
		}
		checkJournal(t, l, db, 0)
	})
}

// One instance runs, and another process resets the view. The instance notices
// although the log does not grow.
func TestResetByOthersIsNoticed(t *testing.T) {
	onEach(t, func(t *testing.T, d database) {
		l := cantustest.New(t, cantustest.Options{})
		fill(t, l, 0, 100)
		applied := make(chan uint64, 1000)
		v, db := openView(t, l, d, func(ctx context.Context, in *sql.Tx, tx *client.Transaction) error {
			applied <- tx.Txid
			return insert(ctx, in, tx)
		}, sqlview.Options{PollInterval: 5 * time.Millisecond})
		run(t, v)
		wait(t, v, 0, 100)
		for len(applied) > 0 {
			<-applied
		}
		other, _ := openView(t, l, d, insert, sqlview.Options{})
		if err := other.Reset(soon(t), nil, func(ctx context.Context, in *sql.Tx) error {
			_, err := in.ExecContext(ctx, `DELETE FROM journal`)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if first := <-applied; first != 1 {
			t.Fatalf("it went on with %d", first)
		}
		wait(t, v, 0, 100)
		checkJournal(t, l, db, 0)
	})
}

func TestFilteredViewIsNotTakenForReset(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	c := l.NewClient(t, client.Options{})
	applied := 0
	v, _ := openView(t, l, newSQLite(t), func(context.Context, *sql.Tx, *client.Transaction) error {
		applied++
		return nil
	}, sqlview.Options{PollInterval: time.Millisecond, Follow: client.FollowOptions{Kinds: []string{"pay"}}})
	stop := run(t, v)
	for i := range 60 {
		kind := "noise"
		if i%20 == 0 {
			kind = "pay"
		}
		if _, err := c.Append(soon(t), &client.Request{Kind: kind}); err != nil {
			t.Fatal(err)
		}
	}
	wait(t, v, 0, 60)
	for range 5 { // reads of the marks
		before := l.Seen(cantustest.Read)
		if _, err := c.Append(soon(t), &client.Request{Kind: "noise"}); err != nil {
			t.Fatal(err)
		}
		wait(t, v, 0, v.Progress(0).HighWaterMark)
		if after := l.Seen(cantustest.Read); after > before+2 {
			t.Errorf("%d reads for one transaction of the feed", after-before)
		}
	}
	stop()
	if applied != 3 {
		t.Errorf("applied %d", applied)
	}
}

func TestAnotherLogIsRefused(t *testing.T) {
	onEach(t, func(t *testing.T, d database) {
		l := cantustest.New(t, cantustest.Options{})
		fill(t, l, 0, 10)
		v, db := openView(t, l, d, insert, sqlview.Options{})
		stop := run(t, v)
		wait(t, v, 0, 10)
		stop()
		other := cantustest.New(t, cantustest.Options{})
		open := func() error {
			_, err := sqlview.Open(soon(t), other.NewClient(t, client.Options{}), db, d.dialect, insert, sqlview.Options{})
			return err
		}
		fill(t, other, 0, 9)
		if err := open(); !errors.Is(err, client.ErrAhead) {
			t.Fatalf("a shorter log: %v", err)
		}
		fill(t, other, 0, 1)
		if err := open(); !errors.Is(err, sqlview.ErrOtherLog) {
			t.Fatalf("another log: %v", err)
		}
	})
}

func TestViewsOfOtherNamesAreApart(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{Partitions: 2})
	fill(t, l, 0, 10)
	d := newSQLite(t)
	nothing := func(context.Context, *sql.Tx, *client.Transaction) error { return nil }
	a, db := openView(t, l, d, insert, sqlview.Options{Name: "a", Partitions: []int{0}})
	b, _ := openView(t, l, d, nothing, sqlview.Options{Name: "b"})
	run(t, a)
	wait(t, a, 0, 10)
	if b.Applied(0) != 0 {
		t.Errorf("b is at %d", b.Applied(0))
	}
	run(t, b)
	wait(t, b, 0, 10)
	checkJournal(t, l, db, 0)
	if err := a.Wait(soon(t), 1, 1); !errors.Is(err, client.ErrNotFollowed) {
		t.Error(err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	c, db := l.NewClient(t, client.Options{}), newSQLite(t).open(t)
	for name, open := range map[string]func() (*sqlview.View, error){
		"dialect": func() (*sqlview.View, error) {
			return sqlview.Open(soon(t), c, db, sqlview.Dialect{}, insert, sqlview.Options{})
		},
		"apply": func() (*sqlview.View, error) {
			return sqlview.Open(soon(t), c, db, sqlview.SQLite, nil, sqlview.Options{})
		},
		"check": func() (*sqlview.View, error) {
			return sqlview.Open(soon(t), c, db, sqlview.SQLite, insert, sqlview.Options{PollInterval: -1})
		},
	} {
		if _, err := open(); !errors.Is(err, sqlview.ErrOptions) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// appendTogether appends payloads as an atomic batch.
func appendTogether(t *testing.T, c *client.Client, kinds []string, payloads ...string) client.AtomicReceipt {
	t.Helper()
	b := new(client.AtomicBatch)
	for i, p := range payloads {
		b.Add(kinds[i%len(kinds)], []byte(p))
	}
	r, err := c.AppendAtomic(soon(t), b)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// An atomic batch is in the database as a whole or not at all, and no mark is
// inside, wherever its Apply fails.
func TestAtomicBatchesAreAppliedTogether(t *testing.T) {
	onEach(t, func(t *testing.T, d database) {
		l := cantustest.New(t, cantustest.Options{})
		c := l.NewClient(t, client.Options{})
		appendTogether(t, c, []string{"a"}, "0")
		appendTogether(t, c, []string{"a"}, "1", "2", "poison 3", "4") // 2 to 5
		appendTogether(t, c, []string{"a"}, "5", "6")
		var asked []string
		var v *sqlview.View
		db := d.open(t)
		prepare(t, db)
		count := d.dialect.Statement(`SELECT count(*) FROM journal WHERE partition = 0 AND txid >= 2 AND txid <= 5`)
		v, _ = openView(t, l, d, picky, sqlview.Options{Follow: client.FollowOptions{
			MinBackoff: time.Millisecond, MaxBatch: 1,
			OnError: func(tx *client.Transaction, err error, attempt int) client.Decision {
				asked = append(asked, fmt.Sprint(tx.Txid, ":", attempt))
				var n int
				if e := db.QueryRowContext(soon(t), count).Scan(&n); e != nil || n != 0 {
					t.Errorf("%d of the atomic batch are in the database: %v", n, e)
				}
				if at := v.Applied(0); at != 1 || !errors.Is(err, errPoison) || !strings.Contains(err.Error(), "txid 4") {
					t.Errorf("failed at %d: %v", at, err)
				}
				if attempt < 3 {
					return client.DecideRetry
				}
				return client.DecideSkip
			},
		}})
		stop := run(t, v)
		wait(t, v, 0, 7)
		stop()
		if got := fmt.Sprint(asked); got != "[2:1 2:2 2:3]" {
			t.Errorf("asked %s", got)
		}
		checkJournal(t, l, db, 0, 2, 3, 4, 5)
		parked, err := v.Parked(soon(t))
		if err != nil || len(parked) != 4 {
			t.Fatalf("parked %v, %v", parked, err)
		}
		if err := v.Resolve(soon(t), 0, 4, picky); !errors.Is(err, errPoison) || !strings.Contains(err.Error(), "txid 4") {
			t.Fatalf("resolved by a function that fails: %v", err)
		}
		checkJournal(t, l, db, 0, 2, 3, 4, 5)
		var order []uint64
		if err := v.Resolve(soon(t), 0, 4, func(ctx context.Context, db *sql.Tx, tx *client.Transaction) error {
			order = append(order, tx.Txid)
			return insert(ctx, db, tx)
		}); err != nil || fmt.Sprint(order) != "[2 3 4 5]" {
			t.Fatalf("resolved %v: %v", order, err)
		}
		checkJournal(t, l, db, 0)
		if err := v.Resolve(soon(t), 0, 2, insert); !errors.Is(err, sqlview.ErrNotParked) {
			t.Fatalf("resolved twice: %v", err)
		}
	})
}

// If a filter leaves out the end of an atomic batch, the mark is past that too,
// and is found in the log again.
func TestTheMarkIsPastAFilteredAtomicBatch(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	c := l.NewClient(t, client.Options{})
	appendTogether(t, c, []string{"pay", "noise"}, "1", "2", "3", "4")
	opts := sqlview.Options{Follow: client.FollowOptions{Kinds: []string{"pay"}}}
	d := newSQLite(t)
	v, db := openView(t, l, d, insert, opts)
	stop := run(t, v)
	wait(t, v, 0, 4)
	stop()
	var txid uint64
	if err := db.QueryRowContext(soon(t), `SELECT txid FROM cantus_marks WHERE partition = 0`).Scan(&txid); err != nil || txid != 4 {
		t.Errorf("the mark is %d: %v", txid, err)
	}
	checkJournal(t, l, db, 0, 2, 4)
	again, _ := openView(t, l, d, insert, opts)
	if at := again.Applied(0); at != 4 {
		t.Errorf("opened again at %d", at)
	}
}
