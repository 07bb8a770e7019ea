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

// point is a place where the log can be cut: the end of a batch of
// transactions, and what has to be known of the log before it. Points follow
// from the log alone, so that they are the same on every replica.
type point struct {
	wal.Base        // the txid and the digest there
	index    uint64 // the last entry before the next batch of transactions, as far as known
	time     int64  // of the transaction
	bytes    uint64 // of all entries up to the batch
}

// A batch ends in a point if a multiple of pointEvery lies among its txids, or
// if there are so many bytes of entries, or so many nanoseconds, since the last
// point. The second and the third let a partition be cut that has few
// transactions and many cursor writes.
const (
	pointEvery = 1 << 16
	pointBytes = 16 << 20
	pointTime  = int64(time.Hour)
	// mostPoints bounds the points that are kept. They are in memory and in
	// each checkpoint.
	mostPoints = 1024
)

const (
	metaPoint = "point/"
	pointSize = 3*8 + 32
)

func (p point) meta() wal.Meta {
	v := binary.BigEndian.AppendUint64(nil, p.index)
	v = binary.BigEndian.AppendUint64(v, uint64(p.time))
	v = binary.BigEndian.AppendUint64(v, p.bytes)
	return wal.Meta{Name: p.name(), Value: append(v, p.Digest[:]...)}
}

func (p point) name() string { return fmt.Sprintf("%s%016x", metaPoint, p.Txid) }

func decodePoint(name string, v []byte) (p point, err error) {
	if _, err := fmt.Sscanf(strings.TrimPrefix(name, metaPoint), "%016x", &p.Txid); err != nil || len(v) != pointSize {
		return p, fmt.Errorf("%w: point %q holds %d bytes", wal.ErrDamaged, name, len(v))
	}
	p.index, p.time = binary.BigEndian.Uint64(v), int64(binary.BigEndian.Uint64(v[8:]))
	p.bytes, p.Digest = binary.BigEndian.Uint64(v[16:]), wal.Digest(v[24:])
	return p, nil
}

// addPoint takes note of a batch of transactions that was applied. r.mu is held.
func (r *replica) addPoint(e raftstore.Committed, b wal.Batch) {
	if n := len(r.points); n > 0 && r.points[n-1].Txid == b.First-1 {
		r.points[n-1].index = e.Index - 1
	}
	if r.first == b.First && r.first > 1 { // what lies before the first one kept is of no use
		r.cutThrough(e.Index - 1)
	}
	if r.newest.time == 0 {
		r.newest = place{b.Time, r.bytes}
	}
	r.bytes += uint64(len(e.Data))
	r.behind = 0
	if (b.First-1)/r.every != b.Last()/r.every || r.bytes-r.newest.bytes >= pointBytes || r.lastTime-r.newest.time >= pointTime {
		r.points = append(r.points, point{wal.Base{Txid: b.Last(), Digest: r.digest}, e.Index, r.lastTime, r.bytes})
		r.newest = place{r.lastTime, r.bytes}
		r.thin()
	}
}

// addOther takes note of another entry that was applied. r.mu is held.
func (r *replica) addOther(e raftstore.Committed) {
	r.index = e.Index
	r.bytes += uint64(len(e.Data))
	r.behind += uint64(len(e.Data))
}

// thin drops points if there are too many, so that the distance between them grows
// with their age, to about a hundredth of it. r.mu is held.
func (r *replica) thin() {
	for len(r.points) > 2*mostPoints { // of a node that kept them all
		var kept []point
		for i := 0; i < len(r.points); i += 2 {
			kept = append(kept, r.points[i])
		}
		r.points, r.thinned = kept, true
	}
	for len(r.points) > mostPoints {
		least, closest := 0, math.Inf(1)
		for i := 1; i < len(r.points)-1; i++ {
			gap, age := r.points[i+1].bytes-r.points[i-1].bytes, r.bytes-r.points[i].bytes
			if share := float64(gap) / float64(age); share < closest {
				least, closest = i, share
			}
		}
		r.points, r.thinned = slices.Delete(r.points, least, least+1), true
	}
}

// cutThrough has the log cut, by retain. r.mu is held.
func (r *replica) cutThrough(index uint64) {
	r.cut = index
	select {
	case r.trimmed <- struct{}{}:
	default:
	}
}

