package broker

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cantuslog/cantus/wal"
)

// chainPoint is a point of a replica's digest chain: the end of a batch, and
// the index of the entry that holds it, 0 if that is not known.
type chainPoint struct {
	wal.Base
	Index uint64 `json:",omitempty"`
}

// digests remembers the newest points of a replica's digest chain, so that
// replicas can compare theirs.
type digests struct {
	mu     sync.Mutex
	points []chainPoint // rising
	// Of the entries behind since, up to applied, all that hold a batch which
	// counts are among points.
	since, applied uint64
}

const (
	// digestPoints is how many batches back a comparison reaches.
	digestPoints = 1024
	// digestsSaid is how many points a hello carries: the end, and some before
	// it that others will have got to.
	digestsSaid = 4
)

// begin begins at a point that a snapshot holds, with all before an index behind
// it. Tests do without digests.
func (d *digests) begin(b wal.Base, index uint64) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.points, d.since, d.applied = []chainPoint{{Base: b}}, index, index
}

func (d *digests) add(p chainPoint) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.points) == digestPoints {
		const half = digestPoints / 2
		d.since = max(d.since, d.points[half-1].Index)
		d.points = slices.Clone(d.points[half:])
	}
	d.points = append(d.points, p)
}

// passed notes that an entry was applied, whether it counts or not.
func (d *digests) passed(index uint64) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.applied = index
}

// newest returns the points to tell others.
func (d *digests) newest() []chainPoint {
	d.mu.Lock()
	defer d.mu.Unlock()
	var said []chainPoint
	for i, back := len(d.points)-1, 1; i >= 0 && len(said) < digestsSaid; i, back = i-back, back*4 {
		said = append(said, d.points[i])
	}
	return said
}

// comparison is what comes of comparing chains.
type comparison uint8

const (
	nothing comparison = iota // no txid is known to both
	equal
	different
)

// compare compares another replica's points with this one's, and returns the
// txid of the first that differs. They differ if there are two digests at one
// txid, if one batch is in two entries, or if this replica has applied the
// entry of a batch and did not count it.
func (d *digests) compare(theirs []chainPoint) (comparison, uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	result := nothing
	for _, t := range theirs {
		i, ok := slices.BinarySearchFunc(d.points, t.Txid, func(p chainPoint, txid uint64) int { return cmp.Compare(p.Txid, txid) })
		switch {
		case ok && d.points[i].Digest != t.Digest:
			return different, t.Txid
		case ok && t.Index != 0 && d.points[i].Index != 0 && d.points[i].Index != t.Index:
			return different, t.Txid
		case ok:
			result = equal
		case t.Index > d.since && t.Index <= d.applied:
			return different, t.Txid
		}
	}
	return result, 0
}

const metaFenced = "fenced"

var errFenced = errors.New("broker: replica is fenced")

// fence ends the replica's part in its group for good: it neither votes nor
// leads nor acknowledges until an operator has it rebuilt.
func (p *partition) fence(why string) { p.ceaseFor(why, true) }

// retire ends the replica's service and has its leader take its vote, so that it
// can be rebuilt. Until then it votes and acknowledges.
func (p *partition) retire(why string) { p.ceaseFor(why, false) }

func (p *partition) ceaseFor(why string, halts bool) {
	if !p.fenced.CompareAndSwap(nil, &why) {
		return
	}
	<-p.opened
	if halts && p.group != nil {
		p.group.Halt(fmt.Errorf("%w: %s", errFenced, why))
	}
	p.log.Error("replica fenced: it takes no part until it is rebuilt from the others (cantus cluster rebuild); keep a copy of the data directory first: it may hold what they have lost", "because", why)
	p.host.advise("diverged", map[string]any{"partition": p.id, "because": why})
	p.host.metrics.diverged.WithLabelValues(label(p.id)).Set(1)
	if end := p.endSession.Load(); end != nil {
		(*end)(errFenced)
	}
	p.host.background(func() {
		if err := p.store.SetMeta(wal.Meta{Name: metaFenced, Value: []byte(why)}); err != nil {
			p.log.Warn("the fence is not written down", "err", err)
		}
	})
}
