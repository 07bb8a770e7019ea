package sqlview

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cantuslog/cantus/client"
)

// Apply brings the database forward by one transaction. All that it does, it
// does in db, which it neither commits nor rolls back. It may be called again for the same
// transaction where the database transaction failed.
type Apply func(ctx context.Context, db *sql.Tx, tx *client.Transaction) error

// Options configures a View. The zero value applies all transactions of all
// partitions.
type Options struct {
	// Name tells views that share a database apart; views of one name share
	// their marks. Default "main".
	Name string
	// Partitions are those to apply. Default: all that the cluster has.
	Partitions []int
	// Follow has the filters and the like. Its OnError decides about errors of
	// Apply, never about those of a database that is away, which is tried again
	// until it is back. DecideSkip parks the transaction. nil decides DecideStop
	// every time: the partition stops at the first error of Apply.
	Follow client.FollowOptions
	// PollInterval is how often the marks are looked at, in case another process
	// resets the view. Default 1 s.
	PollInterval time.Duration
}

// View applies a log to a database. It is a client.View.
type View struct {
	marks    marks
	apply    Apply
	opts     Options
	follower *client.Follower
	parts    map[int]*part
}

// part is a partition's state.
type part struct {
	// mu is held while transactions are applied, and guards mark.
	mu   sync.Mutex
	mark uint64 // of the database, as last known

	// owned by the partition's goroutine
	failedTxid uint64 // txid that Apply failed for
	tries      int    // at it, in a row
	parkErr    error  // why it is to be parked; nil: it is not
}

// openTries is how often Open tries to create its tables.
const openTries = 10

// Open prepares the database: the tables cantus_marks and cantus_parked, and a
// row for each partition. Run then goes on from the marks there. db stays the
// caller's. Errors: ErrOptions, ErrOtherLog, client.ErrAhead.
func Open(ctx context.Context, c *client.Client, db *sql.DB, dialect Dialect, apply Apply, opts Options) (*View, error) {
	if opts.Name == "" {
		opts.Name = "main"
	}
	if opts.PollInterval == 0 {
		opts.PollInterval = time.Second
	}
	switch {
	case dialect.name == "":
		return nil, fmt.Errorf("%w: no dialect", ErrOptions)
	case apply == nil:
		return nil, fmt.Errorf("%w: no apply function", ErrOptions)
	case opts.PollInterval < 0:
		return nil, fmt.Errorf("%w: PollInterval is %v", ErrOptions, opts.PollInterval)
	}
	if len(opts.Partitions) == 0 {
		n, err := c.Partitions(ctx)
		if err != nil {
			return nil, err
		}
		for p := range n {
			opts.Partitions = append(opts.Partitions, p)
		}
	}
	v := &View{marks: marks{db, dialect, opts.Name}, apply: apply, opts: opts, parts: map[int]*part{}}
	if err := v.create(ctx); err != nil {
		return nil, err
	}
	after := client.Positions{}
	for _, p := range opts.Partitions {
		mark, err := v.verifiedMark(ctx, c, p)
		if err != nil {
			return nil, err
		}
		v.parts[p] = &part{mark: mark}
		after[p] = mark
	}
	follow := opts.Follow
	follow.OnError = v.onError
	var err error
	v.follower, err = c.NewBatchFollower(after, v.applyAll, follow)
	return v, err
}