// restorePoints reads the points that were stored with the mark. r.mu is held.
func (r *replica) restorePoints() error {
	for name, v := range r.log.Metas(metaPoint) {
		p, err := decodePoint(name, v)
		if err != nil {
			return err
		}
		if p.Txid >= r.first {
			r.points = append(r.points, p)
		}
	}
	slices.SortFunc(r.points, func(a, b point) int { return int(a.index) - int(b.index) })
	return nil
}

// markPoints returns what the stored points lack, and those to be deleted that
// were trimmed or thinned out. r.mu is held.
func (r *replica) markPoints() []wal.Meta {
	var metas []wal.Meta
	held := make(map[string]bool, len(r.points))
	for _, p := range slices.Backward(r.points) {
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
	for _, p := range r.points {
		held[p.name()] = true
	}
	r.thinned = false // unless a mark with the deletions is still to be stored
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

// applyTrims moves the beginning of the log, on every replica alike: it cuts at
// the last point below the record's txid. What the replica remembers of the
// transactions before goes at the same place of the log, since neither a restart nor
// another replica could get it back from what is kept.
//
// The leader that made the record has seen to it that no message id goes that still
// counts. It alone does: if a follower remembered them for longer, it would forget
// here what its leader did not need any more.
func (r *replica) applyTrims(e raftstore.Committed, b wal.Batch) (applied, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.certifier.advance(b.Time)
	records := b.Read()
	for record, ok := records.NextRaw(); ok; record, ok = records.NextRaw() {
		if len(record) != 8 {
			return applied{}, fmt.Errorf("%w: trim record of %d bytes", wal.ErrDamaged, len(record))
		}
		r.trim(binary.BigEndian.Uint64(record), e.Index)
	}
	r.addOther(e)
	return applied{}, records.Err()
}

// trim gives up what lies before the last point below a txid. If the log holds no
// transaction from that txid on, entry index, which says so, is such a point.
func (r *replica) trim(keep, index uint64) {
	n := 0
	for n < len(r.points) && r.points[n].Txid < keep {
		n++
	}
	var at point
	switch last := r.mark.Load(); {
	case keep > last && last > 0:
		at = point{Base: wal.Base{Txid: last, Digest: r.digest}, index: index - 1}
		r.newest = place{r.lastTime, r.bytes}
	case n == 0:
		return
	default:
		at = r.points[n-1]
	}
	r.points = slices.Clone(r.points[n:])
	r.first, r.base = at.Txid+1, at.Base
	r.certifier.forget(r.first)
	r.cutThrough(at.index)
}

// cuttable returns the last point at which the log would be cut by age or size,
// as the txid to keep from; 0 if there is none. olderThan is Unix nanoseconds.
func (r *replica) cuttable(olderThan int64, keepBytes uint64) (keep uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	goes := func(at int64, bytes uint64) bool {
		return (olderThan == 0 || at < olderThan) && (keepBytes == 0 || bytes+keepBytes <= r.bytes)
	}
	for _, p := range r.points {
		if !goes(p.time, p.bytes) {
			return keep
		}
		keep = p.Txid + 1
	}
	if last := r.mark.Load(); last > 0 && goes(r.lastTime, r.bytes-r.behind) {
		return last + 1
	}
	return keep
}

// retain cuts the log's head as trims are applied, until stop is closed. A
// snapshot goes before each cut, so that a restart needs nothing that is gone.
func (p *partition) runTrims(stop <-chan struct{}) {
	for told := uint64(0); ; {
		told = p.cut(told)
		select {
		case <-stop:
			return
		case <-p.replica.trimmed:
		}
	}
}

// cut cuts the log if it is to be, and tells of it unless told is the oldest
// transaction kept, which it returns.
func (p *partition) cut(told uint64) uint64 {
	r := p.replica
	r.mu.Lock()
	through, txid := r.cut, r.first
	r.mu.Unlock()
	if through == 0 || p.store.FirstIndex() > through {
		return told
	}
	step := p.host.trimming
	if step == nil {
		step = func(string) {}
	}
	step("mark")
	err := p.group.Snapshot()
	if err == nil {
		step("cut")
		err = p.group.Trim(through)
	}
	if err != nil {
		p.log.Warn("trimmed transactions keep their space for now", "err", err)
		return told
	}
	if txid != told {
		p.log.Info("trimmed", "first_txid", txid)
		p.host.advise("trim", map[string]any{"partition": p.id, "first_txid": txid})
	}
	return txid
}

func trimRecord(keep uint64) []byte { return binary.BigEndian.AppendUint64(nil, keep) }
