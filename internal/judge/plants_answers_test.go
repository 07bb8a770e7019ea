package judge_test

import (
	"slices"

	"github.com/cantuslog/cantus/internal/judge"
	"github.com/cantuslog/cantus/subjects"
)

// conflict adds an append that was refused for two locks, and returns the
// refusal for a change.
func (p *planter) conflict() (*judge.Operation, *subjects.Error) {
	a := &judge.Transaction{Content: "a", Append: []string{"p.1"}}
	b := &judge.Transaction{Content: "b", Write: []string{"p.2"}, HighWaterMark: new(p.last(1))}
	first, second := p.grow(1, a).Txid, p.grow(1, b).Txid
	p.sent(1, a, first)
	p.sent(1, b, second)
	t := only("refused")
	t.Write, t.Read, t.HighWaterMark = []string{"p.1", "q"}, []string{"p.>"}, new(first-1)
	o := p.sent(1, t, 0)
	o.Result = refuse(subjects.Conflict)
	o.Error.Lock, o.Error.Txid = "p.>", second
	o.Error.Conflicts = []subjects.ConflictingLock{{Lock: "p.>", Mode: "read", Txid: second}, {Lock: "p.1", Mode: "write", Txid: first}}
	return o, o.Error
}

// unmatched adds a transaction of kind "m" with the locks m.1 and m.2, and one
// after it that was acknowledged with a condition.
func (p *planter) unmatched(items ...subjects.QueryItem) {
	a := &judge.Transaction{Content: "a", Kind: "m", Append: []string{"m.1", "m.2"}}
	first := p.grow(1, a).Txid
	p.sent(1, a, first)
	b := &judge.Transaction{Content: "b", HighWaterMark: new(first - 1)}
	second := p.grow(1, b).Txid
	sent := *b
	sent.Unless = items
	p.sent(1, &sent, second)
}

// matched adds a transaction of kind "m" with the locks m.1 and m.2, and one
// after it that was refused because its condition matches that. It returns the
// refusal for a change.
func (p *planter) matched(items ...subjects.QueryItem) *subjects.Error {
	a := &judge.Transaction{Content: "a", Kind: "m", Append: []string{"m.1", "m.2"}}
	first := p.grow(1, a).Txid
	p.sent(1, a, first)
	t := only("refused")
	t.HighWaterMark, t.Unless = new(first-1), items
	o := p.refusal(1, t, subjects.Conflict)
	o.Error.Txid, o.Error.Unless = first, &subjects.MatchedCondition{Txid: first}
	return o.Error
}

// refusal adds an append that was refused at the end.
func (p *planter) refusal(partition int, t *judge.Transaction, r subjects.Reason) *judge.Operation {
	o := p.sent(partition, t, 0)
	o.Result = refuse(r)
	return o
}

// request adds an operation at the end.
func (p *planter) request(o *judge.Operation) bool {
	o.Start = p.end()
	o.End = o.Start + 10
	return p.add(o)
}

// description is the answer of a partition's info.
func (p *planter) description(partition int, i judge.Info) bool {
	i.FirstTxid = max(i.FirstTxid, 1)
	return p.request(&judge.Operation{Partition: partition, Info: &i, Result: judge.Result{Outcome: judge.OK, HighWaterMark: new(p.last(partition))}})
}

