package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cantuslog/cantus/wal"
)

const (
	// archiveFresh is how old the manifest may be that a check goes by.
	archiveFresh = 10 * time.Second
	// archiveListed is how long it is believed that a segment is there.
	archiveListed = time.Hour
)

// listing says when a partition's segments were last looked for, up to a base.
type listing struct {
	proof proof
	at    time.Time
}

// Check returns the oldest transaction from which on the archive has all of a
// partition's log up to base, 0 for none. The error says why that is not the
// archive's first, or why there is none. It wraps ErrNotArchived if the archive
// lacks something, and is another one if the archive can't be read.
//
// Check verifies that the archive's log leads to base, and that all segments
// before it are there. It reads the one that holds base, and those that were
// found damaged; the others are checked when they are read. With a base of 0
// nothing was trimmed: then it verifies that the archive is of one of the
// clusters.
func (a *Archive) Check(ctx context.Context, partition int, base wal.Base, clusters []string) (first uint64, err error) {
	if err := a.fresh(ctx); err != nil {
		return 0, err
	}
	if base.Txid == 0 {
		return 0, a.checkCluster(clusters)
	}
	err = a.in(ctx, partition, base, func(p Partition) error {
		if err := a.look(ctx, p, base); err != nil {
			return err
		}
		if first, err = a.wholeFrom(ctx, p, base.Txid); first > base.Txid {
			first = 0
		}
		return err
	})
	return first, err
}

// fresh reads the manifest unless that was tried a moment ago.
func (a *Archive) fresh(ctx context.Context) error {
	a.mu.Lock()
	age, failed, none := a.now().Sub(a.looked), a.failed, a.looked.IsZero()
	a.mu.Unlock()
	if none || age >= archiveFresh || failed != nil && age >= archiveRead {
		return a.Refresh(ctx)
	}
	return failed
}

func (a *Archive) checkCluster(clusters []string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if of := a.manifest.Cluster; !slices.Contains(clusters, of.ID) {
		return fmt.Errorf("%w: the archive is of cluster %q with the id %s, which is another one", ErrNotArchived, of.Name, of.ID)
	}
	return nil
}

// look notes which segments up to a base are missing, or have another size. It
// lists them if that was not done for the base, or long ago.
func (a *Archive) look(ctx context.Context, p Partition, base wal.Base) error {
	now := a.now()
	a.mu.Lock()
	to, last := a.proved[p.Partition], a.listed[p.Partition]
	a.mu.Unlock()
	if last.proof == to && now.Sub(last.at) < archiveListed {
		return nil
	}
	objects, err := a.repository.bucket.List(ctx, fmt.Sprintf("p%d/", p.Partition))
	if err != nil {
		return fmt.Errorf("list the segments of partition %d: %w", p.Partition, err)
	}
	sizes := make(map[string]int64, len(objects))
	for _, o := range objects {
		sizes[o.Name] = o.Size
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range p.Segments {
		if s.First > base.Txid {
			break
		}
		if size, is := sizes[s.Name]; !is {
			a.bad[s.Name] = fmt.Errorf("%w: %s", errSegmentMissing, s.Name)
		} else if size != s.Stored {
			a.bad[s.Name] = fmt.Errorf("%w: %s: it has %d bytes, the manifest says %d", ErrDamaged, s.Name, size, s.Stored)
		}
	}
	a.listed[p.Partition] = listing{to, now}
	return nil
}

// wholeFrom returns the oldest transaction from which on no segment up to a
// transaction is known to be missing or damaged, and why it is not the first.
// It reads the newest one that was, which may have been repaired.
func (a *Archive) wholeFrom(ctx context.Context, p Partition, upTo uint64) (uint64, error) {
	last, _, err := p.find(upTo)
	if err != nil {
		return 0, err
	}
	for i := last; i >= 0; i-- {
		a.mu.Lock()
		bad := a.bad[p.Segments[i].Name]
		a.mu.Unlock()
		if bad == nil {
			continue
		}
		_, before, err := p.find(p.Segments[i].First)
		if err == nil {
			_, err = a.read(ctx, p, i, before)
		}
		if err != nil {
			return p.Segments[i].Last + 1, err
		}
	}
	return p.Base.Txid + 1, nil
}

// Find returns the first transaction of a partition, from txid from to that of
// base, at or after a time in Unix nanoseconds; 0 if there is none. The error
// is that of Batches.
func (a *Archive) Find(ctx context.Context, partition int, at int64, from uint64, base wal.Base) (txid uint64, err error) {
	err = a.in(ctx, partition, base, func(p Partition) error {
		txid, err = a.find(ctx, p, at, from)
		switch {
		case err != nil:
		case txid > base.Txid:
			txid = 0
		case txid == p.Base.Txid+1 && from < txid:
			return beginsLater(p) // there may be an earlier one
		}
		return err
	})
	return txid, err
}

func (a *Archive) find(ctx context.Context, p Partition, at int64, from uint64) (uint64, error) {
	var previous time.Time
	for _, s := range p.Segments {
		if s.LastTime.Before(s.FirstTime) || s.FirstTime.Before(previous) {
			return 0, fmt.Errorf("%w: the times of %s are out of order", ErrDamaged, s.Name)
		}
		if previous = s.LastTime; s.Last < from || s.LastTime.UnixNano() < at {
			continue
		}
		l, err := a.segment(ctx, p, s.Last)
		if err != nil {
			return 0, err
		}
		return l.find(s, at, from)
	}
	return 0, nil
}

// find returns the first transaction of a segment from a txid on that is at or
// after a time. The segment has one, if its times are those of the manifest.
func (l loaded) find(s Segment, at int64, from uint64) (uint64, error) {
	first, last := l.batches[0], l.batches[len(l.batches)-1]
	if first.Time != s.FirstTime.UnixNano() || !lastTime(last).Equal(s.LastTime) {
		return 0, fmt.Errorf("%w: %s: its times are not those of the manifest", ErrDamaged, s.Name)
	}
	for _, b := range l.batches {
		if b.Last() >= from && lastTime(b).UnixNano() >= at {
			return max(from, b.First+uint64(max(0, at-b.Time))), nil
		}
	}
	return 0, errors.New("the segment has no such transaction")
}
