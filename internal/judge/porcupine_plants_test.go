package judge_test

import (
	"testing"

	"github.com/cantuslog/cantus/internal/judge"
	"github.com/cantuslog/cantus/subjects"
)

// script is a short history, one operation after the other, which a test
// writes.
type script struct {
	m     *model
	h     *judge.History
	now   int64
	wrong bool // whether it plants its error
}

func newScript(wrong bool) *script {
	return &script{m: newModel(0), h: &judge.History{Header: judge.Header{Version: judge.Version, Partitions: 1, Replicas: 1, AllWriters: true, MessageIDWindow: window}}, wrong: wrong}
}

// add adds an operation, and returns it.
func (s *script) add(o *judge.Operation) *judge.Operation {
	s.now += 100
	o.Client, o.Start, o.End = "c", s.now, s.now+10
	s.h.Operations = append(s.h.Operations, o)
	return o
}

// sends sends a transaction, which the model decides on.
func (s *script) sends(t *judge.Transaction) *judge.Operation {
	o := s.add(&judge.Operation{Append: t})
	o.Result = s.m.decide(t, s.now)
	return o
}

// stores has a transaction stored and acknowledged, whatever it is.
func (s *script) stores(t *judge.Transaction) {
	o := s.add(&judge.Operation{Append: t})
	o.Result = s.m.store(t, s.now)
}

// batch sends an atomic batch of as many transactions.
func (s *script) batch(n int, session string, seq uint64) *judge.Operation {
	o := s.add(&judge.Operation{Atomic: true})
	for i := range n {
		o.Batch = append(o.Batch, judge.Transaction{Content: "part " + string(rune('a'+i)), Session: session, SessionSeq: seq})
	}
	if session == "" {
		o.Batch[0].ID = "whole"
	} else {
		o.Batch[0].HighWaterMark = new(uint64)
		o.Batch[0].Identify()
	}
	for i := range o.Batch {
		o.Batch[i].HighWaterMark = o.Batch[0].HighWaterMark
	}
	s.m.atomic(o, s.now)
	o.HighWaterMark = nil
	return o
}

// describes has a description of the partition with a high-water mark.
func (s *script) describes(mark uint64) {
	s.add(&judge.Operation{Info: &judge.Info{FirstTxid: 1, Term: 1, Leader: "n1"}, Result: judge.Result{Outcome: judge.OK, HighWaterMark: &mark}})
}

// reads reads transactions from txid 1 on, of a log with a high-water mark.
func (s *script) reads(n int, mark uint64) {
	s.add(&judge.Operation{
		Read:   &judge.Read{From: 1, Transactions: s.m.log[:n:n], Next: uint64(n) + 1},
		Result: judge.Result{Outcome: judge.OK, HighWaterMark: &mark},
	})
}

// sets reads or sets the cursor "k", which the model decides on.
func (s *script) sets(c judge.Cursor) *judge.Operation {
	c.Name = "k"
	o := s.add(&judge.Operation{Cursor: &c})
	o.Result = s.m.setCursor(o.Cursor, s.now)
	return o
}

// gives hands the cursor, where it is, to session s or to another owner.
func (s *script) gives(owner string) *judge.Operation {
	return s.sets(judge.Cursor{Set: new(s.m.cursorAt("k").txid), Owner: &owner, ExpectedOwner: new(s.m.cursorAt("k").owner)})
}

// moving returns a number of session s that moves the cursor.
func moving(seq, to uint64) *judge.Transaction {
	t := number(seq, 0)
	t.Move = &judge.Move{Cursor: "k", Txid: to}
	return t
}

// finish adds an acknowledged transaction, and the log.
func (s *script) finish() *judge.History {
	s.sends(&judge.Transaction{ID: "last", Content: "last"})
	s.h.Drains = []*judge.Drain{{Replica: "n1", FirstTxid: 1, HighWaterMark: s.m.last(), Transactions: s.m.log}}
	return s.h
}

