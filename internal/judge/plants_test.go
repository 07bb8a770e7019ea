package judge_test

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cantuslog/cantus/internal/judge"
	"github.com/cantuslog/cantus/subjects"
)

// planter changes a correct history in one way.
type planter struct {
	*rand.Rand
	h *judge.History
}

// pick returns an operation at random of those that pass a test, nil if none
// does.
func (p *planter) pick(is func(*judge.Operation) bool) *judge.Operation {
	for _, i := range p.Perm(len(p.h.Operations)) {
		if o := p.h.Operations[i]; is(o) {
			return o
		}
	}
	return nil
}

// drain returns the log of a replica at random.
func (p *planter) drain() *judge.Drain { return p.h.Drains[p.IntN(len(p.h.Drains))] }

// drains returns the logs of all replicas of a partition.
func (p *planter) drains(partition int) []*judge.Drain {
	return p.h.Drains[replicas*partition : replicas*(partition+1)]
}

// stored returns the transaction with a txid.
func (p *planter) stored(partition int, txid uint64) *judge.Stored {
	for _, t := range p.drains(partition)[0].Transactions {
		if t.Txid == txid {
			return t
		}
	}
	return nil
}

// change replaces a transaction in one replica's log by a changed copy.
func change(d *judge.Drain, i int, by func(*judge.Stored)) {
	t := *d.Transactions[i]
	by(&t)
	d.Transactions[i] = &t
}

// acknowledged returns an operation that acknowledged a txid, nil if there is
// none.
func (p *planter) acknowledged(partition int, txid uint64) *judge.Operation {
	return p.pick(func(o *judge.Operation) bool {
		return o.Partition == partition && (o.Append != nil && o.Outcome == judge.OK && o.Txid == txid ||
			slices.ContainsFunc(o.Results, func(r judge.Result) bool { return r.Outcome == judge.OK && r.Txid == txid }))
	})
}

// fresh reports whether an operation appended a transaction with an id that no
// other operation has.
func (p *planter) fresh(o *judge.Operation) bool {
	if o.Append == nil || o.Outcome != judge.OK || o.Duplicate || o.Append.ID == "" || p.stored(o.Partition, o.Txid) == nil {
		return false
	}
	same := func(t *judge.Transaction) bool { return t.ID == o.Append.ID }
	return !slices.ContainsFunc(p.h.Operations, func(b *judge.Operation) bool {
		return b != o && (b.Append != nil && same(b.Append) || slices.ContainsFunc(b.Batch, func(t judge.Transaction) bool { return same(&t) }))
	})
}

// only returns a copy of a transaction with an id of its own and no locks.
func only(id string) *judge.Transaction { return &judge.Transaction{ID: id, Content: "of " + id} }

// ok reports whether an operation has a reply of its own.
func ok(o *judge.Operation) bool { return o.Outcome == judge.OK }

// add adds an operation.
func (p *planter) add(o *judge.Operation) bool {
	o.Client = "planter"
	p.h.Operations = append(p.h.Operations, o)
	return true
}

// end returns a time after all operations.
func (p *planter) end() (at int64) {
	for _, o := range p.h.Operations {
		at = max(at, o.End)
	}
	return at + 1
}

// last returns the last txid of a partition.
func (p *planter) last(partition int) uint64 { return p.drains(partition)[0].HighWaterMark }

// cutTail removes the last n transactions of a replica's log.
func (p *planter) cutTail(d *judge.Drain, n int) {
	d.Transactions = d.Transactions[:len(d.Transactions)-n]
	d.HighWaterMark -= uint64(n)
	d.Digest = digest(d.Partition, d.HighWaterMark)
}

// cutHead removes the first n.
func (p *planter) cutHead(d *judge.Drain, n int) {
	d.Transactions = d.Transactions[n:]
	d.FirstTxid += uint64(n)
}

// grow appends a transaction to all replicas of a partition.
func (p *planter) grow(partition int, t *judge.Transaction) *judge.Stored {
	s := &judge.Stored{Transaction: *t}
	for _, d := range p.drains(partition) {
		before := d.Transactions[len(d.Transactions)-1]
		s.Txid, s.Time = before.Txid+1, before.Time+1000
		d.Transactions = append(d.Transactions, s)
		d.HighWaterMark, d.Digest = s.Txid, digest(partition, s.Txid)
	}
	return s
}

