package judge

import (
	"fmt"

	"github.com/cantuslog/cantus/subjects"
)

// Identify sets the ID of a transaction of a session, which its number stands
// for.
// An atomic batch has its ID in its first transaction.
func (t *Transaction) Identify() {
	if t.Session != "" && t.ID == "" {
		t.ID = fmt.Sprintf("%s number %d", t.Session, t.SessionSeq)
	}
}

// Identify is that for a stored transaction.
func (s *Stored) Identify() {
	if s.atomic().First == s.Txid {
		s.Transaction.Identify()
	}
}

// identify is that for all that an operation has.
func (o *Operation) identify() {
	if o.Append != nil {
		o.Append.Identify()
	}
	for i := range o.Batch {
		if i == 0 || !o.Atomic {
			o.Batch[i].Identify()
		}
	}
	if o.Read != nil {
		for _, t := range o.Read.Transactions {
			t.Identify()
		}
	}
	if o.Get != nil && o.Get.Transaction != nil {
		o.Get.Transaction.Identify()
	}
}

// isOf reports whether the transaction is of a session, "" for none.
func (t *Transaction) isOf(session string) bool { return session != "" && t.Session == session }

// open reports whether the request may have been carried out, by this attempt
// or by an earlier one, without the client's knowledge.
func (a *attempt) open() bool {
	last := a.lastNumber()
	return a.result.open() || last != nil && *last >= a.tx.SessionSeq
}

// lastNumber returns the last number of the session that a refusal names, nil
// if it names none.
func (a *attempt) lastNumber() *uint64 {
	if a.result.Outcome != Refused || a.result.Error.Reason != subjects.WrongLast || a.tx.Session == "" || a.tx.ExpectedLast != nil {
		return nil
	}
	return a.result.Error.SessionSeq
}

// number is a number in a session.
type number struct {
	session string
	seq     uint64
}

// checkSessions checks that the numbers of each session are in the log in
// order, without gaps, and that refusals because of them are right.
func (p *partition) checkSessions() {
	last := map[string]*Stored{}
	has := map[number]uint64{} // the txid
	for _, t := range p.log {
		if t.Session == "" {
			continue
		}
		before := last[t.Session]
		switch {
		case before == nil && p.first > 1: // those before it may be trimmed
		case before == nil && t.SessionSeq != 1:
			p.find(SessionOrder, "txid %d is number %d of session %q, and the first of it in the log", t.Txid, t.SessionSeq, t.Session)
		case before == nil, before.atomic() == t.atomic() && before.SessionSeq == t.SessionSeq:
		case t.SessionSeq != before.SessionSeq+1:
			p.find(SessionOrder, "txid %d is number %d of session %q, and follows number %d", t.Txid, t.SessionSeq, t.Session, before.SessionSeq)
		}
		last[t.Session], has[number{t.Session, t.SessionSeq}] = t, t.Txid
	}
	acknowledged := map[number]int64{} // when that was first known
	for i := range p.attempts {
		a := &p.attempts[i]
		n := number{a.tx.Session, a.tx.SessionSeq}
		if end, known := acknowledged[n]; a.acknowledged() && a.tx.Session != "" && (!known || a.End < end) {
			acknowledged[n] = a.End
		}
	}
	for i := range p.attempts {
		a := &p.attempts[i]
		if seq := a.lastNumber(); seq != nil {
			p.checkLastNumber(a, *seq, has, acknowledged)
		}
	}
}

// checkLastNumber checks the last number of a session that a refusal names.
func (p *partition) checkLastNumber(a *attempt, last uint64, has map[number]uint64, acknowledged map[number]int64) {
	txid := has[number{a.tx.Session, last}]
	switch end, known := acknowledged[number{a.tx.Session, last + 1}]; {
	case last+1 == a.tx.SessionSeq && a.tx.Move != nil: // see checkOwners
	case last+1 == a.tx.SessionSeq:
		p.find(SessionFalse, "%v was refused because the last number of its session is %d: it is the next", a, last)
	case known && end < a.Start:
		p.find(SessionFalse, "%v was refused because the last number of its session is %d: %d was acknowledged before", a, last, last+1)
	case last > 0 && p.first == 1 && txid == 0:
		p.find(SessionFalse, "%v was refused because the last number of its session is %d, which is not in the log", a, last)
	case txid > 0 && p.spans[txid].from > a.End:
		p.find(SessionFalse, "%v was refused at %d because the last number of its session is %d, which can't be older than %d", a, a.End, last, p.spans[txid].from)
	}
}
