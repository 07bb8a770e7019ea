package broker

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/wal"
)

// trimPoint is a position up to which the log can be trimmed: the end of a
// batch of transactions, with the digest of the log up to there. A replica
// remembers some of them; see pointsAfter for those between. They are a
// function of the log, so they are the same on every replica.
type trimPoint struct {
	wal.Base        // the batch's last txid, and the digest there
	index    uint64 // the last known entry before the next batch of transactions
	time     int64  // of the last transaction
	bytes    uint64 // of all entries up to index
}

// The end of a batch is remembered if a multiple of pointEvery is among its
// txids, or pointBytes of entries or pointTime nanoseconds lie between it and
// the last one that is.
const (
	pointEvery = 1 << 16
	pointBytes = 16 << 20
	pointTime  = int64(time.Hour)
	// maxTrimPoints bounds the trim points that are kept. They are in memory
	// and in each snapshot.
	maxTrimPoints = 1024
)

const (
	metaPoint = "point/"
	pointSize = 3*8 + 32
)

func (p trimPoint) meta() wal.Meta {
	v := binary.BigEndian.AppendUint64(nil, p.index)
	v = binary.BigEndian.AppendUint64(v, uint64(p.time))
	v = binary.BigEndian.AppendUint64(v, p.bytes)
	return wal.Meta{Name: p.name(), Value: append(v, p.Digest[:]...)}
}

func (p trimPoint) name() string { return fmt.Sprintf("%s%016x", metaPoint, p.Txid) }

func decodeTrimPoint(name string, v []byte) (p trimPoint, err error) {
	if _, err := fmt.Sscanf(strings.TrimPrefix(name, metaPoint), "%016x", &p.Txid); err != nil || len(v) != pointSize {
		return p, fmt.Errorf("%w: point %q holds %d bytes", wal.ErrDamaged, name, len(v))
	}
	p.index, p.time = binary.BigEndian.Uint64(v), int64(binary.BigEndian.Uint64(v[8:]))
	p.bytes, p.Digest = binary.BigEndian.Uint64(v[16:]), wal.Digest(v[24:])
	return p, nil
}

// countBatch adds an applied batch of transactions to the log's size, and a
// trim point if the batch ends in one. r.mu is held.
func (s *partitionState) countBatch(e raftstore.Committed, b wal.Batch) {
	if n := len(s.trimPoints); n > 0 && s.trimPoints[n-1].Txid == b.First-1 {
		s.trimPoints[n-1].index, s.trimPoints[n-1].bytes = e.Index-1, s.bytes
	}
	if s.first == b.First && s.first > 1 { // entries before the first transaction kept are not needed
		s.baseBytes = s.bytes
		s.trimThrough(e.Index - 1)
	}
	if s.lastPoint.time == 0 {
		s.lastPoint = logPosition{b.Time, s.bytes}
	}
	s.bytes += uint64(len(e.Data))
	s.behind = 0
	if (b.First-1)/s.pointEvery != b.Last()/s.pointEvery || s.bytes-s.lastPoint.bytes >= pointBytes || s.lastTime-s.lastPoint.time >= pointTime {
		s.trimPoints = append(s.trimPoints, trimPoint{wal.Base{Txid: b.Last(), Digest: s.digest}, e.Index, s.lastTime, s.bytes})
		s.lastPoint = logPosition{s.lastTime, s.bytes}
		s.thin()
	}
}

// countOther adds another applied entry to the log's size. r.mu is held.
func (s *partitionState) countOther(e raftstore.Committed) {
	s.index = e.Index
	s.bytes += uint64(len(e.Data))
	s.behind += uint64(len(e.Data))
}

// thin drops trim points if there are too many. The distance between those that
// are left grows with their age, to about a hundredth of it. r.mu is held.
func (s *partitionState) thin() {
	for len(s.trimPoints) > 2*maxTrimPoints { // an older version kept all of them
		var kept []trimPoint
		for i := 0; i < len(s.trimPoints); i += 2 {
			kept = append(kept, s.trimPoints[i])
		}
		s.trimPoints, s.thinned = kept, true
	}
	for len(s.trimPoints) > maxTrimPoints {
		least, closest := 0, math.Inf(1)
		for i := 1; i < len(s.trimPoints)-1; i++ {
			gap, age := s.trimPoints[i+1].bytes-s.trimPoints[i-1].bytes, s.bytes-s.trimPoints[i].bytes
			if share := float64(gap) / float64(age); share < closest {
				least, closest = i, share
			}
		}
		s.trimPoints, s.thinned = slices.Delete(s.trimPoints, least, least+1), true
	}
}

