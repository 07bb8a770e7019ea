package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// Source is a cluster whose logs are backed up.
type Source interface {
	Cluster(ctx context.Context) (Cluster, error)
	// Cursors returns the cursors of a partition in the order of their names.
	Cursors(ctx context.Context, partition int) ([]subjects.CursorPosition, error)
	// State describes a partition, including everything that was committed
	// before the call.
	State(ctx context.Context, partition int) (State, error)
	// Batches calls each for the batches of a partition in order: from the one
	// that holds the txid from, to the one that holds the txid to.
	Batches(ctx context.Context, partition int, from, to uint64, each func(wal.Batch) error) error
}

// State describes a partition's log at a moment.
type State struct {
	// Base is the point before the oldest transaction kept, Last the newest
	// one. Their times are not known.
	Base, Last Point
	History    []subjects.PastCluster
	// Namespace is what the partition belongs to, nil for none.
	Namespace *Namespace
}

// RunOptions are those of a run. The zero value backs up all partitions.
type RunOptions struct {
	// Partitions are those to back up. Default: all.
	Partitions []int
	// Progress, if not nil, is called when a partition was looked at, and after
	// each batch.
	Progress func(Progress)
}

// Progress is how far a run has got with a partition.
type Progress struct {
	Partition int
	// Txid is the last transaction that was read, of those up to Last.
	Txid, Last uint64
	// Bytes were added to the transactions' batches since the last call.
	Bytes int64
}

// Result is what a run did.
type Result struct {
	// Manifest is the newest one.
	Manifest Manifest
	// Wrote is true if the run wrote it.
	Wrote bool
	// Transactions, Bytes and Stored are those that the run added: of the
	// transactions, of their batches, and of the objects written.
	Transactions  uint64
	Bytes, Stored int64
	// Failed are the partitions in which something failed.
	Failed []int
	// Begun are the partitions that were not in the backup yet.
	Begun []int
}

// tries is how often a run begins again because another process has written a
// manifest.
const tries = 100

// Run brings the backup up to date with a cluster. When it returns nil,
// everything that was committed before the call is in the newest manifest.
// After an error the newest manifest has what was read up to then: a run may be
// cancelled at any time.
//
// The error wraps ErrOther or ErrGap if the backup can't go on with a
// partition's log, ErrDamaged or ErrNewer if it can't be read, or is one of the
// source's or the bucket's. Those of partitions are joined; the other
// partitions are backed up.
func (r *Repository) Run(ctx context.Context, source Source, o RunOptions) (result Result, err error) {
	for range tries {
		result, err = r.run(ctx, source, o)
		if !errors.Is(err, fs.ErrExist) {
			break
		}
	}
	return result, err
}

// run is the state of a run.
type run struct {
	*Repository
	source   Source
	progress func(Progress)
	manifest Manifest // to be written
	dirty    bool     // it differs from the one that is stored
	written  time.Time
	result   Result
}

const (
	// writeEvery is how long a run may take until what it has done so far is
	// written.
	writeEvery = 30 * time.Second
	// lastWrite is how long a run that was cancelled may take to write it.
	lastWrite = 10 * time.Second
)

