package broker

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/cantuslog/cantus/internal/invariant"
	"github.com/cantuslog/cantus/wal"
)

// Trim points are far apart, and a trim ends at the end of any batch. So the
// leader reads its log from the last trim point on that may go, computes the
// point at which the trim is to end, and writes it into the trim record. Each
// replica that applies the record begins there at once, since its state must be
// a function of the log, and may not wait for a disk. Before it deletes
// anything it reads the same part of its own log, and compares.

// errOtherTrim is returned if a trim record does not fit the replica's own
// log.
var errOtherTrim = errors.New("broker: a trim record does not fit the replica's log")

// pointsAfter returns the points after a point of a log, in order: the end of
// each batch of transactions up to index to. Void batches must have been marked
// up to there. It stops after the first error.
func pointsAfter(store *wal.Log, from trimPoint, to uint64) iter.Seq2[trimPoint, error] {
	return func(yield func(trimPoint, error) bool) {
		w := pointWalk{at: from, voids: map[uint64]bool{}}
		for _, index := range store.Voids() {
			w.voids[index] = true
		}
		for e, err := range store.Entries(from.index+1, to) {
			before, isNext := w.at, false
			if err == nil {
				isNext, err = w.entry(&e)
			}
			if err != nil {
				yield(trimPoint{}, err)
				return
			}
			if before.index = e.Index - 1; isNext && before.Txid > from.Txid && !yield(before, nil) {
				return
			}
		}
		if w.at.index = to; w.at.Txid > from.Txid {
			yield(w.at, nil)
		}
	}
}

// pointWalk is the state of pointsAfter.
type pointWalk struct {
	at    trimPoint
	voids map[uint64]bool
}

// entry moves the walk past an entry, and reports whether that is a batch of
// transactions. It counts what a replica counts when it applies the entry.
func (w *pointWalk) entry(e *wal.Entry) (isNext bool, err error) {
	if e.Type != 0 {
		return false, nil
	}
	b, err := wal.ParseBatch(e.Data)
	if err != nil {
		return false, fmt.Errorf("%w: entry %d: %w", wal.ErrDamaged, e.Index, err)
	}
	if isNext = b.Kind == wal.Transactions; isNext {
		if w.voids[e.Index] {
			return false, nil
		}
		if b.First != w.at.Txid+1 {
			return false, fmt.Errorf("%w: entry %d begins with txid %d, and follows on %d", wal.ErrDamaged, e.Index, b.First, w.at.Txid)
		}
		w.at.Base = wal.Base{Txid: b.Last(), Digest: w.at.Digest.Next(e.Data)}
		w.at.time = b.Time + int64(b.Count) - 1
	}
	w.at.bytes += uint64(len(e.Data))
	return isNext, nil
}

// lastPointThat returns the last point of the log at which a trim may end. may
// must hold for all points up to some point, and for none after it. If there is
// no such point after the log's base, found is false. With an error the point
// is the last one that is known.
func (r *partitionState) lastPointThat(may func(trimPoint) bool) (at trimPoint, found bool, err error) {
	at, to, all := r.lastKnownPoint(may)
	if all {
		return at, true, nil
	}
	first := r.position().first
	for p, err := range pointsAfter(r.log, at, to) {
		if err != nil {
			return at, at.Txid >= first, err
		}
		if !may(p) {
			break
		}
		at = p
	}
	return at, at.Txid >= first, nil
}

// lastKnownPoint returns the last point at which a trim may end of those that
// are known without reading the log, and the index up to which there may be
// later ones. all says that everything may go.
func (r *partitionState) lastKnownPoint(may func(trimPoint) bool) (at trimPoint, to uint64, all bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if end := r.endPoint(); r.index > r.trimIndex && end.Txid > 0 && may(end) {
		return end, end.index, true // even without transactions: other entries go then
	}
	at, to = r.basePoint(), r.index
	for _, p := range r.trimPoints {
		if !may(p) {
			return at, min(to, p.index), false
		}
		at = p
	}
	return at, to, false
}

// basePoint returns the point before the oldest transaction kept. mu is held.
func (r *partitionState) basePoint() trimPoint {
	p := trimPoint{Base: r.base, index: r.trimIndex, time: r.baseTime, bytes: r.baseBytes}
	if p.bytes == 0 && r.first > 1 {
		// Only an older version knew it. Nothing must go that should stay.
		if p.bytes = r.bytes; len(r.trimPoints) > 0 {
			p.bytes = r.trimPoints[0].bytes
		}
	}
	return p
}

