package judge_test

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/anishathalye/porcupine"

	"github.com/cantuslog/cantus/internal/judge"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

// A second judge, for short histories: porcupine searches for an order of the
// operations that a model explains. It has nothing in common with the first
// one, which never searches.

// logState is the log of a partition.
type logState []*judge.Stored

func (s logState) last() uint64 { return uint64(len(s)) }

// whole is a partition: its log, and its cursors, by name.
type whole struct {
	log     logState
	cursors map[string]cursorState
}

// with returns the partition with a cursor as it became.
func (s whole) with(name string, c cursorState) whole {
	s.cursors = maps.Clone(s.cursors)
	if s.cursors == nil {
		s.cursors = map[string]cursorState{}
	}
	s.cursors[name] = c
	return s
}

// append appends what an operation has sent. A cursor that moves with it is at
// a time that is not known.
func (s whole) append(sent *judge.Operation) (*judge.Operation, whole) {
	o, log := s.log.append(sent, s.cursors)
	for _, t := range log[len(s.log):] {
		if t.Move != nil {
			was := s.cursors[t.Move.Cursor]
			s = s.with(t.Move.Cursor, cursorState{txid: t.Move.Txid, owner: was.owner, time: -1, newest: was.newest})
		}
	}
	s.log = log
	return o, s
}

// final is the input of the operation that reads the log at the end.
type final []*judge.Stored

// partitionModel is a partition whose message ids all count.
var partitionModel = porcupine.NondeterministicModel{
	Init: func() []any { return []any{whole{}} },
	Step: func(state, input, _ any) []any {
		s := state.(whole)
		o, is := input.(*judge.Operation)
		if !is {
			if !slices.EqualFunc(s.log, input.(final), sameStored) {
				return nil
			}
			return []any{s}
		}
		switch {
		case o.Cursor != nil:
			var all []any
			for _, c := range s.cursors[o.Cursor.Name].step(o) {
				all = append(all, s.with(o.Cursor.Name, c))
			}
			return all
		case o.Info != nil:
			if o.Outcome == judge.OK && *o.HighWaterMark != s.log.last() {
				return nil
			}
			return []any{s}
		case o.Read != nil:
			if !s.log.shows(o) {
				return nil
			}
			return []any{s}
		case o.Outcome == judge.Unknown: // it happened or not
			_, next := s.append(o)
			return []any{s, next}
		case o.Outcome == judge.Refused && slices.Contains([]subjects.Reason{subjects.Busy, subjects.Unavailable}, o.Error.Reason):
			return []any{s}
		}
		r, next := s.append(o)
		if !sameResult(r.Result, o.Result) || !slices.EqualFunc(r.Results, o.Results, sameResult) {
			return nil
		}
		return []any{next}
	},
	Equal: func(a, b any) bool {
		return slices.EqualFunc(a.(whole).log, b.(whole).log, sameStored) && maps.Equal(a.(whole).cursors, b.(whole).cursors)
	},
	Hash: func(s any) uint64 { return s.(whole).log.last() },
}

func sameStored(a, b *judge.Stored) bool {
	return a.Txid == b.Txid && a.ID == b.ID && a.Session == b.Session && a.SessionSeq == b.SessionSeq && a.Content == b.Content &&
		same(a.HighWaterMark, b.HighWaterMark) && same(a.Atomic, b.Atomic) && same(a.Move, b.Move)
}

// same reports whether two values are the same, or both missing.
func same[T comparable](a, b *T) bool { return a == b || a != nil && b != nil && *a == *b }

// shows reports whether the log has what a read returned. The high-water mark
// may be an earlier one, but never within an atomic batch.
func (s logState) shows(o *judge.Operation) bool {
	switch r := o.Read; {
	case o.Outcome == judge.Unknown:
		return true
	case o.Outcome == judge.Refused:
		return o.Error.Reason == subjects.Ahead && r.From > s.last()+1
	case *o.HighWaterMark > s.last() || r.From > s.last()+1 || r.Next > s.last()+1 || !s.isEnd(*o.HighWaterMark):
		return false
	default:
		want := slices.DeleteFunc(slices.Clone(s[r.From-1:r.Next-1]), func(t *judge.Stored) bool { return !wants(r, t) })
		return slices.EqualFunc(want, r.Transactions, sameStored)
	}
}

