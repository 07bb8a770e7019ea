package judge_test

import (
	"testing"

	"github.com/cantuslog/cantus/internal/judge"
	"github.com/cantuslog/cantus/subjects"
)

// mover plants what concerns a cursor that moves with transactions of
// partition 1, which is never trimmed. Its sessions are s and t.
type mover struct {
	*planter
	seq  map[string]uint64
	sets int64
}

func withMoves(in func(*mover)) func(*planter) bool {
	return func(p *planter) bool {
		in(&mover{planter: p, seq: map[string]uint64{}})
		return true
	}
}

const ofS, ofT = "session:s", "session:t"

// cursor adds an operation on the cursor "moving" at the end.
func (p *mover) cursor(c judge.Cursor, r judge.Result) *judge.Operation {
	c.Name = "moving"
	if r.Outcome == "" {
		r.Outcome = judge.OK
	}
	r.HighWaterMark = new(p.last(1))
	o := &judge.Operation{Partition: 1, Start: p.end(), End: p.end() + 10, Cursor: &c, Result: r}
	p.add(o)
	return o
}

// later returns a time after that of the last transaction, another one each
// time.
func (p *mover) later() int64 {
	p.sets++
	log := p.drains(1)[0].Transactions
	return log[len(log)-1].Time + 10*p.sets
}

// gives sets the cursor to a position and an owner, from those that are
// expected.
func (p *mover) gives(from uint64, fromOwner string, to uint64, owner string) *judge.Operation {
	return p.cursor(judge.Cursor{Set: &to, Expected: &from, Owner: &owner, ExpectedOwner: &fromOwner}, judge.Result{Txid: to, Time: p.later(), Owner: owner})
}

// reads reads the cursor.
func (p *mover) reads(txid uint64, time int64, owner string) *judge.Operation {
	return p.cursor(judge.Cursor{}, judge.Result{Txid: txid, Time: time, Owner: owner})
}

// next returns the next transaction of a session, which moves the cursor.
func (p *mover) next(session string, to uint64) *judge.Transaction {
	p.seq[session]++
	mark := p.last(1)
	t := &judge.Transaction{
		Content: session + string(rune('0'+p.seq[session])), Session: session, SessionSeq: p.seq[session], HighWaterMark: &mark,
		Move: &judge.Move{Cursor: "moving", Txid: to},
	}
	t.Identify()
	return t
}

// moves commits the next transaction of a session, and acknowledges it.
func (p *mover) moves(session string, to uint64) *judge.Stored {
	t := p.next(session, to)
	s := p.grow(1, t)
	p.sent(1, t, s.Txid).Time = s.Time
	return s
}

// stays refuses the next transaction of a session because of its cursor.
func (p *mover) stays(session string) {
	t := p.next(session, 1)
	p.request(&judge.Operation{Partition: 1, Append: t, Result: judge.Result{
		Outcome: judge.Refused, Error: &subjects.Error{Reason: subjects.WrongLast, SessionSeq: new(t.SessionSeq - 1)}, HighWaterMark: new(p.last(1)),
	}})
}

// elsewhere refuses a set from a position and an owner, with what is there.
func (p *mover) elsewhere(from uint64, fromOwner string, txid uint64, time int64, owner string) {
	r := refuse(subjects.WrongLast)
	r.Txid, r.Time, r.Owner = txid, time, owner
	p.cursor(judge.Cursor{Set: new(uint64(3)), Expected: &from, ExpectedOwner: &fromOwner}, r)
}

