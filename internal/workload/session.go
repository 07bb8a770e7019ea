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
}

// next returns the next transaction of the session, which has the session's own
// lock, and sometimes others.
func (w *mixed) next() *nats.Msg {
	s := &w.session
	if s.name == "" {
		w.count++
		*s = session{name: fmt.Sprintf("%s-s%d", w.name, w.count), mark: w.Mark(w.partition)}
	}
	s.seq++
	m := NewAppend(w.partition, fmt.Sprint(s.name, " ", s.seq), "Cantus-Session", s.name, "Cantus-Session-Seq", fmt.Sprint(s.seq),
		"Cantus-High-Water-Mark", fmt.Sprint(s.mark), "Cantus-Write-Lock", "own."+s.name)
	if w.IntN(5) == 0 {
		m.Header.Add("Cantus-Write-Lock", w.lock())
	}
	return m
}

// inSession appends the next transactions of the session: one by one, together,
// or with the one before left out. A refusal ends the session, and so does an
// unknown outcome of several.
func (w *mixed) inSession(ctx context.Context) {
	m := w.next()
	switch n := w.IntN(6); {
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
	}
	w.ended(Retry(ctx, w.opts.Service, w.client, func() (Reply, error) { return w.client.AppendMsg(ctx, m) }))
}

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