// sent adds the acknowledged append of a transaction at the end.
func (p *planter) sent(partition int, t *judge.Transaction, txid uint64) *judge.Operation {
	at := p.end()
	o := &judge.Operation{Partition: partition, Start: at, End: at + 10, Append: t, Result: judge.Result{Outcome: judge.OK, Txid: txid}}
	p.add(o)
	return o
}

// TestPlants checks that the judge names the class of each error that is
// planted in a correct history, and no other.
func TestPlants(t *testing.T) {
	planted := map[judge.Class]bool{}
	for _, plants := range [][]plant{replicaPlants, appendPlants, refusalPlants, readPlants, cursorPlants, sessionPlants, movePlants} {
		for _, plant := range plants {
			planted[plant.class] = true
			t.Run(string(plant.class)+"/"+plant.name, func(t *testing.T) { plant.test(t) })
		}
	}
	for _, c := range judge.Classes() {
		if !planted[c] {
			t.Errorf("no plant is %s", c)
		}
	}
}

// plant is one way to change a history.
type plant struct {
	class judge.Class
	name  string
	// in returns false if the history has no place for it.
	in func(*planter) bool
}

// alsoFound has other classes that a plant causes, by its name.
var alsoFound = map[string][]judge.Class{
	"without its last":   {judge.AtomicSeen},
	"acknowledged apart": {judge.LostTail, judge.Invented},
}

// newPlanter returns a planter with a correct history.
func newPlanter(seed uint64) *planter {
	return &planter{Rand: rand.New(rand.NewPCG(seed, 1)), h: generateWith(seed, 400, false)}
}

func (plant plant) test(t *testing.T) {
	found := 0
	for seed := range uint64(30) {
		p := newPlanter(seed)
		if !plant.in(p) {
			continue
		}
		r := judge.Check(p.h)
		others := maps.Clone(r.Count)
		delete(others, plant.class)
		for _, c := range alsoFound[plant.name] {
			delete(others, c)
		}
		if len(others) > 0 || r.Count[plant.class] == 0 {
			t.Errorf("seed %d: found %v", seed, r.Count)
			for _, f := range r.Findings {
				t.Logf("%s: %s", f.Class, f.Text)
			}
			return
		}
		if found++; found == 8 {
			return
		}
	}
	if found == 0 {
		t.Error("no history has a place for it")
	}
}

