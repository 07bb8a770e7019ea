package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/backup"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// logRestore restores one partition. Whatever goes wrong on the way, it begins
// again where the partition is: a step that was not answered may have been
// carried out or not.
type logRestore struct {
	loader
	repository *backup.Repository
	manifest   *backup.Manifest
	log        backup.Partition
	note       func(format string, args ...any)
	quiet      bool
	patience   time.Duration

	byTime bool       // the end is that of a time
	end    uint64     // the last transaction to restore
	digest wal.Digest // that of the backup there
	time   time.Time  // when it was committed, zero if there is none
	read   uint64     // the last transaction that was read from the backup, and is whole
	loaded bool       // this run has loaded up to end, and compared the digest
	done   restoredLog
	shown  time.Time
}

const (
	// restorePatience is how long a restore goes on without progress.
	restorePatience = time.Minute
	// restorePause is between two attempts.
	restorePause = 200 * time.Millisecond
)

// errInsideBatch says that the partition ends within a batch of the backup.
var errInsideBatch = errors.New("the partition ends within a batch of the backup")

// run restores the partition as planned.
func (r *logRestore) run(ctx context.Context) (restoredLog, error) {
	began := time.Now()
	r.shown = began
	r.done = restoredLog{Partition: r.log.Partition, FirstTxid: r.log.Base.Txid + 1, LastTxid: r.end, Digest: hex.EncodeToString(r.digest[:])}
	err := r.again(ctx, func() error { return r.attempt(ctx) })
	r.done.Seconds = time.Since(began).Seconds()
	return r.done, err
}

// plan sets end, to a transaction, or to the last one at a time, if one of the
// two is given; and the digest there.
func (r *logRestore) plan(ctx context.Context, to uint64, at time.Time) error {
	if err := r.planEnd(ctx, to, at); err != nil {
		return err
	}
	from := r.log.Base
	for _, s := range r.log.Segments {
		if s.First > r.end {
			break
		}
		if s.Last > r.end {
			return r.planWithin(ctx, from, s.First)
		}
		from = backup.Point{Txid: s.Last, Digest: s.Digest, Time: s.LastTime}
	}
	r.time = from.Time
	digest, err := hex.DecodeString(from.Digest)
	copy(r.digest[:], digest)
	return err
}

// planWithin sets the digest of an end within a segment, which begins at a
// txid. An end within an atomic batch becomes the one before it.
func (r *logRestore) planWithin(ctx context.Context, before backup.Point, first uint64) error {
	digest, err := hex.DecodeString(before.Digest)
	if err != nil {
		return err
	}
	copy(r.digest[:], digest)
	r.time = before.Time
	err = r.repository.Batches(ctx, r.manifest, r.log.Partition, first, func(b wal.Batch) error {
		switch a, err := atomicAt(b, r.end); {
		case err != nil:
			return err
		case a != nil:
			r.note("partition %d: txid %d is within the atomic batch %d-%d, which is restored as a whole or not at all: the end is txid %d", r.log.Partition, r.end, a.First(), a.Last(), a.First()-1)
			r.end = a.First() - 1
		}
		if r.end < b.First {
			return errRestoreEnd
		}
		data, err := firstTransactions(b, r.end)
		if err != nil {
			return err
		}
		r.digest = r.digest.Next(data)
		r.time = time.Unix(0, b.Time+int64(min(r.end, b.Last())-b.First)).UTC()
		return r.ended(b)
	})
	if errors.Is(err, errRestoreEnd) {
		return nil
	}
	return err
}

// planEnd sets end.
func (r *logRestore) planEnd(ctx context.Context, to uint64, at time.Time) error {
	base, last := r.log.Base.Txid, r.log.Last.Txid
	switch r.end = last; {
	case to > last:
		return usagef("--to-txid: the backup of partition %d ends at txid %d", r.log.Partition, last)
	case to > 0 && to < base:
		return usagef("--to-txid: the backup of partition %d begins after txid %d", r.log.Partition, base)
	case to > 0:
		r.end = to
		return nil
	case at.IsZero():
		return nil
	}
	r.byTime = true
	for _, s := range r.log.Segments {
		if !s.LastTime.After(at) {
			continue
		}
		r.end = s.First - 1
		stop := errors.New("stop")
		err := r.repository.Batches(ctx, r.manifest, r.log.Partition, s.First, func(b wal.Batch) error {
			n := min(max(0, at.UnixNano()-b.Time+1), int64(b.Count))
			if n > 0 {
				r.end = b.First + uint64(n) - 1
			}
			if n < int64(b.Count) {
				return stop
			}
			return nil
		})
		if err != nil && !errors.Is(err, stop) {
			return err
		}
		break
	}
	if r.end == base && base > 0 && len(r.log.Segments) > 0 {
		return usagef("--to-time: the backup of partition %d begins at %s, with txid %d: what was committed before was trimmed",
			r.log.Partition, r.log.Segments[0].FirstTime.Format(time.RFC3339Nano), base+1)
	}
	return nil
}