func (r *Repository) run(ctx context.Context, source Source, o RunOptions) (Result, error) {
	cluster, err := source.Cluster(ctx)
	if err != nil {
		return Result{}, err
	}
	old, err := r.current(ctx)
	if err != nil {
		return Result{}, err
	}
	if old.Generation > 0 && old.Cluster.ID != cluster.ID {
		return Result{}, fmt.Errorf("%w: it is of cluster %s (%s), and this is %s (%s); a cluster that was restored, recovered or promoted from a mirror is another one: back it up elsewhere, and keep this backup",
			ErrOther, old.Cluster.Name, old.Cluster.ID, cluster.Name, cluster.ID)
	}
	b := &run{Repository: r, source: source, progress: o.Progress, manifest: old, dirty: old.Cluster != cluster || old.ID == "", written: r.now()}
	b.manifest.Cluster = cluster
	if b.progress == nil {
		b.progress = func(Progress) {}
	}
	partitions := o.Partitions
	if len(partitions) == 0 {
		for p := range cluster.Partitions {
			partitions = append(partitions, p)
		}
	}
	var failed []error
	for _, p := range partitions {
		if err := ctx.Err(); err != nil {
			failed = append(failed, err)
			break
		}
		if err := b.partition(ctx, p); err != nil {
			failed, b.result.Failed = append(failed, OfPartition(p, err)), append(b.result.Failed, p)
			if _, ok := errors.AsType[*putError](err); ok && b.result.Stored == 0 {
				return Result{}, errors.Join(failed...) // the others would fail alike
			}
		}
	}
	if b.dirty && len(b.manifest.Partitions) > 0 { // a backup begins with its first log
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWrite)
		defer cancel()
		if err := b.write(ctx); err != nil {
			return Result{}, errors.Join(append(failed, err)...)
		}
	}
	b.result.Manifest = b.manifest
	return b.result, errors.Join(failed...)
}

// OfPartition returns an error with the partition that it is about, which its
// text may begin with already.
func OfPartition(p int, err error) error {
	name := fmt.Sprintf("partition %d", p)
	if text := err.Error(); strings.HasPrefix(text, name+" ") || strings.HasPrefix(text, name+":") {
		return err
	}
	return fmt.Errorf("%s: %w", name, err)
}

// write stores the manifest as it is now.
func (b *run) write(ctx context.Context) error {
	if err := b.Repository.write(ctx, b.manifest); err != nil {
		return err
	}
	b.manifest, b.dirty, b.written = *b.newest, false, b.now()
	b.result.Wrote = true
	return nil
}

// partition brings the backup of a partition up to date.
func (b *run) partition(ctx context.Context, id int) error {
	// The cursors come first: none is past the state's last transaction.
	cursors, err := b.source.Cursors(ctx, id)
	if err != nil {
		return err
	}
	state, err := b.source.State(ctx, id)
	if err != nil {
		return err
	}
	p, known := b.manifest.Find(id)
	if !known {
		p = Partition{Partition: id, Base: state.Base, Last: state.Base}
	}
	if err := p.goesOn(state); err != nil {
		return err
	}
	old := p
	var damage error
	if p.Damaged != "" {
		damage = b.checkDamaged(ctx, &p)
	}
	b.progress(Progress{Partition: id, Txid: p.Last.Txid, Last: state.Last.Txid})
	if p.Last.Txid < state.Last.Txid {
		err = b.read(ctx, &p, state.Last, cursors)
	}
	p.setCursors(cursors)
	p.History, p.Namespace = state.History, state.Namespace
	if !known && err != nil && len(p.Segments) == 0 {
		return err
	}
	if !known {
		b.result.Begun = append(b.result.Begun, id)
	}
	if !known || !reflect.DeepEqual(p, old) {
		b.set(p)
	}
	if err == nil && damage == nil {
		err = b.merge(ctx, p)
	}
	return errors.Join(err, damage)
}

// set puts a partition's log into the manifest.
func (b *run) set(p Partition) {
	b.manifest, b.dirty = b.manifest.with(p), true
}

// setCursors sets the cursors as they are at Last. A backup that was
// interrupted may end before some of them.
func (p *Partition) setCursors(all []subjects.CursorPosition) {
	p.Cursors = append(make([]subjects.CursorPosition, 0, len(all)), all...)
	for i := range p.Cursors {
		p.Cursors[i].Txid = min(p.Cursors[i].Txid, p.Last.Txid)
	}
	p.Cursors = slices.DeleteFunc(p.Cursors, func(c subjects.CursorPosition) bool { return c.Txid == 0 })
}