var refusalPlants = []plant{
	{judge.ConflictFalse, "a lock that was not sent", func(p *planter) bool {
		_, e := p.conflict()
		e.Conflicts[1].Lock = "p.2"
		return true
	}},
	{judge.ConflictFalse, "another mode", func(p *planter) bool {
		_, e := p.conflict()
		e.Conflicts[1].Mode = "read"
		return true
	}},
	{judge.ConflictFalse, "not after the mark", func(p *planter) bool {
		o, e := p.conflict()
		o.Append.HighWaterMark = new(e.Conflicts[1].Txid)
		return true
	}},
	{judge.ConflictFalse, "a transaction without the lock", func(p *planter) bool {
		o, e := p.conflict()
		o.Append.Write = []string{"q"}
		e.Conflicts[1].Lock = "q"
		return true
	}},
	{judge.ConflictFalse, "the newest alone, without the lock", func(p *planter) bool {
		o, e := p.conflict()
		o.Append.Write = []string{"q"}
		e.Lock, e.Conflicts = "q", nil
		return true
	}},
	{judge.ConflictFalse, "a transaction that was sent later", func(p *planter) bool {
		o, _ := p.conflict()
		o.Start, o.End = 0, 1
		return true
	}},
	{judge.ConflictUncommitted, "past the end", func(p *planter) bool {
		_, e := p.conflict()
		e.Txid, e.Conflicts[0].Txid = e.Txid+1, e.Txid+1
		return true
	}},
	{judge.ConflictIncomplete, "a lock left out", func(p *planter) bool {
		_, e := p.conflict()
		e.Conflicts = e.Conflicts[:1]
		return true
	}},
	{judge.ConflictIncomplete, "not the newest", func(p *planter) bool {
		_, e := p.conflict()
		c := subjects.ConflictingLock{Lock: "p.2", Mode: "write", Txid: e.Txid}
		t := &p.h.Operations[len(p.h.Operations)-1].Append
		(*t).Write = []string{"p.1", "p.2"}
		e.Lock, e.Conflicts = "p.2", append([]subjects.ConflictingLock{c, e.Conflicts[1]}, subjects.ConflictingLock{Lock: "p.>", Mode: "read", Txid: e.Conflicts[1].Txid})
		return true
	}},
	{judge.ConflictIncomplete, "another one first", func(p *planter) bool {
		_, e := p.conflict()
		e.Lock = "p.1"
		return true
	}},
	{judge.ConflictIncomplete, "forgotten, and known", func(p *planter) bool {
		_, e := p.conflict()
		p.h.Header.Locks = 1 // the floor is possible
		e.Conflicts[1] = subjects.ConflictingLock{Lock: "p.1", Mode: "write", Txid: e.Conflicts[1].Txid - 1, Forgotten: true}
		o := p.h.Operations[len(p.h.Operations)-1]
		*o.Append.HighWaterMark -= 5
		o.Append.Write = []string{"p.1"}
		return true
	}},
	{judge.ConditionMissed, "a kind", func(p *planter) bool {
		p.unmatched(subjects.QueryItem{Kinds: []string{"other", "m"}})
		return true
	}},
	{judge.ConditionMissed, "locks, of the second item", func(p *planter) bool {
		p.unmatched(subjects.QueryItem{Kinds: []string{"other"}}, subjects.QueryItem{Kinds: []string{"m"}, Locks: []string{"m.2", "m.>"}})
		return true
	}},
	{judge.ConditionFalse, "another kind", func(p *planter) bool {
		p.matched(subjects.QueryItem{Kinds: []string{"other"}})
		return true
	}},
	{judge.ConditionFalse, "a lock that it lacks", func(p *planter) bool {
		p.matched(subjects.QueryItem{Locks: []string{"m.1", "m.3"}})
		return true
	}},
	{judge.ConditionFalse, "an item that is not there", func(p *planter) bool {
		p.matched(subjects.QueryItem{Kinds: []string{"m"}}).Unless.Item = 1
		return true
	}},
	{judge.ConditionFalse, "before the mark", func(p *planter) bool {
		e := p.matched(subjects.QueryItem{Kinds: []string{"m"}})
		e.Txid, e.Unless.Txid = e.Txid-1, e.Txid-1
		return true
	}},
	{judge.ConditionFalse, "two txids", func(p *planter) bool {
		p.matched(subjects.QueryItem{Kinds: []string{"m"}}).Txid--
		return true
	}},
	{judge.ConditionFalse, "forgotten, and there", func(p *planter) bool {
		p.matched(subjects.QueryItem{Kinds: []string{"m"}}).Unless.Forgotten = true
		return true
	}},
	{judge.ConditionFalse, "sent later", func(p *planter) bool {
		p.matched(subjects.QueryItem{Kinds: []string{"m"}})
		o := p.h.Operations[len(p.h.Operations)-1]
		o.Start, o.End = 0, 1
		return true
	}},
	{judge.ConflictUncommitted, "a condition past the end", func(p *planter) bool {
		e := p.matched(subjects.QueryItem{Kinds: []string{"m"}})
		e.Txid, e.Unless.Txid = e.Txid+9, e.Txid+9
		return true
	}},
	{judge.ReasonUnexpected, "a condition that was not sent", func(p *planter) bool {
		p.matched()
		return true
	}},
	{judge.FloorHigh, "conflict", func(p *planter) bool {
		o, e := p.conflict()
		o.Append.Write = []string{"p.1", "never"}
		e.Conflicts = append(e.Conflicts, subjects.ConflictingLock{Lock: "never", Mode: "write", Txid: e.Conflicts[1].Txid, Forgotten: true})
		return true
	}},
	{judge.FloorHigh, "info", func(p *planter) bool { return p.description(1, judge.Info{Floor: 5}) }},
	{judge.FloorHigh, "info, above what was trimmed", func(p *planter) bool {
		return p.description(0, judge.Info{Floor: p.last(0)})
	}},
	{judge.AheadFalse, "append", func(p *planter) bool {
		t := only("x")
		t.HighWaterMark = new(p.last(0))
		p.refusal(0, t, subjects.Ahead)
		return true
	}},
	{judge.AheadFalse, "read", func(p *planter) bool {
		return p.request(&judge.Operation{Read: &judge.Read{From: p.last(0) + 1}, Result: refuse(subjects.Ahead)})
	}},
	{judge.AheadFalse, "get", func(p *planter) bool {
		return p.request(&judge.Operation{Get: &judge.Get{Txid: p.last(0)}, Result: refuse(subjects.Ahead)})
	}},
	{judge.AheadFalse, "cursor", func(p *planter) bool {
		return p.request(&judge.Operation{Cursor: &judge.Cursor{Name: "c", Set: new(p.last(0))}, Result: refuse(subjects.Ahead)})
	}},
	{judge.AheadFalse, "trim", func(p *planter) bool {
		return p.request(&judge.Operation{Trim: &judge.Trim{Before: p.last(0)}, Result: refuse(subjects.Ahead)})
	}},
	{judge.WrongLastFalse, "at the end", func(p *planter) bool {
		t := only("x")
		t.ExpectedLast = new(p.last(0))
		p.refusal(0, t, subjects.WrongLast)
		return true
	}},
	{judge.IDReusedFalse, "another id", func(p *planter) bool {
		p.refusal(0, only("x"), subjects.IDReused).Error.Txid = p.last(0)
		return true
	}},
	{judge.IDReusedFalse, "the same content", func(p *planter) bool {
		o := p.pick(p.fresh)
		p.refusal(o.Partition, o.Append, subjects.IDReused).Error.Txid = o.Txid
		return true
	}},
	{judge.IDReusedFalse, "past the end", func(p *planter) bool {
		p.refusal(0, only("x"), subjects.IDReused).Error.Txid = p.last(0) + 1
		return true
	}},
	{judge.IDIgnored, "conflict", func(p *planter) bool {
		o, _ := p.conflict()
		t := p.grow(1, &judge.Transaction{ID: o.Append.ID, Content: o.Append.Content})
		a := p.sent(1, &t.Transaction, t.Txid)
		late := *o
		p.h.Operations = slices.DeleteFunc(p.h.Operations, func(b *judge.Operation) bool { return b == o })
		late.Start, late.End = a.End+1, a.End+window-10
		return p.add(&late)
	}},
	{judge.IDIgnored, "wrong last", func(p *planter) bool {
		o := p.sent(0, only("x"), p.grow(0, only("x")).Txid)
		t := *o.Append
		t.ExpectedLast = new(o.Txid - 1)
		p.refusal(0, &t, subjects.WrongLast)
		return true
	}},
	{judge.IDIgnored, "ahead", func(p *planter) bool {
		o := p.sent(0, only("x"), p.grow(0, only("x")).Txid)
		t := *o.Append
		t.HighWaterMark = new(o.Txid + 5)
		p.refusal(0, &t, subjects.Ahead)
		return true
	}},
	{judge.TrimmedFalse, "read past the first", func(p *planter) bool {
		r := refuse(subjects.Trimmed)
		r.Error.FirstTxid = 1
		return p.request(&judge.Operation{Partition: 1, Read: &judge.Read{From: 5}, Result: r})
	}},
	{judge.TrimmedFalse, "read, nothing was trimmed", func(p *planter) bool {
		r := refuse(subjects.Trimmed)
		r.Error.FirstTxid = 9
		return p.request(&judge.Operation{Partition: 1, Read: &judge.Read{From: 5}, Result: r})
	}},
	{judge.TrimmedFalse, "get", func(p *planter) bool {
		r := refuse(subjects.Trimmed)
		r.Error.FirstTxid = 9
		return p.request(&judge.Operation{Partition: 1, Get: &judge.Get{Txid: 5}, Result: r})
	}},
	{judge.NotFoundFalse, "recorded", func(p *planter) bool {
		t := &judge.Transaction{Content: "x", Append: []string{"new.name"}}
		p.sent(1, t, p.grow(1, t).Txid)
		r := refuse(subjects.NotFound)
		r.HighWaterMark = new(p.last(1))
		return p.request(&judge.Operation{Partition: 1, Get: &judge.Get{Lock: "new.>"}, Result: r})
	}},
	{judge.ReasonUnexpected, "append not found", func(p *planter) bool {
		p.refusal(0, only("x"), subjects.NotFound)
		return true
	}},
	{judge.ReasonUnexpected, "conflict without a lock", func(p *planter) bool {
		p.refusal(0, only("x"), subjects.WrongLast)
		return true
	}},
	{judge.ReasonUnexpected, "a replica's read ahead", func(p *planter) bool {
		return p.request(&judge.Operation{Read: &judge.Read{From: p.last(0) + 5, Replica: true}, Result: refuse(subjects.Ahead)})
	}},
	{judge.ReasonUnexpected, "info", func(p *planter) bool {
		return p.request(&judge.Operation{Info: &judge.Info{}, Result: refuse(subjects.Trimmed)})
	}},
	{judge.InfoStale, "an older one", func(p *planter) bool {
		return p.request(&judge.Operation{Info: &judge.Info{FirstTxid: 1}, Result: judge.Result{Outcome: judge.OK, HighWaterMark: new(p.last(0) - 1)}})
	}},
	{judge.MarkBeyond, "info", func(p *planter) bool {
		return p.request(&judge.Operation{Info: &judge.Info{FirstTxid: 1}, Result: judge.Result{Outcome: judge.OK, HighWaterMark: new(p.last(0) + 1)}})
	}},
	{judge.MarkBeyond, "a refusal", func(p *planter) bool {
		p.refusal(0, only("x"), subjects.Busy).HighWaterMark = new(p.last(0) + 1)
		return true
	}},
	{judge.MarkBeyond, "before it was sent", func(p *planter) bool {
		p.refusal(0, only("busy"), subjects.Busy).HighWaterMark = new(p.last(0) + 1)
		p.sent(0, only("x"), p.grow(0, only("x")).Txid)
		return true
	}},
	{judge.TermBack, "info", func(p *planter) bool {
		return p.description(1, judge.Info{Term: 1000, Leader: "n1"}) && p.description(1, judge.Info{Term: 999, Leader: "n1"})
	}},
	{judge.TwoLeaders, "info", func(p *planter) bool {
		return p.description(1, judge.Info{Term: 1000, Leader: "n1"}) && p.description(1, judge.Info{Term: 1000, Leader: "n2"})
	}},
}