// endPoint returns the point at the log's end. mu is held.
func (r *partitionState) endPoint() trimPoint {
	return trimPoint{Base: wal.Base{Txid: r.mark.Load(), Digest: r.digest}, index: r.index, time: r.lastTime, bytes: r.bytes - r.behind}
}

// trimCheck is the duty to compare the log's base with the log itself, from a
// point on that the replica knows to be its own.
type trimCheck struct{ from trimPoint }

// storedCheck is a trimCheck in a snapshot.
type storedCheck struct {
	Txid   uint64 `json:"txid"`
	Digest []byte `json:"digest"`
	Index  uint64 `json:"index"`
}

func (c *trimCheck) stored() *storedCheck {
	if c == nil {
		return nil
	}
	return &storedCheck{c.from.Txid, c.from.Digest[:], c.from.index}
}

func (s *storedCheck) check() *trimCheck {
	if s == nil {
		return nil
	}
	c := &trimCheck{trimPoint{Base: wal.Base{Txid: s.Txid}, index: s.Index}}
	copy(c.from.Digest[:], s.Digest)
	return c
}

// trimTo begins the log at a point that its leader has computed. index is that
// of the trim record. A record that comes too late, or is one of another
// history, changes nothing. mu is held.
func (r *partitionState) trimTo(at trimPoint, index uint64) {
	last := r.mark.Load()
	if at.Txid < r.first && at.Txid < last || at.Txid > last || at.index >= index {
		return
	}
	from := r.basePoint()
	if r.unchecked != nil {
		from = r.unchecked.from
	}
	n := 0
	for n < len(r.trimPoints) && r.trimPoints[n].Txid <= at.Txid {
		from = r.trimPoints[n]
		n++
	}
	if at.Txid == last { // only other entries have come since
		at.index, at.bytes = index-1, r.bytes
		r.lastPoint = logPosition{r.lastTime, r.bytes}
	}
	r.unchecked = &trimCheck{from}
	r.beginAt(at, n)
}

// beginAt begins the log at a point, behind the first n trim points. mu is
// held.
func (r *partitionState) beginAt(at trimPoint, n int) {
	invariant.FirstTxidRises.Check(at.Txid+1 >= r.first, at.Txid+1, r.first)
	invariant.TrimWithinLog.Check(at.Txid <= r.mark.Load(), at.Txid, r.mark.Load())
	r.trimPoints = slices.Clone(r.trimPoints[n:])
	r.first, r.base, r.baseTime, r.baseBytes = at.Txid+1, at.Base, at.time, at.bytes
	r.certifier.forget(r.first)
	r.trimThrough(at.index)
}

// compareBase compares the point at which the log begins, and below which it is
// to be deleted through an index, with the log itself. It returns errOtherTrim
// if they differ.
func (c *trimCheck) compareBase(store *wal.Log, base wal.Base, through uint64) error {
	at := c.from
	if at.Txid < base.Txid {
		if first := store.FirstIndex(); first > at.index+1 {
			return nil // it is deleted already
		}
		for p, err := range pointsAfter(store, at, through) {
			if err != nil {
				return err
			}
			at = p
		}
	}
	if at.Base != base {
		return fmt.Errorf("%w: the record says that the log has the digest %x at txid %d, and the batches up to there end at txid %d with the digest %x",
			errOtherTrim, base.Digest[:], base.Txid, at.Txid, at.Digest[:])
	}
	return nil
}

// checked removes the check c after it has succeeded. If a later check is
// pending, that one begins at at.
func (r *partitionState) checked(c *trimCheck, at trimPoint) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.unchecked == c:
		r.unchecked = nil
	case r.unchecked != nil && r.unchecked.from.Txid < at.Txid:
		r.unchecked = &trimCheck{at}
	}
}

// size returns the bytes of all entries, including those that were trimmed.
func (r *partitionState) size() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bytes
}

// lastTrim returns the time of the last trim that was applied since the node
// started, zero if there was none.
func (r *partitionState) lastTrim() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.trimTime == 0 {
		return time.Time{}
	}
	return time.Unix(0, r.trimTime)
}
