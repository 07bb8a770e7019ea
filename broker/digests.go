package broker

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cantuslog/cantus/wal"
)

// digests remembers the newest points of a replica's digest chain, so that
// replicas can compare theirs at equal txids.
type digests struct {
	mu     sync.Mutex
	points []wal.Base // ends of batches, rising
}

const (
	// digestPoints is how many batches back a comparison reaches.
	digestPoints = 1024
	// digestsSaid is how many points a hello carries: the end, and some before
	// it that others will have got to.
	digestsSaid = 4
)

func (d *digests) add(b wal.Base) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.points) == digestPoints {
		d.points = slices.Clone(d.points[digestPoints/2:])
	}
	d.points = append(d.points, b)
}

// newest gives the points to tell others.
func (d *digests) newest() []wal.Base {
	d.mu.Lock()
	defer d.mu.Unlock()
	var said []wal.Base
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

// compare compares another replica's points with this one's, and gives the
// txid of the first that differs.
func (d *digests) compare(theirs []wal.Base) (comparison, uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	result := nothing
	for _, t := range theirs {
		i, ok := slices.BinarySearchFunc(d.points, t.Txid, func(b wal.Base, txid uint64) int {
			switch {
			case b.Txid < txid:
				return -1
			case b.Txid > txid:
				return 1
			}
			return 0
		})
		switch {
		case !ok:
		case d.points[i].Digest != t.Digest:
			return different, t.Txid
		default:
			result = equal
		}
	}
	return result, 0
}

const metaFenced = "fenced"

var errFenced = errors.New("broker: replica is fenced")

// compareDigests compares this node's replicas with those of a node that has
// said hello.
func (n *Node) compareDigests(h hello) {
	for _, r := range h.Groups {
		s := n.slot(r.Partition)
		if s == nil {
			continue
		}
		p := s.current()
		if p == nil || p.fenced.Load() != nil {
			continue
		}
		if result, txid := p.digests.compare(r.Digests); result == different {
			p.disagree(h.Name, txid)
		}
	}
}

// disagree decides who is wrong, this replica or the one on another node: the
// one that fewer agree with, or, if that leaves it open, the one that does
// not lead.
func (p *partition) disagree(other string, txid uint64) {
	agree, differ := 1, 0
	leaderDiffers := false
	for _, q := range p.node.peers.all(time.Now()) {
		r, has := p.node.peers.report(q.Name, p.id, time.Now())
		if !has || r.Fenced != "" {
			continue
		}
		switch result, _ := p.digests.compare(r.Digests); result {
		case equal:
			agree++
		case different:
			differ++
			leaderDiffers = leaderDiffers || r.leads()
		}
	}
	p.log.Warn("replicas have different logs", "other", other, "txid", txid, "agree", agree, "differ", differ)
	if differ > agree || differ == agree && leaderDiffers {
		p.fence(fmt.Sprintf("its log differs from that of %s at txid %d", other, txid))
	}
}

// fence ends the replica's service, until an operator has it rebuilt.
func (p *partition) fence(why string) {
	if !p.fenced.CompareAndSwap(nil, &why) {
		return
	}
	p.log.Error("replica fenced: rebuild it from the others", "because", why)
	p.node.advise("diverged", map[string]any{"partition": p.id, "because": why})
	p.node.metrics.diverged.WithLabelValues(label(p.id)).Set(1)
	if end := p.end.Load(); end != nil {
		(*end)(errFenced)
	}
	p.node.begin(func() {
		if err := p.store.SetMeta(wal.Meta{Name: metaFenced, Value: []byte(why)}); err != nil {
			p.log.Warn("the fence is not written down", "err", err)
		}
	})
}

// mend forgets a partition's fence, when its replica is thrown away.
func (n *Node) mend(partition int) {
	n.metrics.diverged.WithLabelValues(label(partition)).Set(0)
	if err := n.store.Log(uint32(partition)).SetMeta(wal.Meta{Name: metaFenced}); err != nil {
		n.log.Warn("the fence is still written down", "partition", partition, "err", err)
	}
}
