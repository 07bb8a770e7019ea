package backup

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/cantuslog/cantus/wal"
)

func (c *chain) hex() string { return hex.EncodeToString(c.digest[:]) }

// follow calls each for the batches of a segment's object, after the chain was
// extended by them. The chain has to lead to the segment's end.
func (s Segment) follow(c *chain, object []byte, each func(wal.Batch) error) error {
	err := s.readBatches(object, func(b wal.Batch) error {
		if err := c.add(b); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrDamaged, s.Name, err)
		}
		return each(b)
	})
	if err == nil && (c.last != s.Last || c.hex() != s.Digest) {
		err = fmt.Errorf("%w: %s: it ends at txid %d with the digest %s, the manifest says %d and %s", ErrDamaged, s.Name, c.last, c.hex(), s.Last, s.Digest)
	}
	return err
}

// Batches calls each for the batches of a partition in a manifest, in order,
// from the one that holds the txid from. Each segment is checked before its
// batches are passed on. A batch aliases memory that is not used again.
//
// If others write to the repository meanwhile, segments of the manifest may be
// merged and deleted; the batches are then read from those that have replaced
// them.
func (r *Repository) Batches(ctx context.Context, m *Manifest, partition int, from uint64, each func(wal.Batch) error) error {
	p, ok := m.Find(partition)
	if !ok {
		return fmt.Errorf("the backup has no partition %d", partition)
	}
	if from <= p.Base.Txid {
		return fmt.Errorf("%w: the backup of partition %d begins at txid %d", ErrGap, partition, p.Base.Txid+1)
	}
	end := p.Last
	for next := from; next <= end.Txid; {
		i, _ := slices.BinarySearchFunc(p.Segments, next, func(s Segment, txid uint64) int {
			if s.Last < txid {
				return -1
			}
			return 1
		})
		if i == len(p.Segments) {
			return fmt.Errorf("%w: the backup ends before txid %d", ErrDamaged, next)
		}
		s := p.Segments[i]
		object, err := r.object(ctx, s)
		if isMissing(err) {
			if p, err = r.replaced(ctx, m, p, s); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		batches, err := p.segment(i, object)
		if err != nil {
			return err
		}
		for _, b := range batches {
			if b.Last() < next || next > end.Txid {
				continue
			}
			if err := each(b); err != nil {
				return err
			}
			next = b.Last() + 1
		}
	}
	return nil
}

// segment returns the batches of a segment, checked.
func (p *Partition) segment(i int, object []byte) (all []wal.Batch, err error) {
	c, err := p.before(i).chain()
	if err != nil {
		return nil, err
	}
	s := p.Segments[i]
	var t wal.Transaction
	err = s.follow(&c, object, func(b wal.Batch) error {
		records := b.Read()
		for records.Next(&t) {
		}
		if err := records.Err(); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrDamaged, s.Name, err)
		}
		all = append(all, b)
		return nil
	})
	return all, err
}

// replaced returns the log of a partition in the newest manifest, after a
// segment of m was missing.
func (r *Repository) replaced(ctx context.Context, m *Manifest, p Partition, missing Segment) (Partition, error) {
	err := fmt.Errorf("%w: %s is missing", ErrDamaged, missing.Name)
	newest, newestErr := r.Newest(ctx)
	if newestErr != nil {
		return p, err
	}
	now, ok := newest.Find(p.Partition)
	if !ok || newest.Cluster.ID != m.Cluster.ID || slices.Contains(now.Segments, missing) {
		return p, err
	}
	return now, nil
}

// Verify reads a partition of a manifest, and checks everything: the objects,
// the batches with their records, and that the digest chain leads from the base
// to the end. It calls each, if it is not nil, after each batch.
func (r *Repository) Verify(ctx context.Context, m *Manifest, partition int, each func(wal.Batch)) error {
	p, ok := m.Find(partition)
	if !ok {
		return fmt.Errorf("the backup has no partition %d", partition)
	}
	c, err := p.Base.chain()
	if err != nil {
		return err
	}
	err = r.Batches(ctx, m, partition, p.Base.Txid+1, func(b wal.Batch) error {
		if each != nil {
			each(b)
		}
		return c.add(b)
	})
	if err == nil && (c.last != p.Last.Txid || c.hex() != p.Last.Digest) {
		err = fmt.Errorf("%w: the log ends at txid %d with the digest %s, the manifest says %d and %s", ErrDamaged, c.last, c.hex(), p.Last.Txid, p.Last.Digest)
	}
	return err
}