// trimThrough makes the trimmer trim the log through an index. r.mu is held.
func (s *partitionState) trimThrough(index uint64) {
	s.trimIndex = index
	select {
	case s.trimmed <- struct{}{}:
	default:
	}
}

// restoreTrimPoints reads the trim points that were stored with the snapshot.
// r.mu is held.
func (s *partitionState) restoreTrimPoints() error {
	for name, v := range s.log.Metas(metaPoint) {
		p, err := decodeTrimPoint(name, v)
		if err != nil {
			return err
		}
		if p.Txid >= s.first {
			s.trimPoints = append(s.trimPoints, p)
		}
	}
	slices.SortFunc(s.trimPoints, func(a, b trimPoint) int { return int(a.index) - int(b.index) })
	return nil
}

// snapshotTrimPoints returns the trim points that are not stored yet, and
// deletions of those that were trimmed or thinned out. r.mu is held.
func (s *partitionState) snapshotTrimPoints() []wal.Meta {
	var metas []wal.Meta
	held := make(map[string]bool, len(s.trimPoints))
	for _, p := range slices.Backward(s.trimPoints) {
		m := p.meta()
		if bytes.Equal(m.Value, s.log.Meta(m.Name)) {
			break
		}
		metas = append(metas, m)
	}
	base := wal.EncodeBase(s.base)
	based := s.base.Txid == 0 || bytes.Equal(base, s.log.Meta(metaBase))
	if based && !s.thinned {
		return metas
	}
	for _, p := range s.trimPoints {
		held[p.name()] = true
	}
	s.thinned = false // unless there are deletions that no stored snapshot has
	for name := range s.log.Metas(metaPoint) {
		if !held[name] {
			metas = append(metas, wal.Meta{Name: name})
			s.thinned = true
		}
	}
	if based {
		return metas
	}
	return append(metas, wal.Meta{Name: metaBase, Value: base})
}

// applyTrims moves the beginning of the log to the record's point, on every
// replica alike. The replica also forgets the locks and message ids of the
// transactions before that point, since a replica that restarts can't rebuild
// them from the transactions kept.
//
// The leader that made the record ensured that no message id is forgotten that
// still counts. Only the leader can: a follower may remember ids for longer,
// and forgets here what its leader no longer needed.
func (s *partitionState) applyTrims(e raftstore.Committed, b wal.Batch) (applied, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.restoring.hides() {
		s.countOther(e)
		return applied{void: true}, nil
	}
	s.certifier.advance(b.Time)
	s.trimTime = b.Time
	records := b.Read()
	for record, ok := records.NextRaw(); ok; record, ok = records.NextRaw() {
		switch len(record) {
		case oldTrimSize:
			s.trim(binary.BigEndian.Uint64(record), e.Index)
		case trimSize:
			s.trimTo(decodeTrim(record), e.Index)
		default:
			return applied{}, fmt.Errorf("%w: trim record of %d bytes", wal.ErrDamaged, len(record))
		}
	}
	s.countOther(e)
	return applied{}, records.Err()
}

// trim is trimTo for a record of an older version, which has only the oldest
// txid to keep. It drops the transactions before the last remembered trim point
// below that. If there are no transactions from keep on, the entry before
// index, which is that of the trim record, is a trim point too.
func (s *partitionState) trim(keep, index uint64) {
	n := 0
	for n < len(s.trimPoints) && s.trimPoints[n].Txid < keep {
		n++
	}
	var at trimPoint
	switch last := s.mark.Load(); {
	case keep > last && last > 0:
		at = trimPoint{Base: wal.Base{Txid: last, Digest: s.digest}, index: index - 1, time: s.lastTime, bytes: s.bytes}
		s.lastPoint = logPosition{s.lastTime, s.bytes}
	case n == 0:
		return
	default:
		at = s.trimPoints[n-1]
	}
	s.unchecked = nil // the point is the replica's own
	s.beginAt(at, n)
}

// A trim record is the trim point at which the log begins then. One of an older
// version has the oldest txid to keep instead.
const (
	oldTrimSize = 8
	trimSize    = 4*8 + 32
)

func trimRecord(at trimPoint) []byte {
	b := binary.BigEndian.AppendUint64(nil, at.Txid)
	b = binary.BigEndian.AppendUint64(b, at.index)
	b = binary.BigEndian.AppendUint64(b, uint64(at.time))
	b = binary.BigEndian.AppendUint64(b, at.bytes)
	return append(b, at.Digest[:]...)
}

func decodeTrim(b []byte) (at trimPoint) {
	at.Txid, at.index = binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
	at.time, at.bytes = int64(binary.BigEndian.Uint64(b[16:])), binary.BigEndian.Uint64(b[24:])
	at.Digest = wal.Digest(b[32:])
	return at
}
