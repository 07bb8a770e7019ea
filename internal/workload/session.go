package workload

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go"
)

// session is a session of a client of a mix.
type session struct {
	name string // "" before the first
	mark uint64
	seq  uint64 // of the last transaction that was sent
	// cursor is the cursor that the session was given, "" for none, and at is
	// where it goes next.
	cursor string
	at     uint64
}

// beginSession begins a session if there is none.
func (w *mixed) beginSession() {
	if w.session.name == "" {
		w.count++
		w.session = session{name: fmt.Sprintf("%s-s%d", w.name, w.count), mark: w.Mark(w.partition)}
	}
}

// next returns the next transaction of the session, which has the session's own
// lock, and sometimes others.
func (w *mixed) next() *nats.Msg {
	w.beginSession()
	s := &w.session
	s.seq++
	m := NewAppend(w.partition, fmt.Sprint(s.name, " ", s.seq), "Cantus-Session", s.name, "Cantus-Session-Seq", fmt.Sprint(s.seq),
		"Cantus-High-Water-Mark", fmt.Sprint(s.mark), "Cantus-Write-Lock", "own."+s.name)
	if w.IntN(5) == 0 {
		m.Header.Add("Cantus-Write-Lock", w.lock())
	}
	w.addMove(m)
	return m
}

// inSession appends the next transactions of the session: one by one, without
// waiting, together, or with the one before left out. A refusal ends the
// session, and so does an unknown outcome of several that are sent together.
func (w *mixed) inSession(ctx context.Context) {
	if w.opts.Moves && w.IntN(3) == 0 {
		w.takeOver(ctx)
	}
	m := w.next()
	switch n := w.IntN(9); {
	case n < 2:
		msgs := []*nats.Msg{m}
		for range w.IntN(5) {
			msgs = append(msgs, w.next())
		}
		for range 3 { // again, if it had no answer
			if mark, err := w.client.Batch(ctx, w.partition, msgs); err == nil {
				w.saw(w.partition, mark)
				break
			}
		}
		w.session = session{}
		return
	case n == 2:
		if _, err := w.client.AppendMsg(ctx, w.next()); err != nil { // it comes first
			w.session = session{}
			return
		}
		w.session.seq--
	case n == 3:
		if w.opts.Atomic {
			w.atomicInSession(ctx, m)
			return
		}
	case n > 5:
		w.pipeline(ctx, m)
		return
	}
	w.ended(Retry(ctx, w.opts.Service, w.client, func() (Reply, error) { return w.client.AppendMsg(ctx, m) }))
}

// pipeline appends the next transactions of the session without waiting for
// answers in between. It goes back to the first that has none, and sends that
// and all that follow again, in order.
func (w *mixed) pipeline(ctx context.Context, first *nats.Msg) {
	open := []*nats.Msg{first}
	for range 1 + w.IntN(7) {
		open = append(open, w.next())
	}
	all, early := open, 0
	r, tries, err := Retry(ctx, w.opts.Service, w.client, func() (r Reply, err error) {
		for _, a := range w.client.AppendAll(ctx, open) {
			if r, err = a.Reply, a.Err; again(r, err) {
				return r, err
			}
			switch s := number(open[0], "Cantus-Session-Seq"); {
			case err != nil:
				return r, err
			case stays(open[0], r): // for good
				return r, nil
			case r.Error != nil && r.Error.SessionSeq != nil && *r.Error.SessionSeq >= *s: // committed before
				r.Error = nil
			case r.Error != nil && r.Error.SessionSeq != nil && early < maxEarly: // it was there before the one before it
				early++
				return r, ErrNoAnswer
			case r.Error != nil:
				return r, nil
			}
			w.saw(w.partition, max(r.Txid, r.HighWaterMark))
			open = open[1:]
		}
		return r, nil
	})
	if w.ended(r, tries, err); len(open) == 0 && w.IntN(4) == 0 {
		w.client.AppendAll(ctx, all) // all of them are repeats
	}
}

// maxEarly is how often a number is sent again because the one before it is
// said to be missing.
const maxEarly = 20

// atomicInSession appends an atomic batch as the next transaction of the
// session.
func (w *mixed) atomicInSession(ctx context.Context, whole *nats.Msg) {
	var msgs []*nats.Msg
	for range 1 + w.IntN(4) {
		msgs = append(msgs, NewAppend(w.partition, fmt.Sprint(w.session.name, " ", w.session.seq, " ", len(msgs)), "Cantus-Write-Lock", "own."+w.session.name))
	}
	w.ended(Retry(ctx, w.opts.Service, w.client, func() (Reply, error) { return w.client.Atomic(ctx, w.partition, whole, msgs) }))
}

// ended ends the session unless its last transaction was appended.
func (w *mixed) ended(r Reply, _ int, err error) {
	if err != nil || r.Error != nil {
		w.session = session{}
		return
	}
	w.saw(w.partition, max(r.Txid, r.HighWaterMark))
}
