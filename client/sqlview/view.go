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

// Apply applies one transaction to the database. It makes all its changes
// through db, which it must neither commit nor roll back. It may be called
// again for the same transaction if the database transaction failed.
type Apply func(ctx context.Context, db *sql.Tx, tx *client.Transaction) error

// Options configures a View. The zero value applies all transactions of all
// partitions.
type Options struct {
	// Name distinguishes the views in a database. Views of the same name share
	// their marks. Default "main".
	Name string
	// Partitions are the partitions to apply. Default: all partitions of the
	// cluster.
	Partitions []int
	// Follow has filters and other options of following. Its OnError decides
	// about errors of Apply, never about an unavailable database, which is
	// retried until it is back. DecideSkip parks the transaction. nil means
	// DecideStop: the partition stops at the first error of Apply.
	Follow client.FollowOptions
	// PollInterval is how often the marks are read, in case another process
	// resets the view. Default 1 s.
	PollInterval time.Duration
}

// View applies a log to a database. It implements [client.View].
type View struct {
	marks    marks
	apply    Apply
	opts     Options
	follower *client.Follower
	parts    map[int]*part
}

// part is the state of a partition.
type part struct {
	// mu is held while transactions are applied. It guards mark.
	mu   sync.Mutex
	mark uint64 // of the database, as last known

	// Owned by the partition's goroutine.
	failedTxid uint64 // for which Apply failed
	attempts   int    // failures in a row
	parkErr    error  // reason to park it; nil: do not park
}

// openAttempts is how often Open attempts to create its tables.
const openAttempts = 10

// Open creates the tables cantus_marks and cantus_parked and a row for each
// partition, unless they exist. Run then continues from the marks there.
// The caller keeps ownership of db. Errors: [ErrOptions], [ErrOtherLog],
// [client.ErrAhead], and a [*client.HistoryError] if the cluster was restored
// from a backup that ends before the mark: the database has to be set to a
// state that is not later than the error's Common, or emptied.
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
	follow := opts.Follow
	follow.Clusters = map[int]string{}
	for _, p := range opts.Partitions {
		at, err := v.verifiedMark(ctx, c, p)
		if err != nil {
			return nil, err
		}
		v.parts[p] = &part{mark: at.txid}
		after[p], follow.Clusters[p] = at.txid, at.cluster
	}
	follow.OnError = v.onError
	var err error
	v.follower, err = c.NewBatchFollower(after, v.applyAll, follow)
	return v, err
}

// create creates the tables. It retries if other instances do so concurrently.
func (v *View) create(ctx context.Context) (err error) {
	for attempt := range openAttempts {
		if err = v.marks.create(ctx, v.opts.Partitions); err == nil || ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(time.Duration(attempt+1) * 20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return err
}

// verifiedMark returns a partition's mark after comparing it with the log.
func (v *View) verifiedMark(ctx context.Context, c *client.Client, partition int) (mark, error) {
	at, err := v.marks.get(ctx, v.marks.db, partition)
	if err != nil || at.txid == 0 || at.stamp == "" {
		return at, err
	}
	err = c.CheckHistory(ctx, partition, at.txid, at.cluster)
	if _, is := errors.AsType[*client.HistoryError](err); is {
		return at, fmt.Errorf("%w: %w", ErrOtherLog, err)
	}
	if err != nil {
		return at, err
	}
	tx, err := c.Get(ctx, partition, at.txid)
	switch {
	case errors.Is(err, client.ErrTrimmed):
		return at, nil // following reports it if anything is missing
	case err != nil:
		return at, err
	case stamp(tx) != at.stamp:
		return at, fmt.Errorf("partition %d: txid %d has the time %s in the log, and %s in the database: %w",
			partition, at.txid, stamp(tx), at.stamp, ErrOtherLog)
	}
	return at, nil
}

// Run applies the log until ctx ends or all partitions have stopped. It returns
// when nothing is applied any more, with the error of ctx or those of the
// partitions. It must not be called concurrently.
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
// contain.
func (v *View) Applied(partition int) uint64 { return v.follower.Applied(partition) }

// Wait returns nil once the database contains the partition up to txid. It
// returns an error if ctx ends or the partition stops before that.
func (v *View) Wait(ctx context.Context, partition int, txid uint64) error {
	return v.follower.Wait(ctx, partition, txid)
}

// Progress returns how far a partition is, and its current error.
func (v *View) Progress(partition int) client.Progress { return v.follower.Progress(partition) }

// Reset sets the view to another state, whether it runs or not. load sets the
// application's tables to their state at the marks in at, and what is parked is
// dropped, all in one database transaction. A partition without a mark starts
// at 0: with a nil at and a load that empties its tables, the view is rebuilt
// from the start of the log. After restoring a copy of the whole database, do
// not call Reset: the copy contains its marks.
func (v *View) Reset(ctx context.Context, at client.Positions, load func(ctx context.Context, db *sql.Tx) error) error {
	for p := range at {
		if _, ok := v.parts[p]; !ok {
			return fmt.Errorf("%w: partition %d is not in the view", ErrOptions, p)
		}
	}
	in, err := v.marks.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer in.Rollback() // no effect after a commit
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

// watch reads the marks periodically until ctx ends.
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
			_ = v.checkMark(ctx, p) // an unavailable database is reported where it is written to
		}
	}
}

// checkMark moves the partition's follower if its mark went back: the view was
// reset.
func (v *View) checkMark(ctx context.Context, partition int) error {
	p := v.parts[partition]
	p.mu.Lock()
	defer p.mu.Unlock()
	at, err := v.marks.get(ctx, v.marks.db, partition)
	if err != nil || at.txid >= p.mark {
		return err
	}
	p.mark = at.txid
	return v.follower.MoveIn(partition, at.txid, at.cluster)
}

// Read calls look with a database transaction, and sets req.HighWaterMark to
// the mark in it: what look sees contains the partition at least up to that
// mark, whatever happens to the database meanwhile. A function passed to
// [client.Transactor.Transact] reads the view with it. look must not write.
func (v *View) Read(ctx context.Context, req *client.Request, look func(db *sql.Tx) error) error {
	return v.read(ctx, req.Partition, &req.HighWaterMark, look)
}

// ReadAtomic is Read for an atomic batch, and a function passed to
// [client.Transactor.TransactAtomic].
func (v *View) ReadAtomic(ctx context.Context, b *client.AtomicBatch, look func(db *sql.Tx) error) error {
	return v.read(ctx, b.Partition, &b.HighWaterMark, look)
}

func (v *View) read(ctx context.Context, partition int, mark *uint64, look func(db *sql.Tx) error) error {
	in, err := v.marks.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer in.Rollback() // nothing was written
	at, err := v.marks.get(ctx, in, partition)
	if err != nil {
		return err
	}
	*mark = at.txid
	return look(in)
}