var replicaPlants = []plant{
	{judge.LostTail, "one replica", func(p *planter) bool {
		p.cutTail(p.drain(), 3)
		return true
	}},
	{judge.LostTail, "all replicas", func(p *planter) bool {
		for _, d := range p.drains(1) {
			p.cutTail(d, 3)
		}
		return true
	}},
	{judge.LostTail, "an answer beyond the log", func(p *planter) bool {
		p.sent(0, only("x"), p.last(0)+7)
		return true
	}},
	{judge.LostPrefix, "one replica", func(p *planter) bool {
		p.cutHead(p.drains(1)[2], 20)
		return true
	}},
	{judge.LostPrefix, "all replicas", func(p *planter) bool {
		for _, d := range p.drains(1) {
			p.cutHead(d, 20)
		}
		return true
	}},
	{judge.LostMiddle, "one replica", func(p *planter) bool {
		d := p.drain()
		d.Transactions = slices.Delete(d.Transactions, 10, 20)
		return true
	}},
	{judge.LostMiddle, "all replicas", func(p *planter) bool {
		for _, d := range p.drains(1) {
			d.Transactions = slices.Delete(d.Transactions, 10, 20)
		}
		return true
	}},
	{judge.TxidGap, "one replica", func(p *planter) bool {
		d := p.drain()
		for i, t := range d.Transactions {
			if i > 0 && p.acknowledged(d.Partition, t.Txid) == nil {
				d.Transactions = slices.Delete(d.Transactions, i, i+1)
				return true
			}
		}
		return false
	}},
	{judge.DrainMissing, "one replica", func(p *planter) bool {
		p.h.Drains = p.h.Drains[1:]
		return true
	}},
	{judge.ReplicaBehind, "one replica", func(p *planter) bool {
		p.grow(0, only("x"))
		p.add(&judge.Operation{Start: p.end(), End: p.end(), Append: only("x"), Result: judge.Result{Outcome: judge.Unknown}})
		p.cutTail(p.drains(0)[1], 1)
		return true
	}},
	{judge.ReplicaDiffers, "content", func(p *planter) bool {
		change(p.drain(), 5, func(t *judge.Stored) { t.Content = "other" })
		return true
	}},
	{judge.ReplicaDiffers, "headers", func(p *planter) bool {
		d := p.drain()
		p.stored(d.Partition, d.Transactions[5].Txid).Headers = "h"
		change(d, 5, func(t *judge.Stored) { t.Headers = "other" })
		return true
	}},
	{judge.ReplicaDiffers, "message id", func(p *planter) bool {
		change(p.drain(), 5, func(t *judge.Stored) { t.ID = "other" })
		return true
	}},
	{judge.ReplicaDiffers, "locks", func(p *planter) bool {
		change(p.drain(), 5, func(t *judge.Stored) { t.Transaction.Append = []string{"other"} })
		return true
	}},
	{judge.ReplicaDiffers, "time", func(p *planter) bool {
		change(p.drain(), 5, func(t *judge.Stored) { t.Time++ })
		return true
	}},
	{judge.ReplicaDiffers, "kind", func(p *planter) bool {
		change(p.drain(), 5, func(t *judge.Stored) { t.Kind = "other" })
		return true
	}},
	{judge.ReplicaDiffers, "mark", func(p *planter) bool {
		change(p.drain(), 5, func(t *judge.Stored) { t.HighWaterMark = new(uint64(77)) })
		return true
	}},
	{judge.DigestDiffers, "replica", func(p *planter) bool {
		p.drain().Digest = "other"
		return true
	}},
	{judge.DigestDiffers, "info", func(p *planter) bool {
		at := p.end()
		return p.add(&judge.Operation{Start: at, End: at, Info: &judge.Info{FirstTxid: 1, Digest: "other"},
			Result: judge.Result{Outcome: judge.OK, HighWaterMark: new(p.last(0))}})
	}},
	{judge.TxidOrder, "swapped", func(p *planter) bool {
		d := p.drain()
		d.Transactions[3], d.Transactions[4] = d.Transactions[4], d.Transactions[3]
		return true
	}},
	{judge.TxidOrder, "twice", func(p *planter) bool {
		d := p.drain()
		d.Transactions = slices.Insert(d.Transactions, 3, d.Transactions[3])
		return true
	}},
	{judge.MarkWrong, "last", func(p *planter) bool {
		d := p.drain()
		d.HighWaterMark, d.Digest = d.HighWaterMark+1, ""
		return true
	}},
	{judge.MarkWrong, "first", func(p *planter) bool {
		p.drains(1)[0].FirstTxid++
		return true
	}},
	{judge.TimeOrder, "same", func(p *planter) bool {
		a := p.grow(1, only("x"))
		b := p.grow(1, only("y"))
		for _, t := range []*judge.Stored{a, b} {
			p.sent(1, only(t.ID), t.Txid)
		}
		b.Time = a.Time
		return true
	}},
	{judge.TrimBeyond, "one replica, nothing acknowledged", func(p *planter) bool {
		for o := p.acknowledged(1, 1); o != nil; o = p.acknowledged(1, 1) {
			o.Result, o.Results = unknown, nil
		}
		p.cutHead(p.drains(1)[0], 1)
		return true
	}},
	{judge.TrimBeyond, "trim", func(p *planter) bool {
		return p.add(&judge.Operation{Partition: 1, Trim: &judge.Trim{Before: 1, FirstTxid: 9}, Result: judge.Result{Outcome: judge.OK}})
	}},
	{judge.TrimBeyond, "info", func(p *planter) bool {
		o := p.pick(func(o *judge.Operation) bool { return o.Info != nil && ok(o) && o.Partition == 1 })
		if o == nil {
			return false
		}
		o.Info.FirstTxid = 2
		return true
	}},
	{judge.TrimMissing, "one replica", func(p *planter) bool {
		at := p.end()
		p.add(&judge.Operation{Partition: 1, Start: at, End: at, Trim: &judge.Trim{Before: 10, FirstTxid: 9}, Result: judge.Result{Outcome: judge.OK}})
		for _, d := range p.drains(1)[1:] {
			p.cutHead(d, 8)
		}
		return true
	}},
}