var movePlants = []plant{
	{judge.MoveMissed, "the position before", withMoves(func(p *mover) {
		g := p.gives(0, "", 2, ofS)
		p.moves("s", 5)
		p.reads(2, g.Time, ofS)
	})},
	{judge.MoveMissed, "the one before the last", withMoves(func(p *mover) {
		p.gives(0, "", 2, ofS)
		t := p.moves("s", 5)
		p.moves("s", 6)
		p.reads(5, t.Time, ofS)
	})},
	{judge.MoveMissed, "nothing", withMoves(func(p *mover) {
		g := p.cursor(judge.Cursor{Set: new(uint64(2)), Owner: new(ofS)}, judge.Result{})
		g.Result = unknown
		p.moves("s", 5)
		p.reads(0, 0, "")
	})},
	{judge.MoveMissed, "in a refusal", withMoves(func(p *mover) {
		g := p.gives(0, "", 2, ofS)
		p.moves("s", 5)
		p.elsewhere(5, ofS, 2, g.Time, ofS)
	})},
	{judge.MoveMissed, "clocks that differ", withMoves(func(p *mover) {
		p.h.Header.ClockSkew = 1_000_000_000
		g := p.gives(0, "", 2, ofS)
		p.moves("s", 5)
		p.reads(2, g.Time, ofS)
	})},
	{judge.CursorStale, "older than a move that was seen", withMoves(func(p *mover) {
		g := p.gives(0, "", 2, ofS)
		t := p.moves("s", 5)
		p.reads(5, t.Time, ofS)
		p.reads(2, g.Time, ofS)
	})},
	{judge.CursorLost, "a move between", withMoves(func(p *mover) {
		p.gives(0, "", 2, ofS)
		p.moves("s", 5)
		p.gives(2, ofS, 2, ofT)
	})},
	{judge.CursorLost, "a move between, and clocks that differ", withMoves(func(p *mover) {
		p.h.Header.ClockSkew = 1_000_000_000
		p.gives(0, "", 2, ofS)
		p.moves("s", 5)
		p.gives(2, ofS, 2, ofT)
	})},
	{judge.CursorLost, "of another owner", withMoves(func(p *mover) {
		p.gives(0, "", 2, ofS)
		p.gives(2, ofT, 2, ofS)
	})},
	{judge.CursorLost, "for an owner that has it not", withMoves(func(p *mover) {
		p.gives(0, "", 2, "b1")
		p.cursor(judge.Cursor{Set: new(uint64(3)), Owner: new("b2")}, judge.Result{Txid: 3, Time: p.later(), Owner: "b2"})
	})},
	{judge.CursorOther, "two owners of a time", withMoves(func(p *mover) {
		g := p.gives(0, "", 2, ofS)
		p.reads(2, g.Time, ofT)
	})},
	{judge.CursorOther, "another position than a transaction moved it to", withMoves(func(p *mover) {
		p.gives(0, "", 2, ofS)
		t := p.moves("s", 5)
		p.reads(4, t.Time, ofS)
	})},
	{judge.CursorOther, "set for another", withMoves(func(p *mover) { p.gives(0, "", 2, ofS).Owner = ofT })},
	{judge.CursorInvented, "an owner", withMoves(func(p *mover) {
		g := p.gives(0, "", 2, ofS)
		p.reads(2, g.Time+1, ofT)
	})},
	{judge.CursorInvented, "another owner than was sent", withMoves(func(p *mover) {
		p.gives(0, "", 2, ofS).Result = unknown
		p.reads(2, p.later(), ofT)
	})},
	{judge.CursorInvented, "a move that is not in the log", withMoves(func(p *mover) {
		g := p.gives(0, "", 2, ofS)
		p.add(&judge.Operation{Partition: 1, Start: p.end(), End: p.end(), Append: p.next("s", 5), Result: unknown})
		p.reads(5, g.Time+5, ofS)
	})},
	{judge.CursorInvented, "before it moved", withMoves(func(p *mover) {
		p.gives(0, "", 2, ofS)
		r := p.reads(5, 0, ofS)
		r.Time = p.moves("s", 5).Time
	})},
	{judge.CursorRefused, "as it expects, with its owner", withMoves(func(p *mover) {
		g := p.gives(0, "", 2, ofS)
		p.elsewhere(2, ofS, 2, g.Time, ofS)
	})},
	{judge.OwnerMissed, "nobody's", withMoves(func(p *mover) { p.moves("s", 5) })},
	{judge.OwnerMissed, "without an owner", withMoves(func(p *mover) {
		p.cursor(judge.Cursor{Set: new(uint64(2))}, judge.Result{Txid: 2, Time: p.later()})
		p.moves("s", 5)
	})},
	{judge.OwnerMissed, "another's", withMoves(func(p *mover) {
		p.gives(0, "", 2, ofT)
		p.moves("s", 5)
	})},
	{judge.OwnerMissed, "taken over", withMoves(func(p *mover) {
		p.gives(0, "", 2, ofS)
		p.moves("s", 5)
		p.gives(5, ofS, 5, ofT)
		p.grow(1, only("between"))
		p.sent(1, only("between"), p.last(1))
		p.moves("s", 6)
	})},
	{judge.OwnerMissed, "removed", withMoves(func(p *mover) {
		p.gives(0, "", 2, ofS)
		p.moves("s", 5)
		p.cursor(judge.Cursor{Set: new(uint64)}, judge.Result{})
		p.moves("s", 6)
	})},
	{judge.OwnerFalse, "given, and never taken", withMoves(func(p *mover) {
		p.gives(0, "", 2, ofS)
		p.stays("s")
	})},
	{judge.OwnerFalse, "it has moved already", withMoves(func(p *mover) {
		p.gives(0, "", 2, ofT)
		p.gives(2, ofT, 2, ofS)
		p.moves("s", 5)
		p.stays("s")
	})},
	{judge.SessionFalse, "the next, without a cursor", withMoves(func(p *mover) {
		p.gives(0, "", 2, ofT)
		p.stays("s")
		p.h.Operations[len(p.h.Operations)-1].Append.Move = nil
	})},
	{judge.AheadMissed, "a cursor at its own txid", withMoves(func(p *mover) {
		p.gives(0, "", 2, ofS)
		p.moves("s", p.last(1)+1)
	})},
	{judge.AcknowledgedOther, "another cursor", withMoves(func(p *mover) {
		p.gives(0, "", 2, ofS)
		t := p.moves("s", 5)
		t.Move = &judge.Move{Cursor: "moving", Txid: 4}
	})},
}

// TestACursorMovesRight checks that nothing is found where a cursor moves, is
// taken over, and is at 0 for a session.
func TestACursorMovesRight(t *testing.T) {
	for seed := range uint64(10) {
		p := &mover{planter: newPlanter(seed), seq: map[string]uint64{}}
		p.stays("s")
		p.seq["s"] = 0
		zero := p.gives(0, "", 0, ofS)
		p.reads(0, zero.Time, ofS)
		p.moves("s", 4)
		seen := p.moves("s", 5)
		p.reads(5, seen.Time, ofS)
		p.elsewhere(4, ofS, 5, seen.Time, ofS)
		p.elsewhere(5, ofT, 5, seen.Time, ofS)
		p.moves("s", 3)
		lost := p.gives(3, ofS, 3, ofT)
		lost.Result = unknown
		p.stays("s")
		p.moves("t", 7)
		p.cursor(judge.Cursor{Set: new(uint64)}, judge.Result{})
		p.stays("t")
		p.reads(0, 0, "")
		if r := judge.Check(p.h); len(r.Findings) > 0 {
			t.Errorf("seed %d: %v", seed, r.Findings)
		}
	}
}