// again calls do until it succeeds, fails for good, or the partition has not
// moved for as long as the restore is patient.
func (r *logRestore) again(ctx context.Context, do func() error) error {
	for since, moved := time.Now(), r.at.txid; ; {
		err := do()
		if r.at.txid != moved {
			since, moved = time.Now(), r.at.txid
		}
		if err == nil || ctx.Err() != nil || !restoreGoesOn(err) || time.Since(since) > r.patience {
			if errors.Is(err, nats.ErrNoResponders) {
				err = r.conn.noLeader(ctx, r.log.Partition)
			}
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(restorePause):
		}
	}
}

// restoreGoesOn reports whether an attempt may succeed where another one has
// failed with err.
func restoreGoesOn(err error) bool {
	var restart *restartError
	var f *failure
	switch {
	case errors.As(err, &restart), errors.Is(err, nats.ErrNoResponders), errors.Is(err, nats.ErrTimeout), errors.Is(err, context.DeadlineExceeded),
		errors.Is(err, errConnLost), errors.Is(err, errNewLeader):
		return true
	case errors.As(err, &f):
		return f.status == exitUnavailable || f.status == exitUnknown
	}
	return false
}

// attempt restores what is missing.
func (r *logRestore) attempt(ctx context.Context) error {
	ended, err := r.begin(ctx)
	if err != nil {
		return err
	}
	if ended {
		return nil
	}
	if err := r.load(ctx); err != nil {
		return r.whatNow(err)
	}
	if err := r.setCursors(ctx); err != nil {
		return err
	}
	return r.step(ctx, subjects.RestoreRequest{End: &subjects.RestoreEnd{
		Txid: r.end, Digest: r.done.Digest, History: historyOf(r.manifest, r.log, r.end),
	}})
}

// begin begins the restore, or asks how far it is. It has ended if the
// partition's history says so, and the digest is the backup's.
func (r *logRestore) begin(ctx context.Context) (ended bool, err error) {
	base := r.log.Base
	begin := subjects.RestoreBegin{Cluster: r.manifest.Cluster.ID, Txid: base.Txid}
	if base.Txid > 0 {
		begin.Digest, begin.Time = base.Digest, base.Time
		if begin.Time.IsZero() { // it is not known: before the first one that is
			if begin.Time = r.manifest.Taken; len(r.log.Segments) > 0 {
				begin.Time = r.log.Segments[0].FirstTime.Add(-1)
			}
		}
	}
	err = r.step(ctx, subjects.RestoreRequest{Begin: &begin})
	if exitStatus(err) != exitConflict {
		return false, err
	}
	var info subjects.PartitionInfo
	if e := r.conn.ask(ctx, r.conn.names.PartitionInfo(r.log.Partition), nil, &info); e != nil {
		return false, e
	}
	if r.loaded && r.wasRestored(info) { // its last step was not answered, but carried out
		return true, nil
	}
	if !r.wasRestored(info) {
		return false, err
	}
	r.done.Already = true
	return true, r.check(info)
}

// wasRestored reports whether the partition was restored from a backup of this
// cluster up to the end.
func (r *logRestore) wasRestored(info subjects.PartitionInfo) bool {
	n := len(info.History)
	return !info.Restoring && n > 0 && info.History[n-1] == subjects.PastCluster{Cluster: r.manifest.Cluster.ID, LastTxid: r.end}
}

// check returns an error if a partition in this state can't be restored and was
// not restored before.
func (r *logRestore) check(info subjects.PartitionInfo) error {
	mark, n := info.HighWaterMark, len(info.History)
	switch {
	case info.MirrorOf != "":
		return failf(exitConflict, "it is a mirror of cluster %s; nothing was changed: use a new, empty cluster", info.MirrorOf)
	case info.Restoring:
		return r.checkPast(mark)
	case r.wasRestored(info) && mark != r.end:
		return failf(exitConflict, "it was restored up to txid %d before, and is in use: its last txid is %d; nothing was changed", r.end, mark)
	case r.wasRestored(info) && info.Digest != hex.EncodeToString(r.digest[:]):
		return failf(exitConflict, "it was restored up to txid %d before, from another backup: it has the digest %.12s there, and this one %.12s; nothing was changed",
			r.end, info.Digest, hex.EncodeToString(r.digest[:]))
	case r.wasRestored(info):
		return nil
	case n > 0 && info.History[n-1].Cluster == r.manifest.Cluster.ID:
		return failf(exitConflict, "it was restored up to txid %d before, and not up to %d; nothing was changed: use a new, empty cluster", info.History[n-1].LastTxid, r.end)
	case n > 0:
		return failf(exitConflict, "it was restored or recovered before, and its last txid is %d; nothing was changed: use a new, empty cluster", mark)
	case mark > 0:
		return failf(exitConflict, "it is in use, and its last txid is %d; nothing was changed: use a new, empty cluster", mark)
	}
	return nil
}

// checkPast returns an error if the partition is past the end already.
func (r *logRestore) checkPast(mark uint64) error {
	if mark <= r.end {
		return nil
	}
	flag := "--to-txid"
	if r.byTime {
		flag = "--to-time"
	}
	return failf(exitConflict, "it is restored up to txid %d already, past the end that you ask for (%d): leave %s out, or use a new cluster", mark, r.end, flag)
}

