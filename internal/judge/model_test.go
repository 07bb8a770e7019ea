package judge_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/cantuslog/cantus/internal/judge"
	"github.com/cantuslog/cantus/subjects"
)

// window is how long message ids are remembered in generated histories. About
// one operation happens every 500 ns.
const window = 200_000

// epoch is the log's time at the clients' time 0.
const epoch = 1_700_000_000_000_000_000

// model is a partition that does everything right, one operation at a time.
type model struct {
	number int
	log    []*judge.Stored
	first  uint64
	ids    map[string]*judge.Stored
	// contents has those of atomic batches with an id, by their first txids.
	contents map[uint64]string
	cursors  map[string]*position
	term     uint64
	// ahead is by how much the clock of cursor writes is ahead of the log's.
	ahead func() int64
}

type position struct {
	txid  uint64
	time  int64
	owner string
}

func newModel(number int) *model {
	return &model{number: number, first: 1, ids: map[string]*judge.Stored{}, contents: map[uint64]string{}, cursors: map[string]*position{}, term: 1}
}

func (m *model) last() uint64 { return uint64(len(m.log)) }

func (m *model) at(txid uint64) *judge.Stored { return m.log[txid-1] }

// digest stands for the digest at a high-water mark.
func digest(partition int, mark uint64) string { return fmt.Sprintf("d%d-%d", partition, mark) }

func refuse(reason subjects.Reason) judge.Result {
	return judge.Result{Outcome: judge.Refused, Error: &subjects.Error{Reason: reason}}
}

// append appends a transaction at a time of the clients' clock.
func (m *model) append(tx *judge.Transaction, now int64) judge.Result {
	r := m.decide(tx, now)
	if r.Outcome == judge.Refused {
		r.HighWaterMark = new(m.last())
	}
	return r
}

// decide decides on a transaction, and appends it if it passes.
func (m *model) decide(tx *judge.Transaction, now int64) judge.Result {
	if r := m.refusal(tx, now); r.Outcome != "" {
		return r
	}
	return m.store(tx, now)
}

// atomic decides on an atomic batch, and appends it if it passes.
func (m *model) atomic(o *judge.Operation, now int64) {
	whole, content := o.Batch[0], ""
	whole.Write, whole.Read = nil, nil
	for _, t := range o.Batch {
		whole.Write, whole.Read = append(whole.Write, t.Write...), append(whole.Read, t.Read...)
		content += t.Content + " "
	}
	whole.Content = content
	if len(o.Batch) == 1 {
		whole.Content = o.Batch[0].Content // it is an append
	}
	o.Result = m.refusal(&whole, now)
	if o.HighWaterMark = new(m.last()); o.Outcome == judge.Refused {
		return
	}
	first, count := m.last()+1, uint64(len(o.Batch))
	duplicate := o.Outcome == judge.OK
	if duplicate {
		first = o.Txid
	}
	for i := range o.Batch {
		r := judge.Result{Outcome: judge.OK, Txid: first + uint64(i), Duplicate: true}
		if duplicate {
			r.Time = m.at(r.Txid).Time
		} else {
			r = m.store(&o.Batch[i], now+int64(i))
			if count > 1 {
				m.at(r.Txid).Atomic = &judge.Atomic{First: first, Last: first + count - 1}
			}
		}
		o.Results = append(o.Results, r)
	}
	if whole.ID != "" {
		m.contents[first] = whole.Content
	}
	o.Result = judge.Result{Outcome: judge.OK, HighWaterMark: new(m.last())}
}

// refusal returns a refusal, or the answer to a repeat, and the zero value if
// the transaction passes.
func (m *model) refusal(tx *judge.Transaction, now int64) judge.Result {
	if use := m.ids[tx.ID]; use != nil && epoch+now-use.Time <= window {
		if cmp.Or(m.contents[use.Txid], use.Content) != tx.Content {
			r := refuse(subjects.IDReused)
			r.Error.Txid = use.Txid
			return r
		}
		return judge.Result{Outcome: judge.OK, Txid: use.Txid, Time: use.Time, Duplicate: true}
	}
	if tx.HighWaterMark != nil && *tx.HighWaterMark > m.last() {
		return refuse(subjects.Ahead)
	}
	if r := m.wrongNumber(tx); r.Outcome != "" {
		return r
	}
	if tx.ExpectedLast != nil && *tx.ExpectedLast != m.last() {
		return refuse(subjects.WrongLast)
	}
	if conflicts := m.conflicts(tx); len(conflicts) > 0 {
		r := refuse(subjects.Conflict)
		r.Error.Lock, r.Error.Txid, r.Error.Conflicts = conflicts[0].Lock, conflicts[0].Txid, conflicts
		return r
	}
	if match := m.match(tx); match != nil {
		r := refuse(subjects.Conflict)
		r.Error.Txid, r.Error.Unless = match.Txid, match
		return r
	}
	return m.stays(tx)
}