// isEnd reports whether a txid is not within an atomic batch.
func (s logState) isEnd(txid uint64) bool {
	return txid == 0 || s[txid-1].Atomic == nil || s[txid-1].Atomic.Last == txid
}

// append appends what an operation has sent, by the rule of the contract: a
// transaction, or an atomic batch.
func (s logState) append(sent *judge.Operation, cursors map[string]cursorState) (*judge.Operation, logState) {
	m := newModel(0)
	for name, c := range cursors {
		m.cursors[name] = &position{txid: c.txid, owner: c.owner}
	}
	m.log = slices.Clone(s)
	for _, t := range s {
		if t.ID != "" {
			m.ids[t.ID] = t
		}
		if t.Atomic != nil {
			m.contents[t.Atomic.First] += t.Content + " "
		}
	}
	const now = math.MinInt64 / 2 // ids never expire
	o := &judge.Operation{Append: sent.Append, Batch: sent.Batch, Atomic: sent.Atomic}
	if o.Atomic {
		m.atomic(o, now)
	} else {
		o.Result = m.decide(o.Append, now)
	}
	return o, m.log
}

// sameResult compares an answer with the model's. Times are left out: without
// an answer they are not known.
func sameResult(want, got judge.Result) bool {
	if want.Outcome != got.Outcome || want.Txid != got.Txid || want.Duplicate != got.Duplicate || (want.Error == nil) != (got.Error == nil) {
		return false
	}
	if want.Error == nil {
		return true
	}
	w, g := want.Error, got.Error
	return w.Reason == g.Reason && w.Txid == g.Txid && w.Lock == g.Lock && same(w.SessionSeq, g.SessionSeq) && slices.Equal(w.Conflicts, g.Conflicts)
}

// cursorState is the position of a cursor. Its time is -1 if it was set without
// an answer, or moved: the next answer with it says what it is.
type cursorState struct {
	txid         uint64
	owner        string
	time, newest int64 // newest is the latest time that any set had
}

// exists reports whether there is such a cursor.
func (s cursorState) exists() bool { return s.txid > 0 || s.owner != "" }

// step returns the states of a cursor after an operation, none if it can't be.
func (s cursorState) step(o *judge.Operation) []cursorState {
	c, next := o.Cursor, cursorState{newest: s.newest}
	var at *position
	if s.exists() {
		at = &position{txid: s.txid, owner: s.owner}
	}
	if c.Set != nil && (*c.Set > 0 || c.Owner != nil && strings.HasPrefix(*c.Owner, "session:")) {
		next.txid, next.time = *c.Set, -1
		if c.Owner != nil {
			next.owner = *c.Owner
		}
	}
	switch is := c.Set != nil && expects(c, at); {
	case o.Outcome == judge.Refused && o.Error.Reason == subjects.WrongLast:
		if c.Set == nil || is {
			return nil
		}
		return s.observe(o)
	case o.Outcome == judge.Refused:
		return nil // there is no other reason for it in these histories
	case c.Set == nil && o.Outcome == judge.OK:
		return s.observe(o)
	case c.Set == nil, !is && o.Outcome != judge.OK:
		return []cursorState{s}
	case !is:
		return nil
	case o.Outcome != judge.OK:
		return []cursorState{s, next}
	case !next.exists() && (o.Txid != 0 || o.Owner != ""), next.exists() && o.Time <= s.newest:
		return nil
	case !next.exists():
		return []cursorState{next}
	}
	return next.observe(o)
}