var appendPlants = []plant{
	{judge.AcknowledgedOther, "content", func(p *planter) bool { return p.other(nil, func(t *judge.Transaction) { t.Content = "other" }) }},
	{judge.AcknowledgedOther, "headers", func(p *planter) bool {
		o := p.pick(p.fresh)
		p.stored(o.Partition, o.Txid).Headers = "h"
		return p.other(o, func(t *judge.Transaction) { t.Headers = "other" })
	}},
	{judge.AcknowledgedOther, "content of a duplicate", func(p *planter) bool {
		o := p.pick(p.fresh)
		twin := *o
		twin.Duplicate, twin.Append = true, only(o.Append.ID)
		return p.add(&twin)
	}},
	{judge.AcknowledgedOther, "kind", func(p *planter) bool { return p.other(nil, func(t *judge.Transaction) { t.Kind = "other" }) }},
	{judge.AcknowledgedOther, "append lock", func(p *planter) bool {
		return p.other(nil, func(t *judge.Transaction) { t.Append = []string{"other"} })
	}},
	{judge.AcknowledgedOther, "write lock", func(p *planter) bool { return p.other(nil, func(t *judge.Transaction) { t.Write = []string{"other"} }) }},
	{judge.AcknowledgedOther, "read lock", func(p *planter) bool { return p.other(nil, func(t *judge.Transaction) { t.Read = []string{"other"} }) }},
	{judge.AcknowledgedOther, "mark", func(p *planter) bool {
		return p.other(nil, func(t *judge.Transaction) { t.HighWaterMark = new(uint64(99999)) })
	}},
	{judge.AcknowledgedID, "another's txid", func(p *planter) bool {
		o := p.pick(p.fresh)
		a := p.sent(o.Partition, only("x"), o.Txid)
		a.Start, a.End = o.Start, o.End
		return true
	}},
	{judge.AcknowledgedTwice, "without ids", func(p *planter) bool {
		o := p.pick(func(o *judge.Operation) bool { return o.Append != nil && ok(o) && o.Append.ID == "" })
		if o == nil {
			return false
		}
		twin := *o
		return p.add(&twin)
	}},
	{judge.AcknowledgedTwice, "trimmed", func(p *planter) bool {
		o := p.pick(func(o *judge.Operation) bool { return o.Partition == 1 && p.fresh(o) && o.Txid <= 9 })
		if o == nil {
			return false
		}
		p.add(&judge.Operation{Partition: 1, Trim: &judge.Trim{Before: 10, FirstTxid: 10}, Result: judge.Result{Outcome: judge.OK}})
		for _, d := range p.drains(1) {
			p.cutHead(d, 9)
		}
		twin := *o
		twin.Append = only("x")
		return p.add(&twin)
	}},
	{judge.AcknowledgedTime, "later", func(p *planter) bool {
		p.pick(p.fresh).Time++
		return true
	}},
	{judge.DuplicateUnsaid, "repeat", func(p *planter) bool {
		o := p.pick(p.fresh)
		twin := *o
		twin.Start, twin.End = o.End+1, o.End+2
		return p.add(&twin)
	}},
	{judge.AppendedTwice, "within the window", func(p *planter) bool {
		o := p.pick(p.fresh)
		last := p.grow(o.Partition, &judge.Transaction{ID: o.Append.ID, Content: o.Append.Content})
		if old := p.stored(o.Partition, o.Txid); last.Time-old.Time > window {
			return false
		}
		p.sent(o.Partition, &last.Transaction, last.Txid)
		return true
	}},
	{judge.AppendedTwice, "at the window's end", func(p *planter) bool {
		t := only("x")
		a := p.grow(0, t)
		b := p.grow(0, t)
		b.Time = a.Time + window
		p.sent(0, t, a.Txid)
		p.sent(0, t, b.Txid)
		return true
	}},
	{judge.AppendedTwice, "the first was trimmed", func(p *planter) bool {
		t := only("x")
		a := p.grow(0, t)
		b := p.grow(0, t)
		b.Time = a.Time + window
		first, second := p.sent(0, t, a.Txid), p.sent(0, t, b.Txid)
		first.Time, second.Time = a.Time, b.Time
		p.add(&judge.Operation{Start: p.end(), End: p.end(), Trim: &judge.Trim{Before: b.Txid, FirstTxid: b.Txid}, Result: judge.Result{Outcome: judge.OK}})
		for _, d := range p.drains(0) {
			p.cutHead(d, len(d.Transactions)-1)
		}
		return true
	}},
	{judge.AppendedTwice, "without an answer", func(p *planter) bool {
		t := only("x")
		for range 2 {
			p.add(&judge.Operation{Start: p.end(), End: p.end(), Append: t, Result: judge.Result{Outcome: judge.Unknown}})
		}
		a := p.grow(0, t)
		p.grow(0, t).Time = a.Time + 1
		return true
	}},
	{judge.RefusedCommitted, "busy", func(p *planter) bool { return p.refused(subjects.Busy) }},
	{judge.RefusedCommitted, "conflict", func(p *planter) bool {
		t := only("x")
		t.HighWaterMark, t.Write = new(uint64(0)), []string{"a"}
		s := p.grow(1, &judge.Transaction{Append: []string{"a"}})
		p.sent(1, &s.Transaction, s.Txid)
		o := p.sent(1, t, 0)
		o.Result = refuse(subjects.Conflict)
		o.Error.Lock, o.Error.Txid = "a", s.Txid
		t = only("x") // its locks would be a conflict of their own
		p.grow(1, t)
		return true
	}},
	{judge.Invented, "with an id", func(p *planter) bool {
		p.grow(0, only("x"))
		return true
	}},
	{judge.Invented, "without an id", func(p *planter) bool {
		p.grow(0, &judge.Transaction{Content: "x"})
		return true
	}},
	{judge.Invented, "twice without an id", func(p *planter) bool {
		t := &judge.Transaction{Content: "x"}
		for range 2 {
			p.grow(0, t)
		}
		return p.add(&judge.Operation{Start: p.end(), End: p.end(), Append: t, Result: judge.Result{Outcome: judge.Unknown}})
	}},
	{judge.Invented, "acknowledged and once more", func(p *planter) bool {
		t := &judge.Transaction{Content: "x"}
		p.sent(0, t, p.grow(0, t).Txid)
		p.grow(0, t)
		return true
	}},
	{judge.Reordered, "two acknowledged", func(p *planter) bool {
		a, b := p.grow(0, only("x")), p.grow(0, only("y"))
		p.sent(0, only("y"), b.Txid)
		p.sent(0, only("x"), a.Txid)
		return true
	}},
	{judge.Reordered, "one without an answer", func(p *planter) bool {
		a, b := p.grow(0, only("x")), p.grow(0, only("y"))
		p.sent(0, only("y"), b.Txid)
		p.sent(0, only("x"), a.Txid).Result = judge.Result{Outcome: judge.Unknown}
		return true
	}},
	{judge.BatchOrder, "swapped", func(p *planter) bool {
		a, b := p.grow(0, only("x")), p.grow(0, only("y"))
		return p.add(&judge.Operation{Start: p.end(), End: p.end() + 1, Batch: []judge.Transaction{*only("y"), *only("x")},
			Result:  judge.Result{Outcome: judge.OK},
			Results: []judge.Result{{Outcome: judge.OK, Txid: b.Txid}, {Outcome: judge.OK, Txid: a.Txid}}})
	}},
	{judge.ExpiredMissed, "a second late", func(p *planter) bool {
		o := p.pick(p.fresh)
		o.Append.NotAfter = o.Time - 1_000_000_000
		return true
	}},
	{judge.AtomicTorn, "without its last", func(p *planter) bool {
		o, _ := p.atomic(2)
		o.Result, o.Results = judge.Result{Outcome: judge.Unknown}, nil
		for _, d := range p.drains(0) {
			p.cutTail(d, 1)
		}
		return true
	}},
	{judge.AtomicTorn, "one that is in none", func(p *planter) bool {
		_, t := p.atomic(3)
		t[1].Atomic = nil
		return true
	}},
	{judge.AtomicTorn, "other places than were sent", func(p *planter) bool {
		o, _ := p.atomic(2)
		o.Atomic = false
		return true
	}},
	{judge.AtomicTorn, "acknowledged apart", func(p *planter) bool {
		o, _ := p.atomic(3)
		o.Results[2].Txid++
		return true
	}},
	{judge.AtomicTorn, "a place outside", func(p *planter) bool {
		_, t := p.atomic(2)
		t[1].Atomic = &judge.Atomic{First: 1, Last: 2}
		return true
	}},
	{judge.AtomicSeen, "by an answer", func(p *planter) bool {
		_, t := p.atomic(2)
		return p.request(&judge.Operation{Append: only("z"), Result: judge.Result{Outcome: judge.Refused, Error: &subjects.Error{Reason: subjects.Busy}, HighWaterMark: new(t[0].Txid)}})
	}},
	{judge.ConflictMissed, "in an atomic batch", func(p *planter) bool {
		a := &judge.Transaction{Content: "a", Append: []string{"new.name"}}
		p.sent(0, a, p.grow(0, a).Txid)
		o, t := p.atomic(2)
		t[1].HighWaterMark, t[1].Read = new(uint64), []string{"new.name"}
		o.Batch[1] = t[1].Transaction
		return true
	}},
	{judge.ExpectedLastMissed, "one less", func(p *planter) bool {
		p.pick(p.fresh).Append.ExpectedLast = new(uint64(99999))
		return true
	}},
	{judge.ConflictMissed, "write lock", func(p *planter) bool { return p.dirty("write", "a.x", "a.x") }},
	{judge.ConflictMissed, "read lock", func(p *planter) bool { return p.dirty("read", "a.x", "a.x") }},
	{judge.ConflictMissed, "subtree", func(p *planter) bool { return p.dirty("write", "a.>", "a.x.9") }},
	{judge.ConflictMissed, "within a subtree", func(p *planter) bool { return p.dirty("write", "a.x.9", "a.>") }},
	{judge.ConflictMissed, "subtree within a subtree", func(p *planter) bool { return p.dirty("read", "a.x.>", "a.>") }},
	{judge.ConflictMissed, "everything", func(p *planter) bool { return p.dirty("read", ">", "new.name") }},
	{judge.AheadMissed, "its own txid", func(p *planter) bool {
		t := only("x")
		t.HighWaterMark = new(p.last(0) + 1)
		p.sent(0, t, p.grow(0, t).Txid)
		return true
	}},
}

