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
	read     time.Time     // when the manifest was last read, or could not be
	proved   map[int]proof // by partition
	segments []loaded      // the last one used is at the end
}

// proof says that the log of a partition in a manifest leads to a base.
type proof struct {
	generation uint64
	base       wal.Base
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
	// archiveRead is the least time between two reads of the manifest.
	archiveRead = time.Second
	// archiveTime bounds how long the storage is waited for. A caller may give
	// up before: what it has asked for is read all the same, for the next one.
	archiveTime = time.Minute
)

// NewArchive returns the archive in a repository.
func NewArchive(r *Repository) *Archive {
	return &Archive{repository: r, now: r.now, loads: semaphore.NewWeighted(archiveLoads), proved: map[int]proof{}}
}

// Refresh reads the manifest if there is a newer one.
func (a *Archive) Refresh(ctx context.Context) error {
	_, err := a.once(ctx, manifestPrefix, func(ctx context.Context) (loaded, error) {
		m, err := a.repository.Newest(ctx)
		a.mu.Lock()
		defer a.mu.Unlock()
		a.read = a.now()
		if err == nil {
			a.manifest = m
		}
		return loaded{}, err
	})
	return err
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

// First returns the oldest transaction that the archive has of a partition, as
// far as is known, and 0 for none. It does not wait.
func (a *Archive) First(partition int) uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.manifest == nil {
		return 0
	}
	if p, ok := a.manifest.Find(partition); ok && p.Last.Txid > p.Base.Txid {
		return p.Base.Txid + 1
	}
	return 0
}

// Batches returns some batches of a partition, in order, of which the first has
// the transaction from. They are of the log that has base, which is not before
// from. The error wraps ErrNotArchived if the archive does not have them, or
// has another log or a damaged one. The batches must not be changed.
func (a *Archive) Batches(ctx context.Context, partition int, from uint64, base wal.Base) ([]wal.Batch, error) {
	for again := false; ; again = true {
		p, generation, err := a.partition(ctx, partition, base.Txid, again)
		if err != nil {
			return nil, err
		}
		if from <= p.Base.Txid {
			return nil, fmt.Errorf("%w: the archive of partition %d begins at txid %d", ErrNotArchived, partition, p.Base.Txid+1)
		}
		if err = a.prove(ctx, p, proof{generation, base}); err == nil {
			var s loaded
			if s, err = a.segment(ctx, p, from); err == nil {
				i := slices.IndexFunc(s.batches, func(b wal.Batch) bool { return b.Last() >= from })
				return s.batches[i:], nil
			}
		}
		switch {
		case isMissing(err) && !again: // segments were merged
		case isMissing(err), errors.Is(err, ErrDamaged):
			return nil, fmt.Errorf("%w: %w", ErrNotArchived, err)
		default:
			return nil, err
		}
	}
}

// partition returns the log of a partition in the newest manifest that is
// known. The manifest is read again if it has less than is needed, but not all
// the time.
func (a *Archive) partition(ctx context.Context, partition int, upTo uint64, newer bool) (p Partition, generation uint64, err error) {
	for asked := false; ; asked = true {
		a.mu.Lock()
		m, rested := a.manifest, a.now().Sub(a.read) >= archiveRead
		a.mu.Unlock()
		has := false
		if m != nil {
			p, has = m.Find(partition)
		}
		switch {
		case has && p.Last.Txid >= upTo && (!newer || asked):
			return p, m.Generation, nil
		case !asked && (m == nil || newer || rested):
			if err := a.Refresh(ctx); err != nil && !errors.Is(err, ErrNone) {
				return p, 0, err
			}
		case !has:
			return p, 0, fmt.Errorf("%w: the archive has no partition %d", ErrNotArchived, partition)
		default:
			return p, 0, fmt.Errorf("%w: the archive of partition %d ends at txid %d, and the log begins after %d", ErrNotArchived, partition, p.Last.Txid, upTo)
		}
	}
}

// prove checks that the log of a partition leads to a base.
func (a *Archive) prove(ctx context.Context, p Partition, to proof) error {
	a.mu.Lock()
	known := a.proved[p.Partition] == to
	a.mu.Unlock()
	if known {
		return nil
	}
	if to.base.Txid <= p.Base.Txid {
		return fmt.Errorf("%w: the archive of partition %d begins after txid %d, and the log too", ErrNotArchived, p.Partition, p.Base.Txid)
	}
	s, err := a.segment(ctx, p, to.base.Txid)
	if err != nil {
		return err
	}
	c := s.before
	for _, b := range s.batches {
		if c.last >= to.base.Txid {
			break
		}
		if err := c.add(b); err != nil {
			return err
		}
	}
	if c.last != to.base.Txid || c.digest != to.base.Digest {
		return fmt.Errorf("%w: the archive of partition %d is of another log: at txid %d it has the digest %.12s, and the log %.12s",
			ErrNotArchived, p.Partition, c.last, c.hex(), hex.EncodeToString(to.base.Digest[:]))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.proved[p.Partition] = to
	return nil
}

// segment returns the segment of a partition that has a transaction.
func (a *Archive) segment(ctx context.Context, p Partition, txid uint64) (loaded, error) {
	i, _ := slices.BinarySearchFunc(p.Segments, txid, func(s Segment, txid uint64) int {
		if s.Last < txid {
			return -1
		}
		return 1
	})
	if i == len(p.Segments) {
		return loaded{}, fmt.Errorf("%w: the archive of partition %d ends before txid %d", ErrNotArchived, p.Partition, txid)
	}
	start := p.Base
	if i > 0 {
		start = Point{Txid: p.Segments[i-1].Last, Digest: p.Segments[i-1].Digest}
	}
	before, err := start.chain()
	if err != nil {
		return loaded{}, err
	}
	name := p.Segments[i].Name
	if s, ok := a.cached(name, before); ok {
		return s, nil
	}
	return a.once(ctx, name+" "+before.hex(), func(ctx context.Context) (loaded, error) { return a.load(ctx, p, i, before) })
}

// load reads a segment of a partition, which follows on a point of the chain.
func (a *Archive) load(ctx context.Context, p Partition, i int, before chain) (loaded, error) {
	s := loaded{name: p.Segments[i].Name, before: before}
	if err := a.loads.Acquire(ctx, 1); err != nil {
		return loaded{}, err
	}
	defer a.loads.Release(1)
	object, err := a.repository.object(ctx, p.Segments[i])
	if err != nil {
		return loaded{}, err
	}
	if s.batches, err = p.segment(i, object); err != nil {
		return loaded{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
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