// store appends a transaction.
func (m *model) store(tx *judge.Transaction, now int64) judge.Result {
	stored := &judge.Stored{Txid: m.last() + 1, Time: epoch + now, Transaction: *tx}
	stored.ExpectedLast, stored.Unless = nil, nil
	m.log = append(m.log, stored)
	if tx.ID != "" {
		m.ids[tx.ID] = stored
	}
	m.move(stored)
	return judge.Result{Outcome: judge.OK, Txid: stored.Txid, Time: stored.Time}
}

func (m *model) conflicts(tx *judge.Transaction) (all []subjects.ConflictingLock) {
	var mark uint64
	if tx.HighWaterMark != nil {
		mark = *tx.HighWaterMark
	}
	add := func(mode string, names []string) {
		for _, name := range names {
			txid := m.newestBesides(name, tx.Session)
			forgotten := txid < m.first
			if forgotten {
				txid = m.first - 1
			}
			if txid > mark {
				all = append(all, subjects.ConflictingLock{Lock: name, Mode: mode, Txid: txid, Forgotten: forgotten})
			}
		}
	}
	add("write", tx.Write)
	add("read", tx.Read)
	slices.SortStableFunc(all, func(a, b subjects.ConflictingLock) int { return cmp.Compare(b.Txid, a.Txid) })
	return all
}

// match returns the item of a condition that matches, nil if none does.
func (m *model) match(tx *judge.Transaction) *subjects.MatchedCondition {
	for i, item := range tx.Unless {
		for txid := m.last(); txid > *tx.HighWaterMark; txid-- {
			if txid < m.first {
				return &subjects.MatchedCondition{Item: i, Txid: txid, Forgotten: true}
			}
			t := m.at(txid)
			kind := cmp.Or(t.Kind, subjects.DefaultKind)
			if !isOf(t, tx.Session) && (len(item.Kinds) == 0 || slices.Contains(item.Kinds, kind)) && !slices.ContainsFunc(item.Locks, func(l string) bool { return !records(t, l) }) {
				return &subjects.MatchedCondition{Item: i, Txid: txid}
			}
		}
	}
	return nil
}

// newest is the rule of the contract, in the plainest way.
func (m *model) newest(name string) uint64 { return m.newestBesides(name, "") }

// newestBesides is newest among those that are not of a session.
func (m *model) newestBesides(name, session string) uint64 {
	for _, t := range slices.Backward(m.log) {
		if records(t, name) && !isOf(t, session) {
			return t.Txid
		}
	}
	return 0
}

func records(t *judge.Stored, name string) bool {
	return slices.ContainsFunc(slices.Concat(t.Write, t.Transaction.Append), func(l string) bool { return subjects.Overlap(l, name) })
}

// trim removes what lies before a txid, but nothing whose message id counts,
// and no part of an atomic batch.
func (m *model) trim(before uint64, now int64) {
	for _, t := range m.log[m.first-1:] {
		if t.Txid >= before || t.ID != "" && epoch+now-t.Time <= window {
			break
		}
		if t.Atomic == nil || t.Txid == t.Atomic.Last && t.Txid < before {
			m.first = t.Txid + 1
		}
	}
}

// generator makes a history of operations that overlap: each happens at one
// moment between its start and its end.
type generator struct {
	*rand.Rand
	h      *judge.History
	models []*model
	again  []*judge.Operation // appends that had no answer
	now    int64
	count  int
	// atomics has it send atomic batches, and sessions transactions of sessions.
	atomics, sessions bool
	// moves has it give cursors to sessions, and to others, and move them.
	moves   bool
	writers map[int]*sessionWriter // by partition
}

const replicas = 3

// generate makes a correct history of a number of operations. Only partition 0
// is trimmed.
func generate(seed uint64, operations int) *judge.History {
	return generateWith(seed, operations, true)
}

// generateWith generates a history with atomic batches, sessions, and cursors
// that they move, or without any.
func generateWith(seed uint64, operations int, with bool) *judge.History {
	g := newGenerator(seed, 2)
	g.atomics, g.sessions, g.moves = with, with, with
	for range operations {
		g.step()
	}
	return g.finish()
}

func newGenerator(seed uint64, partitions int) *generator {
	g := &generator{
		Rand:    rand.New(rand.NewPCG(seed, 0)),
		writers: map[int]*sessionWriter{},
		h:       &judge.History{Header: judge.Header{Version: judge.Version, Partitions: partitions, Replicas: replicas, AllWriters: true, MessageIDWindow: window}},
	}
	for i := range partitions {
		g.models = append(g.models, newModel(i))
	}
	return g
}