// observe returns the states that an answer allows.
func (s cursorState) observe(o *judge.Operation) []cursorState {
	switch {
	case o.Txid != s.txid || o.Owner != s.owner, s.time >= 0 && o.Time != s.time, s.time < 0 && o.Time <= s.newest:
		return nil
	}
	s.time, s.newest = o.Time, max(s.newest, o.Time)
	return []cursorState{s}
}

// explained reports whether porcupine finds an order that explains a history of
// one partition.
func explained(h *judge.History) bool {
	all := []porcupine.Operation{{Input: final(h.Drains[0].Transactions), Call: math.MaxInt64 - 2, Return: math.MaxInt64 - 1}}
	for _, o := range h.Operations {
		p := porcupine.Operation{Input: o, Call: o.Start, Return: o.End}
		if o.Outcome == judge.Unknown {
			p.Return = math.MaxInt64
		}
		all = append(all, p)
	}
	return porcupine.CheckOperations(partitionModel.ToModel(), all)
}

// short generates a short history of appends, atomic batches, sessions, reads,
// descriptions and cursors. It has nothing that the models do not know:
// digests, reads of replicas, high-water marks beside other answers, and
// cursors that are refused because of the log's end.
func short(seed uint64) *judge.History {
	g := newGenerator(seed, 1)
	g.atomics, g.sessions, g.moves = true, true, true
	m := g.models[0]
	for range 6 + g.IntN(14) {
		switch g.IntN(9) {
		case 0:
			g.info(m)
		case 1, 2:
			g.cursor(m)
		case 3:
			g.read(m)
		case 4:
			g.atomic(m, &judge.Operation{Batch: []judge.Transaction{*g.transaction(m), *g.transaction(m), *g.transaction(m)}[:1+g.IntN(3)]})
		default:
			g.append(m)
		}
	}
	h := g.finish()
	for _, d := range h.Drains {
		d.Digest = ""
	}
	h.Operations = slices.DeleteFunc(h.Operations, func(o *judge.Operation) bool {
		return o.Cursor != nil && o.Outcome == judge.Refused && o.Error.Reason == subjects.Ahead || o.Read != nil && o.Read.Replica
	})
	for _, o := range h.Operations {
		if o.Info == nil && o.Read == nil {
			o.HighWaterMark = nil
		} else if o.Info != nil {
			o.Info.Digest = ""
		}
	}
	return h
}

// disturb changes a history at random, so that it may not be right any more. It
// returns what it did.
func disturb(r *rand.Rand, h *judge.History) string {
	i := r.IntN(len(h.Operations))
	o := *h.Operations[i]
	h.Operations[i] = &o
	other := h.Operations[r.IntN(len(h.Operations))]
	switch r.IntN(12) {
	case 0, 1, 2:
		by := r.Int64N(12_000) - 6000
		o.Start, o.End = o.Start+by, o.End+by
		return fmt.Sprintf("operation %d moved by %d", i, by)
	case 3:
		o.End = o.Start + r.Int64N(o.End-o.Start+1)
		return fmt.Sprintf("operation %d ends earlier", i)
	case 4:
		if (o.Append == nil) == (other.Append == nil) && (o.Cursor == nil) == (other.Cursor == nil) && o.Batch == nil && o.Read == nil &&
			other.Batch == nil && other.Read == nil {
			o.Result = other.Result
		}
		return fmt.Sprintf("operation %d has the result of another", i)
	case 5:
		h.Operations = slices.Delete(h.Operations, i, i+1)
		return fmt.Sprintf("operation %d left out", i)
	case 6:
		if o.Append != nil {
			t := *o.Append
			t.HighWaterMark = new(r.Uint64N(8))
			o.Append = &t
		} else if o.HighWaterMark != nil {
			o.HighWaterMark = new(r.Uint64N(8))
		}
		return fmt.Sprintf("operation %d has another mark", i)
	case 7:
		lose(&o)
		return fmt.Sprintf("operation %d has no answer", i)
	case 8:
		if o.Cursor != nil && o.Cursor.Expected != nil {
			c := *o.Cursor
			c.Expected = new(r.Uint64N(8))
			o.Cursor = &c
		} else if o.Cursor != nil {
			o.Owner = []string{"", "b1", "session:s1"}[r.IntN(3)]
		}
		return fmt.Sprintf("operation %d has another expectation", i)
	case 9:
		renumber(r, &o)
		return fmt.Sprintf("operation %d has another number", i)
	case 10:
		if len(o.Results) > 0 {
			o.Results = slices.Clone(o.Results)
			o.Results[r.IntN(len(o.Results))].Txid += 1 + r.Uint64N(2)
		}
		return fmt.Sprintf("operation %d has the results %v", i, o.Results)
	default:
		return disturbLog(r, h)
	}
}

