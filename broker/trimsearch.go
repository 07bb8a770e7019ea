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
func (s *partitionState) lastPointThat(may func(trimPoint) bool) (at trimPoint, found bool, err error) {
	at, to, all := s.lastKnownPoint(may)
	if all {
		return at, true, nil
	}
	first := s.position().first
	for p, err := range pointsAfter(s.log, at, to) {
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
func (s *partitionState) lastKnownPoint(may func(trimPoint) bool) (at trimPoint, to uint64, all bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if end := s.endPoint(); s.index > s.trimIndex && end.Txid > 0 && may(end) {
		return end, end.index, true // even without transactions: other entries go then
	}
	at, to = s.basePoint(), s.index
	for _, p := range s.trimPoints {
		if !may(p) {
			return at, min(to, p.index), false
		}
		at = p
	}
	return at, to, false
}

// basePoint returns the point before the oldest transaction kept. mu is held.
func (s *partitionState) basePoint() trimPoint {
	p := trimPoint{Base: s.base, index: s.trimIndex, time: s.baseTime, bytes: s.baseBytes}
	if p.bytes == 0 && s.first > 1 {
		// Only an older version knew it. Nothing must go that should stay.
		if p.bytes = s.bytes; len(s.trimPoints) > 0 {
			p.bytes = s.trimPoints[0].bytes
		}
	}
	return p
}

// endPoint returns the point at the log's end. mu is held.
func (s *partitionState) endPoint() trimPoint {
	return trimPoint{Base: wal.Base{Txid: s.mark.Load(), Digest: s.digest}, index: s.index, time: s.lastTime, bytes: s.bytes - s.behind}
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
func (s *partitionState) trimTo(at trimPoint, index uint64) {
	last := s.mark.Load()
	if at.Txid < s.first && at.Txid < last || at.Txid > last || at.index >= index {
		return
	}
	from := s.basePoint()
	if s.unchecked != nil {
		from = s.unchecked.from
	}
	n := 0
	for n < len(s.trimPoints) && s.trimPoints[n].Txid <= at.Txid {
		from = s.trimPoints[n]
		n++
	}
	if at.Txid == last { // only other entries have come since
		at.index, at.bytes = index-1, s.bytes
		s.lastPoint = logPosition{s.lastTime, s.bytes}
	}
	s.unchecked = &trimCheck{from}
	s.beginAt(at, n)
}

// beginAt begins the log at a point, behind the first n trim points. mu is
// held.
func (s *partitionState) beginAt(at trimPoint, n int) {
	invariant.FirstTxidRises.Check(at.Txid+1 >= s.first, at.Txid+1, s.first)
	invariant.TrimWithinLog.Check(at.Txid <= s.mark.Load(), at.Txid, s.mark.Load())
	s.trimPoints = slices.Clone(s.trimPoints[n:])
	s.first, s.base, s.baseTime, s.baseBytes = at.Txid+1, at.Base, at.time, at.bytes
	s.certifier.forget(s.first)
	s.trimThrough(at.index)
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
func (s *partitionState) checked(c *trimCheck, at trimPoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.unchecked == c:
		s.unchecked = nil
	case s.unchecked != nil && s.unchecked.from.Txid < at.Txid:
		s.unchecked = &trimCheck{at}
	}
}

// size returns the bytes of all entries, including those that were trimmed.
func (s *partitionState) size() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes
}

// lastTrim returns the time of the last trim that was applied since the node
// started, zero if there was none.
func (s *partitionState) lastTrim() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.trimTime == 0 {
		return time.Time{}
	}
	return time.Unix(0, s.trimTime)
}
