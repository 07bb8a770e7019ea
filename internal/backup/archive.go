package backup

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"

	"github.com/cantuslog/cantus/wal"
)

// Archive reads a repository as the beginning of logs that were trimmed. It is
// for concurrent use.
//
// What it returns is proved in two steps. Each segment is checked by its hash
// and by the digests of the manifest before its batches are passed on. And the
// manifest's log has to lead to the digest that the trimmed log has at its
// base: a digest commits to all that came before it. So another log is refused,
// and damage is found before it is read.
type Archive struct {
	repository *Repository
	now        func() time.Time
	loads      *semaphore.Weighted
	reads      singleflight.Group // by the name of what is read

	mu       sync.Mutex // guards the fields below
	manifest *Manifest
	looked   time.Time        // when the manifest was last read, or could not be
	failed   error            // why it could not be, nil if it could
	skipped  error            // why a newer manifest was not taken, nil for none
	proved   map[int]proof    // by partition
	listed   map[int]listing  // by partition
	bad      map[string]error // segments that are not whole, by their names
	segments []loaded         // the last one used is at the end
}

// proof says that a segment, after a point of the chain, leads to a base.
type proof struct {
	sha256 string
	before chain
	base   wal.Base
}

// loaded is a segment in memory.
type loaded struct {
	name    string
	before  chain
	batches []wal.Batch
}

// ErrNotArchived is returned for transactions that an archive does not have as
// they were in the log.
var ErrNotArchived = errors.New("backup: not in the archive")

const (
	// archiveLoads is how many segments an archive reads at a time, and
	// archiveSegments how many it keeps in memory. A segment has up to 64 MiB.
	archiveLoads    = 2
	archiveSegments = 3
	// archiveRead is the least time between two checks that read the manifest.
	archiveRead = time.Second
	// archiveTime bounds how long the storage is waited for. A caller may give
	// up before: what it has asked for is read all the same, for the next one.
	archiveTime = time.Minute
)

// NewArchive returns the archive in a repository.
func NewArchive(r *Repository) *Archive {
	return &Archive{repository: r, now: r.now, loads: semaphore.NewWeighted(archiveLoads),
		proved: map[int]proof{}, listed: map[int]listing{}, bad: map[string]error{},
	}
}

// Refresh reads the manifest again. If the newest one is damaged, the newest
// that is whole is taken.
func (a *Archive) Refresh(ctx context.Context) error {
	_, err := a.once(ctx, manifestPrefix, func(ctx context.Context) (loaded, error) {
		m, damage, err := a.repository.newestWhole(ctx)
		a.mu.Lock()
		defer a.mu.Unlock()
		a.looked, a.failed = a.now(), err
		if err == nil {
			a.manifest = m
			a.skip(damage)
			a.forget()
		}
		return loaded{}, err
	})
	return err
}

// skip notes why a newer manifest was not taken, and logs it once. mu is held.
func (a *Archive) skip(damage error) {
	switch {
	case damage != nil && (a.skipped == nil || a.skipped.Error() != damage.Error()):
		a.repository.log.Warn("the newest manifest of the archive is damaged: an older one is read", "generation", a.manifest.Generation, "err", damage)
	case damage == nil && a.skipped != nil:
		a.repository.log.Info("the newest manifest of the archive is whole again", "generation", a.manifest.Generation)
	}
	a.skipped = damage
}

// forget forgets damage of segments that are not needed any more. mu is held.
func (a *Archive) forget() {
	if len(a.bad) == 0 {
		return
	}
	bad := map[string]error{}
	for _, p := range a.manifest.Partitions {
		for _, s := range p.Segments {
			if err := a.bad[s.Name]; err != nil {
				bad[s.Name] = err
			}
		}
	}
	a.bad = bad
}

// once reads something, once for all that ask for it meanwhile.
func (a *Archive) once(ctx context.Context, name string, do func(context.Context) (loaded, error)) (loaded, error) {
	read := a.reads.DoChan(name, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), archiveTime)
		defer cancel()
		return do(ctx)
	})
	select {
	case r := <-read:
		return r.Val.(loaded), r.Err
	case <-ctx.Done():
		return loaded{}, ctx.Err()
	}
}

// Batches returns some batches of a partition, in order, of which the first has
// the transaction from. They are of the log that has base, which is not before
// from. The error wraps ErrNotArchived if the archive does not have them, or
// has another log or a damaged one; its text names nothing of the node. The
// batches must not be changed.
func (a *Archive) Batches(ctx context.Context, partition int, from uint64, base wal.Base) (all []wal.Batch, err error) {
	err = a.in(ctx, partition, base, func(p Partition) error {
		if from <= p.Base.Txid {
			return beginsLater(p)
		}
		s, err := a.segment(ctx, p, from)
		if err == nil {
			i := slices.IndexFunc(s.batches, func(b wal.Batch) bool { return b.Last() >= from })
			all = s.batches[i:]
		}
		return err
	})
	return all, err
}

func beginsLater(p Partition) error {
	return fmt.Errorf("%w: the archive of partition %d begins at txid %d", ErrNotArchived, p.Partition, p.Base.Txid+1)
}

// in calls do with the log of a partition, which was proved to lead to base. It
// does so again, with a newer manifest, if a segment was missing: segments are
// merged.
func (a *Archive) in(ctx context.Context, partition int, base wal.Base, do func(Partition) error) error {
	for again := false; ; again = true {
		p, err := a.partition(ctx, partition, base.Txid, again)
		if err != nil {
			return err
		}
		if err = a.prove(ctx, p, base); err == nil {
			err = do(p)
		}
		switch {
		case errors.Is(err, errSegmentMissing) && !again:
		case errors.Is(err, ErrDamaged):
			return fmt.Errorf("%w: %w", ErrNotArchived, err)
		default:
			return err
		}
	}
}

