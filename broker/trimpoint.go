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
func (r *partitionState) countBatch(e raftstore.Committed, b wal.Batch) {
	if n := len(r.trimPoints); n > 0 && r.trimPoints[n-1].Txid == b.First-1 {
		r.trimPoints[n-1].index, r.trimPoints[n-1].bytes = e.Index-1, r.bytes
	}
	if r.first == b.First && r.first > 1 { // entries before the first transaction kept are not needed
		r.baseBytes = r.bytes
		r.trimThrough(e.Index - 1)
	}
	if r.lastPoint.time == 0 {
		r.lastPoint = logPosition{b.Time, r.bytes}
	}
	r.bytes += uint64(len(e.Data))
	r.behind = 0
	if (b.First-1)/r.pointEvery != b.Last()/r.pointEvery || r.bytes-r.lastPoint.bytes >= pointBytes || r.lastTime-r.lastPoint.time >= pointTime {
		r.trimPoints = append(r.trimPoints, trimPoint{wal.Base{Txid: b.Last(), Digest: r.digest}, e.Index, r.lastTime, r.bytes})
		r.lastPoint = logPosition{r.lastTime, r.bytes}
		r.thin()
	}
}

// countOther adds another applied entry to the log's size. r.mu is held.
func (r *partitionState) countOther(e raftstore.Committed) {
	r.index = e.Index
	r.bytes += uint64(len(e.Data))
	r.behind += uint64(len(e.Data))
}

// thin drops trim points if there are too many. The distance between those that
// are left grows with their age, to about a hundredth of it. r.mu is held.
func (r *partitionState) thin() {
	for len(r.trimPoints) > 2*maxTrimPoints { // an older version kept all of them
		var kept []trimPoint
		for i := 0; i < len(r.trimPoints); i += 2 {
			kept = append(kept, r.trimPoints[i])
		}
		r.trimPoints, r.thinned = kept, true
	}
	for len(r.trimPoints) > maxTrimPoints {
		least, closest := 0, math.Inf(1)
		for i := 1; i < len(r.trimPoints)-1; i++ {
			gap, age := r.trimPoints[i+1].bytes-r.trimPoints[i-1].bytes, r.bytes-r.trimPoints[i].bytes
			if share := float64(gap) / float64(age); share < closest {
				least, closest = i, share
			}
		}
		r.trimPoints, r.thinned = slices.Delete(r.trimPoints, least, least+1), true
	}
}

// trimThrough makes the trimmer trim the log through an index. r.mu is held.
func (r *partitionState) trimThrough(index uint64) {
	r.trimIndex = index
	select {
	case r.trimmed <- struct{}{}:
	default:
	}
}

// restoreTrimPoints reads the trim points that were stored with the snapshot.
// r.mu is held.
func (r *partitionState) restoreTrimPoints() error {
	for name, v := range r.log.Metas(metaPoint) {
		p, err := decodeTrimPoint(name, v)
		if err != nil {
			return err
		}
		if p.Txid >= r.first {
			r.trimPoints = append(r.trimPoints, p)
		}
	}
	slices.SortFunc(r.trimPoints, func(a, b trimPoint) int { return int(a.index) - int(b.index) })
	return nil
}

// snapshotTrimPoints returns the trim points that are not stored yet, and
// deletions of those that were trimmed or thinned out. r.mu is held.
func (r *partitionState) snapshotTrimPoints() []wal.Meta {
	var metas []wal.Meta
	held := make(map[string]bool, len(r.trimPoints))
	for _, p := range slices.Backward(r.trimPoints) {
		m := p.meta()
		if bytes.Equal(m.Value, r.log.Meta(m.Name)) {
			break
		}
		metas = append(metas, m)
	}
	base := wal.EncodeBase(r.base)
	based := r.base.Txid == 0 || bytes.Equal(base, r.log.Meta(metaBase))
	if based && !r.thinned {
		return metas
	}
	for _, p := range r.trimPoints {
		held[p.name()] = true
	}
	r.thinned = false // unless there are deletions that no stored snapshot has
	for name := range r.log.Metas(metaPoint) {
		if !held[name] {
			metas = append(metas, wal.Meta{Name: name})
			r.thinned = true
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
func (r *partitionState) applyTrims(e raftstore.Committed, b wal.Batch) (applied, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.restoring.hides() {
		r.countOther(e)
		return applied{void: true}, nil
	}
	r.certifier.advance(b.Time)
	r.trimTime = b.Time
	records := b.Read()
	for record, ok := records.NextRaw(); ok; record, ok = records.NextRaw() {
		switch len(record) {
		case oldTrimSize:
			r.trim(binary.BigEndian.Uint64(record), e.Index)
		case trimSize:
			r.trimTo(decodeTrim(record), e.Index)
		default:
			return applied{}, fmt.Errorf("%w: trim record of %d bytes", wal.ErrDamaged, len(record))
		}
	}
	r.countOther(e)
	return applied{}, records.Err()
}

// trim is trimTo for a record of an older version, which has only the oldest
// txid to keep. It drops the transactions before the last remembered trim point
// below that. If there are no transactions from keep on, the entry before
// index, which is that of the trim record, is a trim point too.
func (r *partitionState) trim(keep, index uint64) {
	n := 0
	for n < len(r.trimPoints) && r.trimPoints[n].Txid < keep {
		n++
	}
	var at trimPoint
	switch last := r.mark.Load(); {
	case keep > last && last > 0:
		at = trimPoint{Base: wal.Base{Txid: last, Digest: r.digest}, index: index - 1, time: r.lastTime, bytes: r.bytes}
		r.lastPoint = logPosition{r.lastTime, r.bytes}
	case n == 0:
		return
	default:
		at = r.trimPoints[n-1]
	}
	r.unchecked = nil // the point is the replica's own
	r.beginAt(at, n)
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
