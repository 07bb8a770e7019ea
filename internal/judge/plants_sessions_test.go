package judge_test

import (
	"testing"

	"github.com/cantuslog/cantus/internal/judge"
	"github.com/cantuslog/cantus/subjects"
)

// number returns a transaction of session s, with the write lock "hot" and the
// mark of the session's beginning.
func number(seq, mark uint64) *judge.Transaction {
	t := &judge.Transaction{Content: string(rune('a' + seq)), Session: "s", SessionSeq: seq, HighWaterMark: &mark, Write: []string{"hot"}}
	t.Identify()
	return t
}

// session appends numbers of session s, and acknowledges them. It returns false
// if the log was trimmed: the judge can't know then what was there.
func (p *planter) session(seqs ...uint64) bool {
	if p.stored(0, 1) == nil {
		return false
	}
	mark := p.last(0)
	for _, seq := range seqs {
		t := number(seq, mark)
		p.sent(0, t, p.grow(0, t).Txid)
	}
	return true
}

// wrongSeq refuses a number of session s, with the last number that counts.
func (p *planter) wrongSeq(seq, last uint64) bool {
	return p.request(&judge.Operation{Append: number(seq, p.last(0)), Result: judge.Result{
		Outcome: judge.Refused, Error: &subjects.Error{Reason: subjects.WrongLast, SessionSeq: &last}, HighWaterMark: new(p.last(0)),
	}})
}

var sessionPlants = []plant{
	{judge.SessionOrder, "a gap", func(p *planter) bool { return p.session(1, 2, 4) }},
	{judge.SessionOrder, "without its first", func(p *planter) bool { return p.session(2, 3) }},
	{judge.SessionOrder, "another order", func(p *planter) bool { return p.session(1, 2, 4, 3) }},
	{judge.SessionFalse, "the next", func(p *planter) bool { return p.session(1, 2) && p.wrongSeq(3, 2) }},
	{judge.SessionFalse, "behind what is known", func(p *planter) bool { return p.session(1, 2, 3) && p.wrongSeq(5, 2) }},
	{judge.SessionFalse, "beyond what is there", func(p *planter) bool { return p.session(1, 2) && p.wrongSeq(4, 9) }},
	{judge.SessionFalse, "before it was sent", func(p *planter) bool {
		if !p.session(1, 2, 3) || !p.wrongSeq(5, 3) {
			return false
		}
		o := p.h.Operations[len(p.h.Operations)-1]
		o.Start, o.End, o.HighWaterMark = 0, 1, nil
		return true
	}},
	{judge.ConflictFalse, "its own session", func(p *planter) bool {
		if !p.session(1, 2) {
			return false
		}
		t := number(3, p.last(0)-2)
		return p.request(&judge.Operation{Append: t, Result: judge.Result{
			Outcome: judge.Refused, HighWaterMark: new(p.last(0)), Error: &subjects.Error{
				Reason: subjects.Conflict, Lock: "hot", Txid: p.last(0),
				Conflicts: []subjects.ConflictingLock{{Lock: "hot", Mode: "write", Txid: p.last(0)}},
			},
		}})
	}},
	{judge.ConflictMissed, "between two of a session", func(p *planter) bool {
		if p.stored(0, 1) == nil {
			return false
		}
		mark := p.last(0)
		other := &judge.Transaction{Content: "other", Append: []string{"hot"}}
		for _, t := range []*judge.Transaction{number(1, mark), other, number(2, mark)} {
			p.sent(0, t, p.grow(0, t).Txid)
		}
		return true
	}},
}

// A session is right, and so are refusals of numbers that are not the next.
func TestASessionIsRight(t *testing.T) {
	tried := 0
	for seed := range uint64(20) {
		p := newPlanter(seed)
		if !p.session(1, 2, 3) {
			continue
		}
		tried++
		p.wrongSeq(5, 3)
		p.wrongSeq(9, 4) // number 4 is on its way
		u := number(4, p.last(0))
		p.sent(0, u, p.grow(0, u).Txid).Start = 0
		if r := judge.Check(p.h); len(r.Findings) > 0 {
			t.Errorf("seed %d: %v", seed, r.Findings)
		}
	}
	if tried == 0 {
		t.Error("every log was trimmed")
	}
}
