package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// Archive has what was trimmed off the cluster's logs, such as a backup. Its
// methods are called concurrently.
type Archive interface {
	// Batches returns some batches of a partition as they were in the log, in
	// order, of which the first has the transaction from. They must be of the
	// log whose chain of batches has the digest of base after base.Txid, which
	// is not before from. If ctx ends first, what was asked for should be there
	// soon after. The error wraps [ErrNotArchived] if the archive does
	// not have them, and is another one if it can't be read at the moment.
	Batches(ctx context.Context, partition int, from uint64, base wal.Base) ([]wal.Batch, error)
	// Find returns the first transaction of the same log, from txid from to
	// base.Txid, at or after a time in Unix nanoseconds, and 0 if there is
	// none. The errors are those of Batches.
	Find(ctx context.Context, partition int, at int64, from uint64, base wal.Base) (txid uint64, err error)
	// Check verifies what the archive has of the log, which is from one of
	// clusters. It returns the oldest transaction from which on the archive has
	// everything up to base.Txid, and 0 if it has nothing that leads there. The
	// error says why there is nothing, or nothing older. It is as that of
	// Batches; its text is shown to clients if it wraps [ErrNotArchived].
	Check(ctx context.Context, partition int, base wal.Base, clusters []string) (first uint64, err error)
}

// ErrNotArchived is returned by an [Archive] that does not have what is asked
// for as it was in the log.
var ErrNotArchived = errors.New("broker: not in the archive")

// archiveReads bounds the reads that are answered from the archive at a time.
// Each may hold a part of the archive in memory, for as long as its client
// takes.
const archiveReads = 4

// archivePatience is how long a read waits for the archive. What takes longer
// is there when the client asks again.
const archivePatience = 2 * time.Second

// archiveReader reads the trimmed transactions of one partition from the
// archive.
type archiveReader struct {
	partition int
	archive   Archive // nil if there is none
	cluster   string  // this one's id
	position  func() position
	history   func() []wal.PastCluster
	log       *slog.Logger
	metrics   *partitionMetrics
	reads     *semaphore.Weighted

	checked   atomic.Pointer[archiveChecked]
	suspected atomic.Bool // a read has failed since, or has shown that it need not
	warned    atomic.Pointer[string]
}

// notArchivedError says why transactions that were trimmed are not read from
// the archive.
type notArchivedError struct{ err error }

func (e *notArchivedError) Error() string {
	return "broker: trimmed, and not read from the archive: " + e.err.Error()
}
func (e *notArchivedError) Unwrap() error { return e.err }

// refusal returns what the client is told. What an archive lacks is final; one
// that can't be read may be read later.
func (e *notArchivedError) refusal(first uint64) *subjects.Error {
	if !errors.Is(e.err, ErrNotArchived) {
		return subjects.Errorf(subjects.Unavailable, "that transaction was trimmed: the oldest one kept is %d; the archive has older ones, and can't be read at the moment: try again", first)
	}
	refused := subjects.Errorf(subjects.Trimmed, "that transaction was trimmed: the oldest one kept is %d, and older ones can't be read from the archive: %s", first, notArchivedText(e.err))
	refused.FirstTxid = first
	return refused
}

// acquire waits until another read may be answered from the archive.
func (a *archiveReader) acquire(ctx context.Context) (release func(), err error) {
	if a.archive == nil {
		return nil, wal.ErrTrimmed
	}
	patient, cancel := context.WithTimeout(ctx, scanPatience)
	defer cancel()
	if a.reads.Acquire(patient, 1) != nil {
		return nil, cmp.Or(ctx.Err(), errArchiveBusy)
	}
	return func() { a.reads.Release(1) }, nil
}

// errArchiveBusy is returned when a read has waited for its turn too long.
var errArchiveBusy = errors.New("broker: too many reads go to the archive")

// batches returns some of the batches from a transaction on that was trimmed.
// It returns [wal.ErrTrimmed] if there is no archive.
func (a *archiveReader) batches(ctx context.Context, from uint64, at position) (all []wal.Batch, err error) {
	err = a.ask(ctx, func(ctx context.Context) error {
		all, err = a.archive.Batches(ctx, a.partition, from, at.base)
		if err == nil && (len(all) == 0 || all[0].First > from || all[0].Last() < from) {
			err = fmt.Errorf("%w: it has not returned transaction %d", ErrNotArchived, from)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// ask asks the archive, for as long as a read waits for it.
func (a *archiveReader) ask(ctx context.Context, do func(context.Context) error) error {
	if a.archive == nil {
		return wal.ErrTrimmed
	}
	patient, cancel := context.WithTimeout(ctx, archivePatience)
	defer cancel()
	err := do(patient)
	switch {
	case err == nil:
		if c := a.checked.Load(); c != nil && c.err != nil {
			a.suspected.Store(true)
		}
		a.warned.Store(nil)
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	a.suspected.Store(true)
	a.metrics.archiveFailures.Inc()
	text := err.Error()
	if before := a.warned.Swap(&text); before == nil || *before != text {
		a.log.Warn("a read is not answered from the archive", "err", err)
	}
	return &notArchivedError{err}
}

// get is batches for one transaction.
func (a *archiveReader) get(ctx context.Context, txid uint64, at position) ([]wal.Batch, error) {
	release, err := a.acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	return a.batches(ctx, txid, at)
}

// find returns the first transaction from txid from on that was trimmed and is
// at or after a time, 0 if there is none.
func (a *archiveReader) find(ctx context.Context, at int64, from uint64, base wal.Base) (txid uint64, err error) {
	release, err := a.acquire(ctx)
	if err != nil {
		return 0, err
	}
	defer release()
	err = a.ask(ctx, func(ctx context.Context) error {
		txid, err = a.archive.Find(ctx, a.partition, at, from, base)
		if err == nil && txid > 0 && (txid < from || txid > base.Txid) {
			err = fmt.Errorf("%w: asked for transactions from %d to %d, it has returned %d", ErrNotArchived, from, base.Txid, txid)
		}
		return err
	})
	return txid, err
}
