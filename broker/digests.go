package broker

import (
	"cmp"
	"slices"
	"sync"

	"github.com/cantuslog/cantus/wal"
)

// chainPoint is a point of a replica's digest chain: the digest at the end of a
// batch, and the index of the batch's entry, 0 if it is not known.
type chainPoint struct {
	wal.Base
	Index uint64 `json:",omitempty"`
}

// digests remembers the newest points of a replica's digest chain, for
// comparison with other replicas.
type digests struct {
	mu     sync.Mutex
	points []chainPoint // in ascending order
	// The batch of every entry after since, up to applied, is among points
	// unless it was void.
	since, applied uint64
	begun          uint64 // the newest entry that the snapshot covered
}

const (
	// digestPoints is how many batches are remembered at most.
	digestPoints = 1024
	// digestsSent is how many points an announcement carries: the newest, and
	// some older ones that replicas which are behind have as well.
	digestsSent = 4
)

// begin starts the chain at the point of a snapshot that covers the entries up
// to index. d may be nil, in tests.
func (d *digests) begin(b wal.Base, index uint64) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.points, d.since, d.applied, d.begun = []chainPoint{{Base: b}}, index, index, index
}

// covered returns the newest entry that was covered by the snapshot which the
// chain begins at.
func (d *digests) covered() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.begun
}

// add adds the next point.
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

// setApplied records that an entry was applied, whether its batch is void or
// not.
func (d *digests) setApplied(index uint64) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.applied = index
}

// newest returns the points for an announcement.
func (d *digests) newest() []chainPoint {
	d.mu.Lock()
	defer d.mu.Unlock()
	var sent []chainPoint
	for i, back := len(d.points)-1, 1; i >= 0 && len(sent) < digestsSent; i, back = i-back, back*4 {
		sent = append(sent, d.points[i])
	}
	return sent
}

// comparison is the result of comparing digest chains.
type comparison uint8

const (
	nothing comparison = iota // no txid is known to both
	equal
	different
)

// compare compares another replica's points with this one's, and returns the
// txid of the first that differs. The logs differ if they have two digests at
// one txid, if they have one batch in two entries, or if this replica has
// applied the entry of a point and has no batch there.
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
