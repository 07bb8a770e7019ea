package judge_test

import (
	"slices"

	"github.com/cantuslog/cantus/internal/judge"
	"github.com/cantuslog/cantus/subjects"
)

// isOf reports whether a transaction is of a session, "" for none.
func isOf(t *judge.Stored, session string) bool { return session != "" && t.Session == session }

// lastNumber returns the last number of a session that was accepted, 0 if the
// session is not known.
func (m *model) lastNumber(session string) uint64 {
	for _, t := range slices.Backward(m.log[m.first-1:]) {
		if isOf(t, session) {
			return t.SessionSeq
		}
	}
	return 0
}

// wrongNumber returns the refusal of a transaction that is not the next one of
// its session, and the zero value of any other.
func (m *model) wrongNumber(tx *judge.Transaction) judge.Result {
	if tx.Session == "" {
		return judge.Result{}
	}
	last, floor := m.lastNumber(tx.Session), m.first-1
	known := last > 0 || floor == 0
	switch {
	case tx.SessionSeq == last+1 && (known || *tx.HighWaterMark >= floor):
		return judge.Result{}
	case known:
		r := refuse(subjects.WrongLast)
		r.Error.SessionSeq = &last
		return r
	}
	return refuse(subjects.WrongLast)
}

// sessionWriter is the writer of a session of a generated history.
type sessionWriter struct {
	name string
	lock string
	last uint64
	open *judge.Operation   // the next number, if it was sent and had no answer
	sent []*judge.Operation // those that were accepted
}

// inSession appends the next number of a session, or one that was appended
// before, or one too far.
func (g *generator) inSession(m *model) {
	w := g.writers[m.number]
	if w == nil || g.IntN(12) == 0 {
		w = &sessionWriter{name: g.text("s"), lock: lockNames[g.IntN(len(lockNames))]}
		g.writers[m.number] = w
	}
	switch n := g.IntN(8); {
	case n == 0 && len(w.sent) > 0:
		g.addSession(m, w.sent[g.IntN(len(w.sent))])
	case n == 1:
		g.addSession(m, g.numbered(m, w, w.last+2))
	default:
		o := w.open
		if o == nil {
			o = g.numbered(m, w, w.last+1)
		}
		switch r := g.addSession(m, o); {
		case r.Outcome == judge.OK:
			w.last++
			w.sent, w.open = append(w.sent, o), nil
		case r.Outcome == judge.Unknown:
			w.open = o
		case r.Error.Reason == subjects.WrongLast:
			delete(g.writers, m.number) // it is over
		default:
			w.open = nil
		}
	}
}

// numbered returns a transaction of a session, or an atomic batch.
func (g *generator) numbered(m *model, w *sessionWriter, seq uint64) *judge.Operation {
	first := g.transaction(m)
	mark := m.last() - min(m.last(), g.Uint64N(6))
	first.ID, first.Session, first.SessionSeq, first.ExpectedLast, first.HighWaterMark = "", w.name, seq, nil, &mark
	first.Write = append(first.Write, w.lock)
	g.addMove(m, first)
	if !g.atomics || g.IntN(4) > 0 {
		first.Identify()
		return &judge.Operation{Append: first}
	}
	o := &judge.Operation{Atomic: true, Batch: []judge.Transaction{*first}}
	o.Batch[0].Identify()
	for range g.IntN(3) {
		o.Batch = append(o.Batch, judge.Transaction{
			Session: w.name, SessionSeq: seq, HighWaterMark: &mark, Content: g.text("c"), Write: g.locks(), Append: g.locks(),
		})
	}
	return o
}

// addSession sends what an operation has sent, and returns what its client
// knows afterwards.
func (g *generator) addSession(m *model, sent *judge.Operation) judge.Result {
	o := &judge.Operation{Append: sent.Append, Batch: sent.Batch, Atomic: sent.Atomic}
	g.add(m, o, func(o *judge.Operation) {
		if o.Append != nil {
			o.Result = m.append(o.Append, g.now)
			return
		}
		m.atomic(o, g.now)
		g.now += int64(len(o.Batch))
		o.End = max(o.End, g.now)
	})
	return o.Result
}
