package judge

import (
	"cmp"
	"slices"

	"github.com/cantuslog/cantus/subjects"
)

// checkReads checks what reads and gets returned.
func (p *partition) checkReads() {
	var notFound []*Operation
	for _, o := range p.operations {
		switch {
		case o.Get != nil && o.Outcome == Refused && o.Error.Reason == subjects.NotFound && o.HighWaterMark != nil:
			notFound = append(notFound, o)
		case o.Outcome != OK:
		case o.Read != nil:
			p.checkRead(o)
		case o.Get != nil:
			p.checkGet(o)
		}
	}
	p.checkNotFound(notFound)
}

func (p *partition) checkRead(o *Operation) {
	for _, t := range o.Read.Transactions {
		p.checkStored(o, t)
	}
	if o.Read.Next > p.known+1 && o.Read.Next > o.Read.From {
		p.find(ReadBeyond, "%s's read at %d goes on at %d: the log ends at %d", o.Client, o.Start, o.Read.Next, p.known)
	} else if o.Read.filtered() {
		p.checkFiltered(o)
	} else {
		p.checkWhole(o)
	}
}

// checkStored compares a transaction that was returned with the log.
func (p *partition) checkStored(o *Operation, t *Stored) {
	stored := at(p.log, t.Txid)
	if stored == nil {
		if t.Txid > p.known {
			p.find(ReadBeyond, "%s at %d was given txid %d: the log ends at %d", o.Client, o.Start, t.Txid, p.known)
		}
		return // it is trimmed or lost
	}
	if diff := t.difference(stored); diff != "" {
		p.find(ReadDiffers, "%s at %d was given txid %d with %s than the log has", o.Client, o.Start, t.Txid, diff)
	}
}

// checkWhole checks that a read without filters has no gap.
func (p *partition) checkWhole(o *Operation) {
	next := o.Read.From
	check := func(txid uint64) bool {
		switch {
		case txid > next:
			p.find(ReadGap, "%s's read at %d from %d goes from %d to %d", o.Client, o.Start, o.Read.From, next-1, txid)
		case txid < next:
			p.find(ReadOrder, "%s's read at %d from %d goes back from %d to %d", o.Client, o.Start, o.Read.From, next-1, txid)
		}
		next++
		return txid == next-1
	}
	for _, t := range o.Read.Transactions {
		if !check(t.Txid) {
			return
		}
	}
	check(o.Read.Next)
}

// checkFiltered checks that a filtered read has all that passes the filters,
// and nothing else.
func (p *partition) checkFiltered(o *Operation) {
	r := o.Read
	before := r.From - 1
	for _, t := range r.Transactions {
		if t.Txid <= before || t.Txid >= r.Next {
			p.find(ReadOrder, "%s's read at %d from %d to %d has txid %d after %d", o.Client, o.Start, r.From, r.Next, t.Txid, before)
			return
		}
		if !r.matches(t) {
			p.find(ReadUnmatched, "%s's read at %d has txid %d, which does not pass its filters", o.Client, o.Start, t.Txid)
			return
		}
		before = t.Txid
	}
	i, _ := slices.BinarySearchFunc(p.log, r.From, func(t *Stored, txid uint64) int { return cmp.Compare(t.Txid, txid) })
	for _, t := range p.log[i:] {
		if t.Txid >= r.Next {
			return
		}
		if r.matches(t) && at(r.Transactions, t.Txid) == nil {
			p.find(ReadIncomplete, "%s's read at %d from %d to %d leaves out txid %d", o.Client, o.Start, r.From, r.Next, t.Txid)
			return
		}
	}
}

func (p *partition) checkGet(o *Operation) {
	g := o.Get
	p.checkStored(o, g.Transaction)
	if g.Txid > 0 && g.Txid != g.Transaction.Txid || g.Lock != "" && !g.Transaction.records(g.Lock) {
		p.find(GetUnmatched, "%s's get of txid %d, lock %q, at %d returned txid %d", o.Client, g.Txid, g.Lock, o.Start, g.Transaction.Txid)
	}
}

// checkNotFound checks gets by locks that found nothing: if nothing can have
// been forgotten, no transaction up to the answer's high-water mark had
// recorded the lock.
func (p *partition) checkNotFound(gets []*Operation) {
	if len(gets) == 0 || p.locks >= p.header.Locks || p.allowed > 1 {
		return
	}
	slices.SortStableFunc(gets, func(a, b *Operation) int { return cmp.Compare(*a.HighWaterMark, *b.HighWaterMark) })
	var tree lockTree
	rest := p.log
	for _, o := range gets {
		for len(rest) > 0 && rest[0].Txid <= *o.HighWaterMark {
			for name := range rest[0].recorded {
				tree.record(name, rest[0])
			}
			rest = rest[1:]
		}
		if n := tree.newest(o.Get.Lock, ""); n > 0 {
			p.find(NotFoundFalse, "%s's get of lock %q at %d found nothing at high-water mark %d: txid %d had recorded it", o.Client, o.Get.Lock, o.Start, *o.HighWaterMark, n)
		}
	}
}