// read adds a read of a part of partition 1's log, for a change.
func (p *planter) read(filter judge.Read) *judge.Operation {
	filter.From, filter.Next = 10, 30
	for txid := filter.From; txid < filter.Next; txid++ {
		t := p.stored(1, txid)
		if filter.Lock == "" || records(t, filter.Lock) {
			filter.Transactions = append(filter.Transactions, t)
		}
	}
	o := &judge.Operation{Partition: 1, Read: &filter, Result: judge.Result{Outcome: judge.OK}}
	p.request(o)
	return o
}

// changed replaces a transaction of a read by a changed copy.
func changed(o *judge.Operation, i int, by func(*judge.Stored)) bool {
	t := *o.Read.Transactions[i]
	by(&t)
	o.Read.Transactions[i] = &t
	return true
}

var readPlants = []plant{
	{judge.ReadGap, "within", func(p *planter) bool {
		o := p.read(judge.Read{})
		o.Read.Transactions = slices.Delete(o.Read.Transactions, 3, 4)
		return true
	}},
	{judge.ReadGap, "at the beginning", func(p *planter) bool {
		o := p.read(judge.Read{})
		o.Read.Transactions = o.Read.Transactions[1:]
		return true
	}},
	{judge.ReadGap, "at the end", func(p *planter) bool {
		o := p.read(judge.Read{})
		o.Read.Next++
		return true
	}},
	{judge.ReadGap, "empty", func(p *planter) bool {
		o := p.read(judge.Read{})
		o.Read.Transactions = nil
		return true
	}},
	{judge.ReadGap, "replica", func(p *planter) bool {
		o := p.read(judge.Read{Replica: true})
		o.Read.Transactions = slices.Delete(o.Read.Transactions, 3, 4)
		return true
	}},
	{judge.ReadDiffers, "content", func(p *planter) bool {
		return changed(p.read(judge.Read{}), 2, func(t *judge.Stored) { t.Content = "other" })
	}},
	{judge.ReadDiffers, "locks", func(p *planter) bool {
		return changed(p.read(judge.Read{}), 2, func(t *judge.Stored) { t.Transaction.Append = []string{"other"} })
	}},
	{judge.ReadDiffers, "time, of a replica", func(p *planter) bool {
		return changed(p.read(judge.Read{Replica: true}), 2, func(t *judge.Stored) { t.Time++ })
	}},
	{judge.ReadDiffers, "get", func(p *planter) bool {
		t := *p.stored(1, 12)
		t.Content = "other"
		return p.request(&judge.Operation{Partition: 1, Get: &judge.Get{Txid: 12, Transaction: &t}, Result: judge.Result{Outcome: judge.OK}})
	}},
	{judge.ReadBeyond, "a transaction that is not there", func(p *planter) bool {
		t := &judge.Stored{Txid: p.last(1) + 1, Transaction: *only("x")}
		return p.request(&judge.Operation{Partition: 1, Read: &judge.Read{From: t.Txid, Next: t.Txid, Replica: true}, Result: judge.Result{Outcome: judge.OK}}) &&
			p.request(&judge.Operation{Partition: 1, Get: &judge.Get{Txid: t.Txid, Transaction: t}, Result: judge.Result{Outcome: judge.OK}})
	}},
	{judge.ReadBeyond, "next", func(p *planter) bool {
		return p.request(&judge.Operation{Partition: 1, Read: &judge.Read{From: p.last(1), Next: p.last(1) + 2}, Result: judge.Result{Outcome: judge.OK}})
	}},
	{judge.ReadIncomplete, "by lock", func(p *planter) bool {
		o := p.read(judge.Read{Lock: "a.>"})
		if len(o.Read.Transactions) == 0 {
			return false
		}
		o.Read.Transactions = o.Read.Transactions[1:]
		return true
	}},
	{judge.ReadIncomplete, "by kind", func(p *planter) bool {
		return p.request(&judge.Operation{Partition: 1, Read: &judge.Read{From: 10, Next: 30, Kinds: []string{"pay", "tx", "refund"}}, Result: judge.Result{Outcome: judge.OK}})
	}},
	{judge.ReadUnmatched, "by lock", func(p *planter) bool {
		p.read(judge.Read{}).Read.Lock = "b.z"
		return true
	}},
	{judge.ReadUnmatched, "by kind", func(p *planter) bool {
		p.read(judge.Read{}).Read.Kinds = []string{"never"}
		return true
	}},
	{judge.ReadOrder, "swapped", func(p *planter) bool {
		t := p.read(judge.Read{Lock: ">"}).Read.Transactions
		if len(t) < 2 {
			return false
		}
		t[0], t[1] = t[1], t[0]
		return true
	}},
	{judge.ReadOrder, "next goes back", func(p *planter) bool {
		p.read(judge.Read{}).Read.Next--
		return true
	}},
	{judge.ReadOrder, "before what was asked for", func(p *planter) bool {
		p.read(judge.Read{Lock: ">"}).Read.From = 25
		return true
	}},
	{judge.GetUnmatched, "another txid", func(p *planter) bool {
		return p.request(&judge.Operation{Partition: 1, Get: &judge.Get{Txid: 12, Transaction: p.stored(1, 13)}, Result: judge.Result{Outcome: judge.OK}})
	}},
	{judge.GetUnmatched, "without the lock", func(p *planter) bool {
		return p.request(&judge.Operation{Partition: 1, Get: &judge.Get{Lock: "never", Transaction: p.stored(1, 13)}, Result: judge.Result{Outcome: judge.OK}})
	}},
}

