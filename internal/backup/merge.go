package backup

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"github.com/cantuslog/cantus/wal"
)

// fanIn is how many segments of about a size are merged into one.
const fanIn = 8

// tier is the size of a segment as a power of fanIn. Segments from an eighth of
// the largest on are not merged.
func (s Segment) tier() int { return bits.Len64(uint64(s.Bytes)) / 3 }

func (s Segment) isLarge() bool { return s.Bytes >= maxSegment/fanIn }

// mergeFrom returns the index from which segments are to be merged: fanIn of a
// tier, and smaller ones between and after them. It returns the number of
// segments if none are to be merged.
func mergeFrom(all []Segment) int {
	for tier := 0; tier <= bits.Len64(maxSegment)/3; tier++ {
		from, same := len(all), 0
		for from > 0 && !all[from-1].isLarge() && all[from-1].tier() <= tier {
			if from--; all[from].tier() == tier {
				same++
			}
		}
		if same >= fanIn {
			return from
		}
	}
	return len(all)
}

// merge merges small segments at the end of a partition's log.
func (b *run) merge(ctx context.Context, p Partition) error {
	from := mergeFrom(p.Segments)
	if from == len(p.Segments) {
		return nil
	}
	was, old := p, p.Segments[from:]
	p.Segments = slices.Clip(p.Segments[:from])
	w := newSegmentWriter(p.Partition)
	defer w.close()
	finish := func() error {
		if w.segment.Batches == 0 {
			return nil
		}
		s, object, err := w.finish()
		if err == nil {
			err = b.put(ctx, s, object)
		}
		p.Segments = append(p.Segments, s)
		return err
	}
	c, err := was.before(from).chain()
	if err != nil {
		return err
	}
	for _, s := range old {
		object, err := b.object(ctx, s)
		if err == nil {
			err = s.follow(&c, object, func(batch wal.Batch) error {
				if err := w.add(batch, c.digest); err != nil || w.segment.Bytes < maxSegment {
					return err
				}
				return finish()
			})
		}
		if err != nil {
			if _, isPut := errors.AsType[*putError](err); !isPut && ctx.Err() == nil {
				was.Damaged = s.Name
				b.set(was)
			}
			return fmt.Errorf("merge small segments: %w", asDamage(s, err))
		}
	}
	if err := finish(); err != nil {
		return fmt.Errorf("merge small segments: %w", err)
	}
	b.set(p)
	return nil
}

// before returns the point at which a segment begins.
func (p *Partition) before(segment int) Point {
	if segment == 0 {
		return p.Base
	}
	s := p.Segments[segment-1]
	return Point{Txid: s.Last, Digest: s.Digest}
}

// asDamage returns the error about a segment that can't be read: one that is
// missing is damage too.
func asDamage(s Segment, err error) error {
	if isMissing(err) {
		return fmt.Errorf("%w: %s is missing", ErrDamaged, s.Name)
	}
	return err
}

// checkDamaged reads the segment again that an earlier run could not read. If
// it is whole, that is forgotten.
func (r *Repository) checkDamaged(ctx context.Context, p *Partition) error {
	i := slices.IndexFunc(p.Segments, func(s Segment) bool { return s.Name == p.Damaged })
	if i >= 0 {
		s := p.Segments[i]
		object, err := r.object(ctx, s)
		if err == nil {
			_, err = p.segment(i, object)
		}
		if err != nil {
			return fmt.Errorf("read again what could not be read: %w", asDamage(s, err))
		}
	}
	p.Damaged = ""
	return nil
}