// finish adds a last transaction to each partition, and the logs.
func (g *generator) finish() *judge.History {
	for _, m := range g.models { // the last transaction is an acknowledged one
		g.add(m, &judge.Operation{Append: &judge.Transaction{ID: g.text("last"), Content: g.text("c")}}, func(o *judge.Operation) {
			o.Result = m.append(o.Append, g.now)
		})
	}
	for _, m := range g.models {
		for i := range replicas {
			g.h.Drains = append(g.h.Drains, &judge.Drain{
				Replica: fmt.Sprintf("n%d", i+1), Partition: m.number, FirstTxid: m.first, HighWaterMark: m.last(),
				Digest: digest(m.number, m.last()), Transactions: slices.Clone(m.log[m.first-1:]),
			})
		}
	}
	return g.h
}

// text returns a new text.
func (g *generator) text(prefix string) string {
	g.count++
	return fmt.Sprintf("%s%d", prefix, g.count)
}

// add adds an operation, which do carries out at its moment. One in ten gets no
// answer; of these, half happen.
func (g *generator) add(m *model, o *judge.Operation, do func(*judge.Operation)) {
	g.now += 100 + g.Int64N(900)
	o.Client, o.Partition = fmt.Sprintf("c%d", g.IntN(4)), m.number
	o.Start, o.End = g.now-g.Int64N(3000), g.now+g.Int64N(3000)
	lossy := o.Trim == nil && g.count > 0 && g.IntN(10) == 0
	if !lossy || g.IntN(2) == 0 {
		do(o)
	}
	if lossy {
		g.forget(o)
	}
	g.h.Operations = append(g.h.Operations, o)
}

// forget removes the answer of an operation.
func (g *generator) forget(o *judge.Operation) {
	o.Result, o.Results = judge.Result{Outcome: judge.Unknown}, nil
	switch {
	case o.Append != nil:
		g.again = append(g.again, o)
	case o.Read != nil:
		o.Read.Transactions, o.Read.Next = nil, 0
	case o.Get != nil:
		o.Get.Transaction = nil
	case o.Info != nil:
		o.Info = &judge.Info{}
	}
}

func (g *generator) step() {
	m := g.models[g.IntN(len(g.models))]
	switch n := g.IntN(200); {
	case n < 90:
		g.append(m)
	case n < 105:
		g.batch(m)
	case n < 125:
		g.read(m)
	case n < 145:
		g.get(m)
	case n < 155:
		g.info(m)
	case n < 195:
		g.cursor(m)
	case n < 196 && m.number == 0:
		before := 1 + g.Uint64N(m.last()+1)
		g.add(m, &judge.Operation{Trim: &judge.Trim{Before: before}}, func(o *judge.Operation) {
			m.trim(before, g.now)
			o.Trim.FirstTxid, o.Outcome = m.first, judge.OK
		})
	case n < 197:
		m.term += g.Uint64N(3)
	}
}

func (g *generator) append(m *model) {
	if g.sessions && g.IntN(4) == 0 {
		g.inSession(m)
		return
	}
	o := &judge.Operation{Append: g.transaction(m)}
	if len(g.again) > 0 && g.IntN(2) == 0 {
		i := g.IntN(len(g.again))
		if old := g.again[i]; old.Append.ID != "" {
			m, o.Append = g.models[old.Partition], old.Append
		}
		g.again = slices.Delete(g.again, i, i+1)
	}
	if g.IntN(40) == 0 {
		g.add(m, o, func(o *judge.Operation) { o.Result = refuse(subjects.Busy) })
		return
	}
	g.add(m, o, func(o *judge.Operation) { o.Result = m.append(o.Append, g.now) })
}

func (g *generator) batch(m *model) {
	o := &judge.Operation{}
	for range 1 + g.IntN(5) {
		o.Batch = append(o.Batch, *g.transaction(m))
	}
	if g.atomics && g.IntN(3) == 0 {
		g.atomic(m, o)
		return
	}
	g.add(m, o, func(o *judge.Operation) {
		o.Outcome = judge.OK
		for i := range o.Batch {
			g.now++
			r := m.append(&o.Batch[i], g.now)
			r.HighWaterMark = nil
			o.Results = append(o.Results, r)
		}
		o.End = max(o.End, g.now)
		o.HighWaterMark = new(m.last())
	})
}

// atomic sends a batch as an atomic one, some of them again.
func (g *generator) atomic(m *model, o *judge.Operation) {
	o.Atomic = true
	for i := range o.Batch[1:] {
		t := &o.Batch[i+1]
		if t.ID, t.ExpectedLast, t.Unless, t.HighWaterMark = "", nil, nil, o.Batch[0].HighWaterMark; t.HighWaterMark == nil {
			t.Write, t.Read = nil, nil
		}
	}
	for range 1 + g.IntN(2) {
		again := &judge.Operation{Batch: o.Batch, Atomic: true}
		g.add(m, again, func(o *judge.Operation) {
			m.atomic(o, g.now)
			g.now += int64(len(o.Batch))
			o.End = max(o.End, g.now)
		})
		if o.Batch[0].ID == "" {
			return
		}
	}
}