// lose removes the answer of an operation.
func lose(o *judge.Operation) {
	o.Result, o.Results = judge.Result{Outcome: judge.Unknown}, nil
	if o.Info != nil {
		o.Info = &judge.Info{}
	}
	if o.Read != nil {
		o.Read = &judge.Read{From: o.Read.From, Kinds: o.Read.Kinds, Lock: o.Read.Lock}
	}
}

// renumber changes a number in a session: the one that was sent, or the last
// one by the answer.
func renumber(r *rand.Rand, o *judge.Operation) {
	by := uint64(1 - 2*r.IntN(2))
	switch {
	case o.Error != nil && o.Error.SessionSeq != nil && r.IntN(2) == 0:
		e := *o.Error
		e.SessionSeq = new(*e.SessionSeq + by)
		o.Error = &e
	case o.Append != nil && o.Append.Session != "" && o.Append.SessionSeq+by > 0:
		t := *o.Append
		t.ID, t.SessionSeq = "", t.SessionSeq+by
		t.Identify()
		o.Append = &t
	}
}

// disturbLog changes a transaction in the logs of all replicas: its number, its
// cursor, its atomic batch or its content.
func disturbLog(r *rand.Rand, h *judge.History) string {
	i := r.IntN(len(h.Drains[0].Transactions))
	t := *h.Drains[0].Transactions[i]
	switch {
	case t.Session != "" && r.IntN(2) == 0:
		t.ID, t.SessionSeq = "", t.SessionSeq+1
		t.Identify()
	case t.Move != nil && r.IntN(2) == 0:
		if t.Move = (&judge.Move{Cursor: t.Move.Cursor, Txid: t.Move.Txid + 1}); r.IntN(2) == 0 {
			t.Move = nil
		}
	case t.Atomic != nil && r.IntN(2) == 0:
		t.Atomic = nil
	case t.Atomic != nil:
		t.Atomic = &judge.Atomic{First: t.Atomic.First, Last: t.Atomic.Last + 1}
	default:
		t.Content = "another"
	}
	for _, d := range h.Drains {
		d.Transactions[i] = &t
	}
	return fmt.Sprintf("txid %d is changed", t.Txid)
}

// TestAgainstPorcupine compares the two judges on short histories, right ones
// and disturbed ones. What the first finds, no order may explain. What no order
// explains, it has to find.
func TestAgainstPorcupine(t *testing.T) {
	var right, wrong, missed int
	for seed := range uint64(testkit.Sized(300, 3000, 100_000)) {
		h := short(seed)
		r := rand.New(rand.NewPCG(seed, 2))
		var what []string
		for range r.IntN(3) {
			what = append(what, disturb(r, h))
		}
		report, order := judge.Check(h), explained(h)
		switch {
		case order && len(report.Findings) > 0:
			t.Fatalf("seed %d, %v: %v, but there is an order that explains it: %s", seed, what, report.Count, report.Findings[0].Text)
		case order:
			right++
		case len(report.Findings) > 0:
			wrong++
		default:
			missed++
		}
	}
	t.Logf("%d right, %d wrong, %d missed", right, wrong, missed)
	if right < wrong || missed*12 > wrong {
		t.Errorf("of %d histories that no order explains, nothing was found in %d; %d were right", wrong+missed, missed, right)
	}
}
