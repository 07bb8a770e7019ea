package broker

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/wal"
)

// point is a place where the log can be cut: the end of a batch, and what has
// to be known of the log before it. The points are the same on every replica,
// since they follow from txids.
type point struct {
	wal.Base        // the txid and the digest there
	index    uint64 // of the batch's entry
	time     int64  // of the batch
	bytes    uint64 // of all batches up to it
}

// pointEvery is about how many transactions are between points: a batch that
// a multiple of it lies in ends in one.
const pointEvery = 1 << 16

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

// addPoint takes note of a batch that was applied. r.mu is held.
func (r *replica) addPoint(e raftstore.Committed, b wal.Batch) {
	r.bytes += uint64(len(e.Data))
	if (b.First-1)/pointEvery != b.Last()/pointEvery {
		r.points = append(r.points, point{wal.Base{Txid: b.Last(), Digest: r.digest}, e.Index, b.Time, r.bytes})
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

// markPoints gives what the stored points lack, and the trimmed ones to be
// deleted. r.mu is held.
func (r *replica) markPoints() []wal.Meta {
	var metas []wal.Meta
	for _, p := range slices.Backward(r.points) {
		if r.log.Meta(p.name()) != nil {
			break
		}
		metas = append(metas, p.meta())
	}
	base := wal.EncodeBase(r.base)
	if r.base.Txid == 0 || bytes.Equal(base, r.log.Meta(metaBase)) {
		return metas
	}
	for name := range r.log.Metas(metaPoint) {
		if name <= (point{Base: r.base}).name() {
			metas = append(metas, wal.Meta{Name: name})
		}
	}
	return append(metas, wal.Meta{Name: metaBase, Value: base})
}

// applyTrims moves the beginning of the log. It cuts at the last point before
// what is still asked for, on every replica alike.
func (r *replica) applyTrims(e raftstore.Committed, b wal.Batch) (applied, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	records := b.Read()
	for record, ok := records.NextRaw(); ok; record, ok = records.NextRaw() {
		if len(record) != 8 {
			return applied{}, fmt.Errorf("%w: trim record of %d bytes", wal.ErrDamaged, len(record))
		}
		r.trim(binary.BigEndian.Uint64(record))
	}
	r.index = e.Index
	select {
	case r.trimmed <- struct{}{}:
	default:
	}
	return applied{}, records.Err()
}

// trim gives up what lies before the last point below a txid.
func (r *replica) trim(keep uint64) {
	n := 0
	for n < len(r.points) && r.points[n].Txid < keep {
		n++
	}
	if n == 0 {
		return
	}
	at := r.points[n-1]
	r.points = slices.Clone(r.points[n:])
	r.first, r.base, r.cut = at.Txid+1, at.Base, at.index
}

// cuttable gives the last point at which the log would be cut by age or size,
// as the txid to keep from; 0 if there is none. olderThan is Unix nanoseconds.
func (r *replica) cuttable(olderThan int64, keepBytes uint64) (keep uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.points {
		if olderThan > 0 && p.time >= olderThan || keepBytes > 0 && p.bytes+keepBytes > r.bytes {
			break
		}
		keep = p.Txid + 1
	}
	return keep
}

// retain cuts the log's head as trims are applied, until stop is closed. A
// marker goes before each cut, so that a restart needs nothing that is gone.
func (p *partition) retain(stop <-chan struct{}) {
	for {
		p.cut()
		select {
		case <-stop:
			return
		case <-p.replica.trimmed:
		}
	}
}

func (p *partition) cut() {
	r := p.replica
	r.mu.Lock()
	through, txid := r.cut, r.first
	r.mu.Unlock()
	if through == 0 || p.store.FirstIndex() > through {
		return
	}
	err := p.group.Mark()
	if err == nil {
		err = p.group.Trim(through)
	}
	if err != nil {
		p.log.Warn("trimmed transactions keep their space for now", "err", err)
		return
	}
	p.log.Info("trimmed", "first_txid", txid)
	p.node.advise("trim", map[string]any{"partition": p.id, "first_txid": txid})
}

func trimRecord(keep uint64) []byte { return binary.BigEndian.AppendUint64(nil, keep) }
