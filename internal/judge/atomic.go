package judge

import (
	"fmt"
	"slices"
)

// Atomic is the range of txids of an atomic batch.
type Atomic struct {
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
}

// atomic returns the range of the transaction's atomic batch, that of the
// transaction alone if it is in none.
func (s *Stored) atomic() Atomic {
	if s.Atomic == nil {
		return Atomic{s.Txid, s.Txid}
	}
	return *s.Atomic
}

func (a Atomic) String() string { return fmt.Sprintf("%d-%d", a.First, a.Last) }

// whole returns what a client sent with an atomic batch as if it were one
// transaction: refusals are about that.
func (o *Operation) whole() *Transaction {
	t := o.Batch[0]
	t.Content, t.Headers = "", ""
	t.Write, t.Read, t.Append = nil, nil, nil
	for i := range o.Batch {
		b := &o.Batch[i]
		t.Write, t.Read, t.Append = append(t.Write, b.Write...), append(t.Read, b.Read...), append(t.Append, b.Append...)
	}
	return &t
}

// key identifies what the client may send again, "" if it may not. An atomic
// batch has its message id in its first transaction alone.
func (a *attempt) key() string {
	if a.Operation.Atomic && a.Batch[0].ID != "" {
		return fmt.Sprintf("%s, %d of %d", a.Batch[0].ID, a.index, len(a.Batch))
	}
	return a.tx.ID
}

// checkAtomic checks that each atomic batch is in the log in one piece, that
// nobody saw a part of one, and that its answers say so.
func (p *partition) checkAtomic() {
	for i, t := range p.log {
		a := t.atomic()
		if a.First > t.Txid || a.Last < t.Txid || t.Atomic != nil && a.First == a.Last {
			p.find(AtomicTorn, "txid %d says that it is in the atomic batch %v", t.Txid, a)
			continue
		}
		if a.First < t.Txid && (i == 0 || p.log[i-1].Txid != t.Txid-1 || p.log[i-1].atomic() != a) {
			p.find(AtomicTorn, "txid %d is in the atomic batch %v, and txid %d is not", t.Txid, a, t.Txid-1)
		}
		if a.Last > t.Txid && (i == len(p.log)-1 || p.log[i+1].Txid != t.Txid+1 || p.log[i+1].atomic() != a) {
			p.find(AtomicTorn, "txid %d is in the atomic batch %v, and txid %d is not", t.Txid, a, t.Txid+1)
		}
	}
	seen := func(mark *uint64, what string, when int64) {
		if mark == nil {
			return
		}
		if t := at(p.log, *mark); t != nil && t.atomic().Last > *mark {
			p.find(AtomicSeen, "%s at %d has the high-water mark %d, within the atomic batch %v", what, when, *mark, t.atomic())
		}
	}
	for _, o := range p.operations {
		seen(o.HighWaterMark, o.Client+"'s answer", o.End)
	}
	for _, d := range p.drains {
		seen(&d.HighWaterMark, "the log of "+d.Replica, 0)
	}
	for i := range p.attempts {
		if a := &p.attempts[i]; a.acknowledged() {
			p.checkPlace(a)
		}
	}
}

// checkPlace compares the place of an acknowledged transaction in its atomic
// batch with that in the log.
func (p *partition) checkPlace(a *attempt) {
	want := Atomic{a.result.Txid, a.result.Txid}
	if a.Operation.Atomic {
		want.First = a.Results[0].Txid
		want.Last = want.First + uint64(len(a.Batch)) - 1
		if a.result.Txid != want.First+uint64(a.index) || a.result.Duplicate != a.Results[0].Duplicate {
			p.find(AtomicTorn, "%v has txid %d, and the atomic batch begins at %d", a, a.result.Txid, want.First)
			return
		}
	}
	if t := at(p.log, a.result.Txid); t != nil && t.atomic() != want {
		p.find(AtomicTorn, "%v has txid %d, in the atomic batch %v: it was sent in one that would be %v", a, t.Txid, t.atomic(), want)
	}
}

// rest returns the transactions of the log from position i on that are in the
// same atomic batch.
func (p *partition) rest(i int) []*Stored {
	a := p.log[i].atomic()
	n := slices.IndexFunc(p.log[i:], func(t *Stored) bool { return t.Txid > a.Last })
	if n < 0 {
		return p.log[i:]
	}
	return p.log[i : i+n]
}
