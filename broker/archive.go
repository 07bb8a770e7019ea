package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
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
	// First returns the oldest transaction that the archive has of a partition,
	// as far as is known, and 0 for none. It does not wait.
	First(partition int) uint64
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

// archived are the trimmed transactions of one partition.
type archived struct {
	partition int
	archive   Archive // nil if there is none
	log       *slog.Logger
	reads     *semaphore.Weighted
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
	refused := subjects.Errorf(subjects.Trimmed, "that transaction was trimmed: the oldest one kept is %d, and older ones can't be read from the archive: %v", first, e.err)
	refused.FirstTxid = first
	return refused
}

// acquire waits until another read may be answered from the archive.
func (a *archived) acquire(ctx context.Context) (release func(), err error) {
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
func (a *archived) batches(ctx context.Context, from uint64, at position) ([]wal.Batch, error) {
	if a.archive == nil {
		return nil, wal.ErrTrimmed
	}
	patient, cancel := context.WithTimeout(ctx, archivePatience)
	defer cancel()
	all, err := a.archive.Batches(patient, a.partition, from, at.base)
	if err == nil && (len(all) == 0 || all[0].First > from || all[0].Last() < from) {
		err = fmt.Errorf("%w: it has not returned transaction %d", ErrNotArchived, from)
	}
	switch {
	case err == nil:
		return all, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	a.log.Warn("the archive is not read", "txid", from, "err", err)
	return nil, &notArchivedError{err}
}

// get is batches for one transaction.
func (a *archived) get(ctx context.Context, txid uint64, at position) ([]wal.Batch, error) {
	release, err := a.acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	return a.batches(ctx, txid, at)
}

// first returns the oldest transaction that is read from the archive, 0 for
// none.
func (a *archived) first(kept uint64) uint64 {
	if a.archive == nil || kept == 1 {
		return 0
	}
	if first := a.archive.First(a.partition); first < kept {
		return first
	}
	return 0
}