// at adds an operation on the cursor "new", which takes 10 ns.
func (p *planter) at(at int64, c judge.Cursor, r judge.Result) bool {
	c.Name = "new"
	if r.Outcome == "" {
		r.Outcome = judge.OK
	}
	r.HighWaterMark = new(p.last(1))
	at += 1 << 40
	return p.add(&judge.Operation{Partition: 1, Start: at, End: at + 10, Cursor: &c, Result: r})
}

// set adds one that set the cursor, from a position if it is not negative.
func (p *planter) set(at int64, from int, to uint64) bool {
	c := judge.Cursor{Set: &to}
	if from >= 0 {
		c.Expected = new(uint64(from))
	}
	if to == 0 {
		return p.at(at, c, judge.Result{})
	}
	return p.at(at, c, judge.Result{Txid: to, Time: at})
}

// seen adds one that read the cursor.
func (p *planter) seen(at int64, txid uint64, time int64) bool {
	return p.at(at, judge.Cursor{}, judge.Result{Txid: txid, Time: time})
}

var unknown = judge.Result{Outcome: judge.Unknown}

var cursorPlants = []plant{
	{judge.CursorStale, "an older position", func(p *planter) bool {
		return p.set(100, -1, 5) && p.set(200, -1, 6) && p.seen(300, 5, 100)
	}},
	{judge.CursorStale, "back and forth", func(p *planter) bool {
		return p.set(100, -1, 5) && p.at(200, judge.Cursor{Set: new(uint64(6))}, unknown) && p.seen(300, 6, 200) && p.seen(400, 5, 100)
	}},
	{judge.CursorStale, "not there yet", func(p *planter) bool {
		return p.set(100, -1, 5) && p.seen(200, 0, 0)
	}},
	{judge.CursorStale, "removed before", func(p *planter) bool {
		return p.set(100, -1, 5) && p.set(200, -1, 0) && p.seen(300, 5, 100)
	}},
	{judge.CursorStale, "set again", func(p *planter) bool {
		return p.set(100, -1, 5) && p.set(200, -1, 0) && p.set(300, -1, 6) && p.seen(400, 0, 0)
	}},
	{judge.CursorStale, "refused by an older position", func(p *planter) bool {
		r := refuse(subjects.WrongLast)
		r.Txid, r.Time = 5, 100
		return p.set(100, -1, 5) && p.set(200, -1, 6) && p.at(300, judge.Cursor{Set: new(uint64(7)), Expected: new(uint64(6))}, r)
	}},
	{judge.CursorLost, "two from the same", func(p *planter) bool {
		return p.set(100, -1, 5) && p.set(200, 5, 6) && p.set(205, 5, 7)
	}},
	{judge.CursorLost, "from nothing", func(p *planter) bool {
		return p.set(100, -1, 5) && p.set(200, 0, 6)
	}},
	{judge.CursorLost, "two from nothing", func(p *planter) bool {
		return p.set(100, 0, 5) && p.set(105, 0, 6)
	}},
	{judge.CursorLost, "the first, from a position", func(p *planter) bool { return p.set(100, 5, 6) }},
	{judge.CursorLost, "a removal", func(p *planter) bool {
		return p.set(100, -1, 5) && p.at(200, judge.Cursor{Set: new(uint64(0)), Expected: new(uint64(6))}, judge.Result{})
	}},
	{judge.CursorOther, "two positions of a time", func(p *planter) bool {
		return p.set(100, -1, 5) && p.seen(200, 6, 100)
	}},
	{judge.CursorOther, "two sets of a time", func(p *planter) bool {
		return p.set(100, -1, 5) && p.at(105, judge.Cursor{Set: new(uint64(5))}, judge.Result{Txid: 5, Time: 100})
	}},
	{judge.CursorOther, "set to another", func(p *planter) bool {
		return p.at(100, judge.Cursor{Set: new(uint64(5))}, judge.Result{Txid: 6, Time: 100})
	}},
	{judge.CursorInvented, "a position", func(p *planter) bool { return p.seen(100, 6, 100) }},
	{judge.CursorInvented, "a time", func(p *planter) bool { return p.set(100, -1, 5) && p.seen(200, 5, 200) }},
	{judge.CursorInvented, "before it was set", func(p *planter) bool {
		return p.seen(100, 6, 100) && p.at(200, judge.Cursor{Set: new(uint64(6))}, unknown)
	}},
	{judge.CursorRefused, "at the expected position", func(p *planter) bool {
		r := refuse(subjects.WrongLast)
		r.Txid, r.Time = 5, 100
		return p.set(100, -1, 5) && p.at(200, judge.Cursor{Set: new(uint64(7)), Expected: new(uint64(5))}, r)
	}},
}