// goesOn returns nil if a log that is in this state goes on from the backup's
// end.
func (p *Partition) goesOn(s State) error {
	switch {
	case s.Last.Txid < p.Last.Txid:
		return fmt.Errorf("%w: the backup ends at txid %d, and the log at %d: the cluster has lost transactions, or has another history; "+
			"keep this backup, and back the cluster up elsewhere", ErrOther, p.Last.Txid, s.Last.Txid)
	case s.Last.Txid == p.Last.Txid && s.Last.Digest != p.Last.Digest:
		return fmt.Errorf("%w: at txid %d the backup has the digest %s, and the log %s; keep this backup, and back the cluster up elsewhere",
			ErrOther, p.Last.Txid, p.Last.Digest, s.Last.Digest)
	case s.Base.Txid > p.Last.Txid:
		return fmt.Errorf("%w: the backup ends at txid %d, and the log was trimmed up to %d; keep this backup, and begin another one elsewhere",
			ErrGap, p.Last.Txid, s.Base.Txid)
	}
	return nil
}

// read adds the batches up to a point of the log, in segments.
func (b *run) read(ctx context.Context, p *Partition, to Point, cursors []subjects.CursorPosition) error {
	c, err := p.Last.chain()
	if err != nil {
		return err
	}
	w := newSegmentWriter(p.Partition)
	defer w.close()
	read := func(batch wal.Batch) error {
		if err := c.add(batch); err != nil {
			return fmt.Errorf("%w: %w", ErrOther, err)
		}
		if c.last > to.Txid || c.last == to.Txid && c.hex() != to.Digest {
			return fmt.Errorf("%w: from the backup's end the batches lead to txid %d with the digest %s, and the log has %s at %d",
				ErrOther, c.last, c.hex(), to.Digest, to.Txid)
		}
		if err := w.add(batch, c.digest); err != nil {
			return err
		}
		b.progress(Progress{p.Partition, c.last, to.Txid, int64(len(batch.Bytes()))})
		if w.segment.Bytes < maxSegment && b.now().Sub(b.written) < writeEvery {
			return nil
		}
		return b.flush(ctx, w, p, cursors)
	}
	err = b.source.Batches(ctx, p.Partition, p.Last.Txid+1, to.Txid, read)
	if errors.Is(err, ErrOther) {
		return err // what was read last is not the log
	}
	// What was read is stored, even if the run is cancelled.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWrite)
	defer cancel()
	return errors.Join(err, b.store(ctx, w, p))
}

// flush stores a segment, and now and then the manifest, so that a backup that
// takes long can be interrupted.
func (b *run) flush(ctx context.Context, w *segmentWriter, p *Partition, cursors []subjects.CursorPosition) error {
	if err := b.store(ctx, w, p); err != nil || b.now().Sub(b.written) < writeEvery {
		return err
	}
	p.setCursors(cursors)
	b.set(*p)
	return b.write(ctx)
}

// store stores the segment that w has, if any, and adds it to the log.
func (b *run) store(ctx context.Context, w *segmentWriter, p *Partition) error {
	if w.segment.Batches == 0 {
		return nil
	}
	s, object, err := w.finish()
	if err != nil {
		return err
	}
	if err := b.put(ctx, s, object); err != nil {
		return err
	}
	p.Segments = append(slices.Clip(p.Segments), s)
	p.Last = Point{s.Last, s.Digest, s.LastTime}
	b.result.Transactions += s.Last - s.First + 1
	b.result.Bytes += s.Bytes
	return nil
}

// putError says that a segment can't be stored.
type putError struct{ err error }

func (e *putError) Error() string { return e.err.Error() }
func (e *putError) Unwrap() error { return e.err }

// put stores a segment's object. If it is there already it is written again: it
// would be deleted soon, if no manifest has named it for a day.
func (b *run) put(ctx context.Context, s Segment, object []byte) error {
	if err := b.bucket.Put(ctx, s.Name, object, false); err != nil {
		return &putError{fmt.Errorf("write %s: %w", s.Name, err)}
	}
	b.result.Stored += s.Stored
	return nil
}