// whatNow adds to an error about damage what can be done about it.
func (r *logRestore) whatNow(err error) error {
	switch {
	case !errors.Is(err, backup.ErrDamaged):
		return err
	case max(r.read, r.at.txid) <= r.log.Base.Txid:
		return fmt.Errorf("%w; the partition serves nothing until it is restored: do that from a whole copy of the backup", err)
	}
	return fmt.Errorf("%w; the partition serves nothing until it is restored: do that from a whole copy of the backup, or give up what follows the damage: --to-txid %d=%d",
		err, r.log.Partition, max(r.read, r.at.txid))
}

// show notes where the partition is, and shows it now and then.
func (r *logRestore) show() {
	if !r.quiet && time.Since(r.shown) > 2*time.Second {
		r.shown = time.Now()
		r.note("partition %d: txid %d of %d", r.log.Partition, r.at.txid, r.end)
	}
}

// load sends the batches that the partition does not have yet.
func (r *logRestore) load(ctx context.Context) error {
	r.stream = r.stream[:0]
	if err := r.checkPast(r.at.txid); err != nil {
		return err
	}
	before := r.at.txid
	defer func() { r.done.Transactions += r.at.txid - before }()
	if err := r.sendAll(ctx); err != nil {
		return err
	}
	if r.at.txid != r.end || r.at.digest != r.digest {
		return failf(exitFailed, "partition %d is at txid %d with the digest %x, and the backup at %d with %x: what was loaded before is another log; restore into a new cluster",
			r.log.Partition, r.at.txid, r.at.digest[:], r.end, r.digest[:])
	}
	r.loaded = true
	return nil
}

// sendAll sends the batches from the one that follows on the partition's end.
// What is whole in a damaged backup is sent too.
func (r *logRestore) sendAll(ctx context.Context) error {
	if r.at.txid == r.end {
		return nil
	}
	err := r.repository.Batches(ctx, r.manifest, r.log.Partition, r.at.txid+1, func(b wal.Batch) error {
		if b.First <= r.at.txid && len(r.stream) == 0 {
			return failf(exitConflict, "%w, at txid %d: it was being restored up to there; restore it up to there, or into a new cluster", errInsideBatch, r.at.txid)
		}
		data, err := firstTransactions(b, r.end)
		if err != nil {
			return err
		}
		r.done.Bytes += int64(len(data))
		r.read = min(b.Last(), r.end)
		if err := r.add(ctx, data); err != nil {
			return err
		}
		return r.ended(b)
	})
	switch {
	case errors.Is(err, backup.ErrDamaged):
		return errors.Join(err, r.flush(ctx))
	case err != nil && !errors.Is(err, errRestoreEnd):
		return err
	}
	return r.flush(ctx)
}

// ended returns errRestoreEnd after the batch that has the last transaction:
// what follows it may be damaged.
func (r *logRestore) ended(b wal.Batch) error {
	if b.Last() >= r.end {
		return errRestoreEnd
	}
	return nil
}

// errRestoreEnd ends the reading of a backup where the restore ends.
var errRestoreEnd = errors.New("the end of the restore")

// firstTransactions returns the bytes of a batch as it is, or, if it goes
// beyond a transaction, of one without those behind it.
func firstTransactions(b wal.Batch, last uint64) ([]byte, error) {
	if b.Last() <= last {
		return b.Bytes(), nil
	}
	var w wal.BatchWriter
	if w.Begin(wal.Transactions, b.First, b.Time, len(b.Bytes())); b.Term != 0 {
		w.BeginIn(b.Term, b.First, b.Time, len(b.Bytes()))
	}
	var t wal.Transaction
	records := b.Read()
	for n := last - b.First + 1; n > 0 && records.Next(&t); n-- {
		w.Add(&t)
	}
	return w.Finish(), records.Err()
}

// atomicAt returns the transaction with a txid if it is in an atomic batch that
// goes on after it, and nil otherwise.
func atomicAt(b wal.Batch, txid uint64) (*wal.Transaction, error) {
	if txid < b.First || txid >= b.Last() {
		return nil, nil //nolint:nilnil // there is none
	}
	var t wal.Transaction
	records := b.Read()
	records.Skip(int(txid - b.First))
	if !records.Next(&t) {
		return nil, records.Err()
	}
	if t.Last() == txid {
		return nil, nil //nolint:nilnil // there is none
	}
	return &t, nil
}

// setCursors sets the cursors as they were, those past the end to the end.
func (r *logRestore) setCursors(ctx context.Context) error {
	r.done.Moved = nil
	var all []subjects.RestoredCursor
	for _, c := range r.log.Cursors {
		if c.Txid > r.end {
			r.done.Moved = append(r.done.Moved, movedCursor{c.Name, c.Txid, r.end})
		}
		if c.Txid = min(c.Txid, r.end); c.Txid > 0 {
			all = append(all, subjects.RestoredCursor{Name: c.Name, Txid: c.Txid, Time: c.Time})
		}
	}
	return r.loader.setCursors(ctx, all)
}