// errSegmentMissing is returned for a segment that a manifest names.
var errSegmentMissing = fmt.Errorf("%w: a segment is missing", ErrDamaged)

// partition returns the log of a partition in the newest manifest that is
// known. The manifest is read again if it has less than is needed: to lack that
// is final for a client.
func (a *Archive) partition(ctx context.Context, partition int, upTo uint64, newer bool) (p Partition, err error) {
	for asked := false; ; asked = true {
		a.mu.Lock()
		m, skipped := a.manifest, a.skipped
		a.mu.Unlock()
		has := false
		if m != nil {
			p, has = m.Find(partition)
		}
		switch {
		case has && p.Last.Txid >= upTo && (!newer || asked):
			return p, nil
		case !asked:
			if err := a.Refresh(ctx); err != nil {
				return p, err
			}
		case !has:
			return p, fmt.Errorf("%w: the archive has no partition %d", ErrNotArchived, partition)
		case skipped != nil:
			return p, fmt.Errorf("%w: the archive of partition %d ends at txid %d, and the log begins after %d: the newest manifest of the archive is damaged", ErrNotArchived, partition, p.Last.Txid, upTo)
		default:
			return p, fmt.Errorf("%w: the archive of partition %d ends at txid %d, and the log begins after %d", ErrNotArchived, partition, p.Last.Txid, upTo)
		}
	}
}

// prove checks that the log of a partition leads to a base.
func (a *Archive) prove(ctx context.Context, p Partition, base wal.Base) error {
	if base.Txid <= p.Base.Txid {
		return fmt.Errorf("%w: the archive of partition %d begins after txid %d, and the log too", ErrNotArchived, p.Partition, p.Base.Txid)
	}
	i, before, err := p.find(base.Txid)
	if err != nil {
		return err
	}
	to := proof{p.Segments[i].SHA256, before, base}
	a.mu.Lock()
	known := a.proved[p.Partition] == to
	a.mu.Unlock()
	if known {
		return nil
	}
	s, err := a.segment(ctx, p, base.Txid)
	if err != nil {
		return err
	}
	c := s.before
	for _, b := range s.batches {
		if c.last >= base.Txid {
			break
		}
		if err := c.add(b); err != nil {
			return err
		}
	}
	if c.last != base.Txid || c.digest != base.Digest {
		return fmt.Errorf("%w: the archive of partition %d is of another log: at txid %d it has the digest %.12s, and the log %.12s",
			ErrNotArchived, p.Partition, c.last, c.hex(), hex.EncodeToString(base.Digest[:]))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.proved[p.Partition] = to
	return nil
}

// find returns the segment that has a transaction, and the point before it.
func (p *Partition) find(txid uint64) (i int, before chain, err error) {
	i, _ = slices.BinarySearchFunc(p.Segments, txid, func(s Segment, txid uint64) int {
		if s.Last < txid {
			return -1
		}
		return 1
	})
	if i == len(p.Segments) {
		return i, before, fmt.Errorf("%w: the archive of partition %d ends before txid %d", ErrNotArchived, p.Partition, txid)
	}
	before, err = p.before(i).chain()
	return i, before, err
}

// segment returns the segment of a partition that has a transaction.
func (a *Archive) segment(ctx context.Context, p Partition, txid uint64) (loaded, error) {
	i, before, err := p.find(txid)
	if err != nil {
		return loaded{}, err
	}
	if s, ok := a.cached(p.Segments[i].Name, before); ok {
		return s, nil
	}
	return a.read(ctx, p, i, before)
}

// read reads a segment of a partition from the repository.
func (a *Archive) read(ctx context.Context, p Partition, i int, before chain) (loaded, error) {
	return a.once(ctx, p.Segments[i].Name+" "+before.hex(), func(ctx context.Context) (loaded, error) { return a.load(ctx, p, i, before) })
}

// load reads a segment of a partition, which follows on a point of the chain,
// and notes whether it is whole.
func (a *Archive) load(ctx context.Context, p Partition, i int, before chain) (loaded, error) {
	s := loaded{name: p.Segments[i].Name, before: before}
	if err := a.loads.Acquire(ctx, 1); err != nil {
		return loaded{}, err
	}
	defer a.loads.Release(1)
	object, err := a.repository.object(ctx, p.Segments[i])
	switch {
	case err == nil:
		s.batches, err = p.segment(i, object)
	case isMissing(err):
		err = fmt.Errorf("%w: %s", errSegmentMissing, s.name)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case errors.Is(err, ErrDamaged):
		a.bad[s.name] = err
		return loaded{}, err
	case err != nil:
		return loaded{}, err
	}
	delete(a.bad, s.name)
	a.segments = slices.DeleteFunc(a.segments, func(o loaded) bool { return o.name == s.name })
	if a.segments = append(a.segments, s); len(a.segments) > archiveSegments {
		a.segments = slices.Delete(a.segments, 0, 1)
	}
	return s, nil
}

// cached returns a segment that is in memory.
func (a *Archive) cached(name string, before chain) (loaded, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	i := slices.IndexFunc(a.segments, func(s loaded) bool { return s.name == name && s.before == before })
	if i < 0 {
		return loaded{}, false
	}
	s := a.segments[i]
	a.segments = append(slices.Delete(a.segments, i, i+1), s)
	return s, true
}

// Close closes the repository.
func (a *Archive) Close() error { return a.repository.Close() }