// atomic appends an atomic batch of n transactions, and acknowledges it.
func (p *planter) atomic(n int) (*judge.Operation, []*judge.Stored) {
	o := &judge.Operation{Atomic: true, Start: p.end(), End: p.end() + 1, Result: judge.Result{Outcome: judge.OK}}
	var stored []*judge.Stored
	for i := range n {
		t := &judge.Transaction{Content: string(rune('A' + i))}
		o.Batch = append(o.Batch, *t)
		s := p.grow(0, t)
		stored = append(stored, s)
		o.Results = append(o.Results, judge.Result{Outcome: judge.OK, Txid: s.Txid})
	}
	for _, s := range stored {
		s.Atomic = &judge.Atomic{First: stored[0].Txid, Last: stored[n-1].Txid}
	}
	p.add(o)
	return o, stored
}

// other changes what a client says that it sent.
func (p *planter) other(o *judge.Operation, by func(*judge.Transaction)) bool {
	if o == nil {
		o = p.pick(p.fresh)
	}
	t := *o.Append
	by(&t)
	o.Append = &t
	return true
}

// refused has an append that was refused in the log.
func (p *planter) refused(r subjects.Reason) bool {
	p.grow(1, only("x"))
	p.sent(1, only("x"), 0).Result = refuse(r)
	return true
}

// dirty commits a transaction with a lock although another was recorded after
// its mark.
func (p *planter) dirty(mode, lock, recorded string) bool {
	a := &judge.Transaction{Content: "a", Append: []string{recorded}}
	p.sent(0, a, p.grow(0, a).Txid)
	b := &judge.Transaction{Content: "b", HighWaterMark: new(p.last(0) - 1)}
	if mode == "write" {
		b.Write = []string{lock}
	} else {
		b.Read = []string{lock}
	}
	p.sent(0, b, p.grow(0, b).Txid)
	return true
}