// tornBy makes what follows the first transaction of an atomic batch in the log
// lack.
func (s *script) tornBy(batch *judge.Operation) {
	s.m.log = s.m.log[:batch.Results[0].Txid]
	batch.Result, batch.Results = judge.Result{Outcome: judge.Unknown}, nil
}

// scripts are short histories with an error that each may leave out.
var scripts = map[string]func(*script){
	"a gap": func(s *script) {
		s.sends(number(1, 0))
		s.sends(number(2, 0))
		if s.wrong {
			s.stores(number(4, 0))
		} else {
			s.sends(number(4, 0))
			s.sends(number(3, 0))
		}
	},
	"a gap over what had no answer": func(s *script) {
		s.sends(number(1, 0))
		lost := s.sends(number(2, 0))
		lost.Result = judge.Result{Outcome: judge.Unknown}
		if s.wrong {
			s.m.log = s.m.log[:1]
			s.stores(number(3, 0))
		} else {
			s.sends(number(3, 0))
		}
	},
	"a session without its first": func(s *script) {
		if s.sends(&judge.Transaction{ID: "other", Content: "other"}); s.wrong {
			s.stores(number(2, 1))
		} else {
			s.sends(number(2, 1))
		}
	},
	"a number twice": func(s *script) {
		s.sends(number(1, 0))
		s.sends(number(2, 0))
		if s.wrong {
			s.stores(number(2, 0))
		} else {
			s.sends(number(2, 0))
		}
	},
	"a number twice, one without an answer": func(s *script) {
		s.sends(number(1, 0))
		lost := s.sends(number(2, 0))
		lost.Result = judge.Result{Outcome: judge.Unknown}
		if s.wrong {
			s.stores(number(2, 0))
		} else {
			s.sends(number(2, 0))
		}
	},
	"a conflict with itself": func(s *script) {
		s.sends(number(1, 0))
		if s.wrong {
			s.add(&judge.Operation{Append: number(2, 0), Result: refuse(subjects.Conflict)}).Error = &subjects.Error{
				Reason: subjects.Conflict, Lock: "hot", Txid: 1, Conflicts: []subjects.ConflictingLock{{Lock: "hot", Mode: "write", Txid: 1}},
			}
		} else {
			s.sends(number(2, 0))
		}
	},
	"a conflict with others, missed": func(s *script) {
		s.sends(number(1, 0))
		s.sends(&judge.Transaction{ID: "other", Content: "other", Append: []string{"hot"}})
		if s.wrong {
			s.stores(number(2, 0))
		} else {
			s.sends(number(2, 0))
		}
	},
	"the next number refused": func(s *script) {
		s.sends(number(1, 0))
		o := s.sends(number(3, 0))
		if s.wrong {
			o.Append = number(2, 0)
		}
	},
	"another last number": func(s *script) {
		s.sends(number(1, 0))
		s.sends(number(2, 0))
		o := s.sends(number(5, 0))
		if s.wrong {
			o.Error.SessionSeq = new(uint64(1))
		}
	},
	"a number twice, one an atomic batch": func(s *script) {
		s.sends(number(1, 0))
		lost := s.batch(2, "s", 2)
		lost.Result, lost.Results = judge.Result{Outcome: judge.Unknown}, nil
		if s.wrong {
			s.stores(number(2, 0))
		} else {
			s.sends(number(3, 0))
		}
	},
	"a cursor that has not moved": func(s *script) {
		s.sends(number(1, 0))
		was := s.gives("session:s")
		s.sends(moving(2, 1))
		if read := s.sets(judge.Cursor{}); s.wrong {
			read.Txid, read.Time = was.Txid, was.Time
		}
	},
	"a cursor that has moved without an answer": func(s *script) {
		s.sends(number(1, 0))
		was := s.gives("session:s")
		s.sends(moving(2, 1)).Result = judge.Result{Outcome: judge.Unknown}
		s.sends(number(3, 0))
		if read := s.sets(judge.Cursor{}); s.wrong {
			read.Txid, read.Time = was.Txid, was.Time
		}
	},
	"a cursor that is not the session's any more": func(s *script) {
		s.sends(number(1, 0))
		s.gives("session:s")
		s.sends(moving(2, 1))
		if s.gives("session:t"); s.wrong {
			s.stores(moving(3, 2))
		} else {
			s.sends(moving(3, 2))
		}
	},
	"a cursor that is nobody's": func(s *script) {
		if s.sends(number(1, 0)); s.wrong {
			s.stores(moving(2, 1))
		} else {
			s.sends(moving(2, 1))
		}
	},
	"a cursor that is the session's": func(s *script) {
		s.sends(number(1, 0))
		s.gives("session:s")
		if s.wrong {
			s.add(&judge.Operation{Append: moving(2, 1), Result: refuse(subjects.WrongLast)}).Error.SessionSeq = new(uint64(1))
		} else {
			s.sends(moving(2, 1))
		}
	},
	"a cursor that is taken over from where it was": func(s *script) {
		s.sends(number(1, 0))
		s.gives("session:s")
		s.sends(moving(2, 1))
		o := s.sets(judge.Cursor{Set: new(uint64(1)), Expected: new(uint64(1)), Owner: new("session:t"), ExpectedOwner: new("session:s")})
		if s.wrong {
			o.Cursor.Expected = new(uint64)
		}
	},
	"a torn atomic batch": func(s *script) {
		if b := s.batch(2, "", 0); s.wrong {
			s.tornBy(b)
		}
	},
	"a torn atomic batch of a session": func(s *script) {
		s.sends(number(1, 0))
		if b := s.batch(3, "s", 2); s.wrong {
			s.tornBy(b)
		}
	},
	"an atomic batch that is stored apart": func(s *script) {
		if s.batch(2, "", 0); s.wrong {
			s.m.log[0].Atomic, s.m.log[1].Atomic = nil, nil
		}
	},
	"an atomic batch with another transaction in it": func(s *script) {
		b := s.batch(2, "", 0)
		other := s.sends(&judge.Transaction{ID: "other", Content: "other"})
		if !s.wrong {
			return
		}
		s.m.log[1], s.m.log[2] = s.m.log[2], s.m.log[1]
		s.m.log[1].Txid, s.m.log[2].Txid = 2, 3
		b.Results[1].Txid, other.Txid = 3, 2
		s.m.log[1].Time, s.m.log[2].Time = s.m.log[2].Time, s.m.log[1].Time
		b.Results[1].Time, other.Time = 0, 0
	},
	"an atomic batch that is partly described": func(s *script) {
		if s.batch(2, "", 0); s.wrong {
			s.describes(1)
		} else {
			s.describes(2)
		}
	},
	"an atomic batch that is partly read": func(s *script) {
		if s.batch(2, "", 0); s.wrong {
			s.reads(1, 1)
		} else {
			s.reads(1, 2) // a read may end there, the log may not
		}
	},
	"an atomic batch of which a part is acknowledged": func(s *script) {
		if b := s.batch(3, "", 0); s.wrong {
			b.Results = b.Results[:2]
			b.Batch = b.Batch[:2]
		}
	},
}

// TestBothJudgesFindPlantedErrors checks that both judges find the error of
// each script, and nothing without it.
func TestBothJudgesFindPlantedErrors(t *testing.T) {
	for name, write := range scripts {
		t.Run(name, func(t *testing.T) {
			for _, wrong := range []bool{false, true} {
				s := newScript(wrong)
				write(s)
				h := s.finish()
				if is := explained(h); is == wrong {
					t.Errorf("with an error %t: there is an order that explains it: %t", wrong, is)
				}
				if r := judge.Check(h); len(r.Findings) > 0 != wrong {
					t.Errorf("with an error %t: the first judge finds %v", wrong, r.Findings)
				}
			}
		})
	}
}