// create makes the tables, again and again where others do so at this moment.
func (v *View) create(ctx context.Context) (err error) {
	for try := range openTries {
		if err = v.marks.create(ctx, v.opts.Partitions); err == nil || ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(time.Duration(try+1) * 20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return err
}

// checked returns a partition's mark, having compared it with the log.
func (v *View) verifiedMark(ctx context.Context, c *client.Client, partition int) (uint64, error) {
	mark, stamped, err := v.marks.get(ctx, v.marks.db, partition)
	if err != nil || mark == 0 || stamped == "" {
		return mark, err
	}
	tx, err := c.Get(ctx, partition, mark)
	switch {
	case errors.Is(err, client.ErrTrimmed):
		return mark, nil // following will say so, unless nothing is missing
	case err != nil:
		return 0, err
	case stamp(tx) != stamped:
		return 0, fmt.Errorf("partition %d: txid %d is of %s in the log, and the database applied one of %s: %w",
			partition, mark, stamp(tx), stamped, ErrOtherLog)
	}
	return mark, nil
}

// Run applies the log until ctx ends or all partitions have stopped. It
// returns when nothing is applied any more, with ctx's error or the
// partitions'. It must not run twice at a time.
func (v *View) Run(ctx context.Context) error {
	watching, stop := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		v.watch(watching)
	}()
	defer func() { <-watched }()
	defer stop()
	return v.follower.Run(ctx)
}

// Applied returns the last txid of a partition that the database is known to
// hold.
func (v *View) Applied(partition int) uint64 { return v.follower.Applied(partition) }

// Wait returns nil once the database holds the partition up to txid.
func (v *View) Wait(ctx context.Context, partition int, txid uint64) error {
	return v.follower.Wait(ctx, partition, txid)
}

// Progress tells how far a partition is, and what is wrong with it.
func (v *View) Progress(partition int) client.Progress { return v.follower.Progress(partition) }

// Reset puts the view to another state, while it runs or not: load brings the
// application's tables to what they are at these marks, and what is parked is
// forgotten, all in one database transaction. Partitions without a mark begin
// anew: with nil marks and a load that empties its tables the view is rebuilt
// from the log's start. From a copy of the whole database there is nothing to
// reset: its marks are in it.
func (v *View) Reset(ctx context.Context, at client.Positions, load func(ctx context.Context, db *sql.Tx) error) error {
	for p := range at {
		if _, ok := v.parts[p]; !ok {
			return fmt.Errorf("%w: partition %d is not the view's", ErrOptions, p)
		}
	}
	in, err := v.marks.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer in.Rollback() // does nothing after a commit
	for _, p := range slices.Sorted(slices.Values(v.opts.Partitions)) {
		if err := v.marks.reset(ctx, in, p, at[p]); err != nil {
			return fmt.Errorf("reset: %w", err)
		}
	}
	if _, err := in.ExecContext(ctx, v.marks.dialect.Statement(`DELETE FROM cantus_parked WHERE view = ?`), v.marks.view); err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	if err := load(ctx, in); err != nil {
		return err
	}
	if err := in.Commit(); err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	for _, p := range v.opts.Partitions {
		if err := v.checkMark(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// watch looks at the marks until ctx ends.
func (v *View) watch(ctx context.Context) {
	tick := time.NewTicker(v.opts.PollInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		for _, p := range v.opts.Partitions {
			_ = v.checkMark(ctx, p) // a database that is away shows where it is written to
		}
	}
}

// check moves the partition's follower if its mark went back: it was reset.
func (v *View) checkMark(ctx context.Context, partition int) error {
	p := v.parts[partition]
	p.mu.Lock()
	defer p.mu.Unlock()
	mark, _, err := v.marks.get(ctx, v.marks.db, partition)
	if err != nil || mark >= p.mark {
		return err
	}
	p.mark = mark
	return v.follower.Move(partition, mark)
}

// Read runs look in a database transaction whose mark becomes that of tx: what
// look sees holds the partition up to tx.HighWaterMark at least, whatever is
// done to the database meanwhile. It is how a function given to
// client.Transactor.Transact reads the view. look must not write.
func (v *View) Read(ctx context.Context, tx *client.Tx, look func(db *sql.Tx) error) error {
	in, err := v.marks.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer in.Rollback() // nothing was written
	if tx.HighWaterMark, _, err = v.marks.get(ctx, in, tx.Partition); err != nil {
		return err
	}
	return look(in)
}
