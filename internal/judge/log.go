package judge

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// mergeDrains makes the log of what most replicas have at each txid. It sorts
// drains that are out of order.
func (p *partition) mergeDrains() {
	if n := p.header.Replicas; n > 0 && len(p.drains) != n && len(p.drains)+len(p.operations) > 0 {
		p.find(DrainMissing, "%d replicas were drained, and not %d", len(p.drains), n)
	}
	rest := make([][]*Stored, len(p.drains))
	for i, d := range p.drains {
		rest[i] = p.sorted(d)
	}
	for {
		next := uint64(math.MaxUint64)
		for _, r := range rest {
			if len(r) > 0 {
				next = min(next, r[0].Txid)
			}
		}
		var found []*Stored
		for i, r := range rest {
			if len(r) > 0 && r[0].Txid == next {
				found, rest[i] = append(found, r[0]), r[1:]
			}
		}
		if len(found) == 0 {
			break
		}
		p.log = append(p.log, majority(found))
	}
	if n := len(p.log); n > 0 {
		p.last = p.log[n-1].Txid
	}
	for _, d := range p.drains {
		if len(d.Transactions) == 0 {
			p.last = max(p.last, d.FirstTxid-min(1, d.FirstTxid))
		}
	}
	p.first = p.last + 1
	if len(p.log) > 0 {
		p.first = p.log[0].Txid
	}
}

// sorted returns a drain's transactions in ascending order, each once.
func (p *partition) sorted(d *Drain) []*Stored {
	ascend := func(a, b *Stored) int { return cmp.Compare(a.Txid, b.Txid) }
	for i := 1; i < len(d.Transactions); i++ {
		if txid, before := d.Transactions[i].Txid, d.Transactions[i-1].Txid; txid <= before {
			p.find(TxidOrder, "replica %s has txid %d after %d", d.Replica, txid, before)
			d.Transactions = slices.Clone(d.Transactions)
			slices.SortStableFunc(d.Transactions, ascend)
			d.Transactions = slices.CompactFunc(d.Transactions, func(a, b *Stored) bool { return a.Txid == b.Txid })
			break
		}
	}
	return d.Transactions
}

// majority returns the transaction that most have, the first of several.
func majority(all []*Stored) *Stored {
	best, most := all[0], 0
	for i, t := range all {
		n := 0
		for _, o := range all[i:] {
			if t.difference(o) == "" {
				n++
			}
		}
		if n > most {
			best, most = t, n
		}
	}
	return best
}

// collectTrims computes what may have been trimmed.
func (p *partition) collectTrims() {
	p.allowed = 1
	for _, o := range p.operations {
		switch {
		case o.Trim == nil || o.Outcome == Refused && !o.open():
		case o.Trim.Before > 0:
			p.allowed = max(p.allowed, o.Trim.Before)
		case o.Outcome == OK:
			p.allowed = max(p.allowed, o.Trim.FirstTxid)
		default:
			p.allowed = math.MaxUint64
		}
	}
}

// checkDrains compares each replica's log with what was acknowledged, with what
// was trimmed, and with the others.
func (p *partition) checkDrains() {
	acknowledged := make([]uint64, 0, len(p.byTxid))
	for txid := range p.byTxid {
		acknowledged = append(acknowledged, txid)
	}
	slices.Sort(acknowledged)
	removed := uint64(1)
	for _, o := range p.operations {
		if o.Trim == nil || o.Outcome != OK {
			continue
		}
		if first := o.Trim.FirstTxid; first > p.allowed {
			p.find(TrimBeyond, "%s's trim at %d removed what is below %d: nobody asked for more than %d", o.Client, o.Start, first, p.allowed)
		} else {
			removed = max(removed, first)
		}
	}
	for _, d := range p.drains {
		if d.FirstTxid < removed {
			p.find(TrimMissing, "replica %s begins at txid %d: a trim said that %d is the first", d.Replica, d.FirstTxid, removed)
		}
		p.checkEnds(d)
		p.checkMissing(d, acknowledged)
		for _, t := range d.Transactions {
			if diff := at(p.log, t.Txid).difference(t); diff != "" {
				p.find(ReplicaDiffers, "replica %s has txid %d with %s than most others", d.Replica, t.Txid, diff)
			}
		}
	}
	for i := 1; i < len(p.log); i++ {
		if t, before := p.log[i], p.log[i-1]; t.Time <= before.Time {
			p.find(TimeOrder, "txid %d has the time %d, txid %d before it %d", t.Txid, t.Time, before.Txid, before.Time)
		}
	}
}

// checkEnds checks a drain's first txid and high-water mark.
func (p *partition) checkEnds(d *Drain) {
	first, last := d.FirstTxid, d.FirstTxid-min(1, d.FirstTxid)
	if n := len(d.Transactions); n > 0 {
		first, last = d.Transactions[0].Txid, d.Transactions[n-1].Txid
	}
	if d.FirstTxid != first || d.HighWaterMark != last {
		p.find(MarkWrong, "replica %s says that it has txids %d to %d, and has %d to %d", d.Replica, d.FirstTxid, d.HighWaterMark, first, last)
	}
}

// checkMissing finds what a drain lacks. acknowledged are all acknowledged
// txids, in ascending order.
func (p *partition) checkMissing(d *Drain, acknowledged []uint64) {
	missing := func(from, to uint64, lost, other Class) {
		if from > to {
			return
		}
		i, _ := slices.BinarySearch(acknowledged, from)
		j, found := slices.BinarySearch(acknowledged, to)
		if found {
			j++
		}
		if i < j {
			p.find(lost, "replica %s lacks %s: acknowledged are %d, the first of them txid %d", d.Replica, txids(from, to), j-i, acknowledged[i])
		} else {
			p.find(other, "replica %s lacks %s", d.Replica, txids(from, to))
		}
	}
	first, before := d.FirstTxid, d.FirstTxid-min(1, d.FirstTxid)
	if len(d.Transactions) > 0 {
		first = d.Transactions[0].Txid
		before = first - 1
	}
	if first > 0 {
		missing(p.allowed, first-1, LostPrefix, TrimBeyond)
	}
	for _, t := range d.Transactions {
		if t.Txid > before+1 {
			missing(before+1, t.Txid-1, LostMiddle, TxidGap)
		}
		before = t.Txid
	}
	missing(before+1, p.known, LostTail, ReplicaBehind)
}

// txids names a range of txids.
func txids(from, to uint64) string {
	if from == to {
		return fmt.Sprintf("txid %d", from)
	}
	return fmt.Sprintf("txids %d to %d", from, to)
}

// checkDigests compares all digests at the same high-water mark.
func (p *partition) checkDigests() {
	type source struct{ digest, name string }
	first := map[uint64]source{}
	compare := func(mark uint64, digest, name string) {
		known, is := first[mark]
		switch {
		case digest == "":
		case !is:
			first[mark] = source{digest, name}
		case known.digest != digest:
			p.find(DigestDiffers, "at high-water mark %d %s has the digest %s, %s has %s", mark, known.name, known.digest, name, digest)
		}
	}
	for _, d := range p.drains {
		compare(d.HighWaterMark, d.Digest, "replica "+d.Replica)
	}
	for _, o := range p.operations {
		if o.Info != nil && o.Outcome == OK {
			compare(*o.HighWaterMark, o.Info.Digest, o.Client+"'s description of "+o.Info.Leader)
		}
	}
}