var lockNames = []string{"a", "b", "a.x", "a.y", "a.x.1", "b.z", "a.>", "a.x.>", "b.>", "c", "d", "e.1", "e.2", "f.g.h"}

func (g *generator) locks() (names []string) {
	for range g.IntN(3) {
		names = append(names, lockNames[g.IntN(len(lockNames))])
	}
	return names
}

func (g *generator) transaction(m *model) *judge.Transaction {
	t := &judge.Transaction{Content: g.text("c"), Append: g.locks()}
	if g.IntN(4) > 0 {
		t.ID = g.text("id")
		if len(m.log) > 0 && g.IntN(30) == 0 { // one of another, which may have expired
			if old := m.log[g.IntN(len(m.log))]; old.ID != "" {
				t.ID = old.ID
			}
		}
	}
	if g.IntN(3) == 0 {
		t.Kind = []string{"pay", "refund"}[g.IntN(2)]
	}
	if g.IntN(2) == 0 {
		mark := m.last() - min(m.last(), g.Uint64N(6))
		if g.IntN(40) == 0 {
			mark += 10
		}
		t.HighWaterMark, t.Write, t.Read = &mark, g.locks(), g.locks()
		if g.IntN(3) == 0 {
			t.Unless = []subjects.QueryItem{{Kinds: []string{"pay"}}, {Locks: g.locks(), Kinds: []string{"tx", "refund"}}}[:1+g.IntN(2)]
		}
	} else if g.IntN(10) == 0 {
		t.ExpectedLast = new(m.last() - min(m.last(), g.Uint64N(2)))
	}
	return t
}

func (g *generator) read(m *model) {
	r := &judge.Read{From: m.first + g.Uint64N(m.last()-m.first+3)}
	switch g.IntN(8) {
	case 0, 1:
		r.Lock = lockNames[g.IntN(len(lockNames))]
	case 2:
		r.Kinds = []string{"pay", "tx"}
	case 3:
		r.Replica = true
	case 4:
		r.From = 1
	}
	g.add(m, &judge.Operation{Read: r}, func(o *judge.Operation) {
		o.HighWaterMark = new(m.last())
		switch {
		case r.From < m.first:
			o.Result = refuse(subjects.Trimmed)
			o.Error.FirstTxid, o.HighWaterMark = m.first, new(m.last())
			return
		case r.From > m.last()+1 && !r.Replica:
			o.Result = refuse(subjects.Ahead)
			return
		}
		o.Outcome, r.Next = judge.OK, r.From
		for n := g.IntN(20); n > 0 && r.Next <= m.last(); n-- {
			t := m.at(r.Next)
			r.Next++
			if wants(r, t) {
				r.Transactions = append(r.Transactions, t)
			}
		}
	})
}

// wants reports whether a read asks for a transaction.
func wants(r *judge.Read, t *judge.Stored) bool {
	return (r.Kinds == nil || slices.Contains(r.Kinds, cmp.Or(t.Kind, "tx"))) && (r.Lock == "" || records(t, r.Lock))
}

func (g *generator) get(m *model) {
	o := &judge.Operation{Get: &judge.Get{Txid: 1 + g.Uint64N(m.last()+2)}}
	if g.IntN(2) == 0 {
		o.Get = &judge.Get{Lock: append(lockNames, "nobody", "none.>")[g.IntN(len(lockNames)+2)]}
	}
	g.add(m, o, func(o *judge.Operation) {
		txid := o.Get.Txid
		if o.Get.Lock != "" {
			txid = m.newest(o.Get.Lock)
		}
		switch {
		case o.Get.Lock != "" && txid < m.first:
			o.Result = refuse(subjects.NotFound)
		case txid > m.last():
			o.Result = refuse(subjects.Ahead)
		case txid < m.first:
			o.Result = refuse(subjects.Trimmed)
			o.Error.FirstTxid = m.first
		default:
			o.Outcome, o.Get.Transaction = judge.OK, m.at(txid)
			return
		}
		o.HighWaterMark = new(m.last())
	})
}

func (g *generator) info(m *model) {
	g.add(m, &judge.Operation{Info: &judge.Info{}}, func(o *judge.Operation) {
		*o.Info = judge.Info{
			FirstTxid: m.first, Digest: digest(m.number, m.last()), Term: m.term,
			Leader: fmt.Sprintf("n%d", 1+m.term%replicas), Floor: m.first - 1,
		}
		o.Outcome, o.HighWaterMark = judge.OK, new(m.last())
	})
}
