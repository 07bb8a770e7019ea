package workload

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/judge"
)

// consumed returns a cursor that sessions share.
func (w *mixed) consumed() string { return []string{"billing", "mail", "mail"}[w.IntN(3)] }

// takeOver gives a cursor to the session, from whoever has it. If the answer is
// lost, the session moves it all the same: it is refused if it was not.
func (w *mixed) takeOver(ctx context.Context) {
	w.beginSession()
	c := judge.Cursor{Name: w.consumed(), Owner: new("session:" + w.session.name)}
	was, err := w.client.Cursor(ctx, w.partition, judge.Cursor{Name: c.Name})
	if err != nil {
		return
	}
	c.Set, c.Expected, c.ExpectedOwner = &was.Txid, &was.Txid, &was.Owner
	r, err := w.client.Cursor(ctx, w.partition, c)
	if err == nil && r.Error != nil && w.IntN(10) > 0 {
		return
	}
	w.session.cursor, w.session.at = c.Name, was.Txid
}

// addMove has a transaction of the session move its cursor, and sometimes
// another one.
func (w *mixed) addMove(m *nats.Msg) {
	s := &w.session
	name := s.cursor
	if w.opts.Moves && w.IntN(30) == 0 {
		name = w.consumed()
	}
	if name == "" || w.IntN(5) == 0 {
		return
	}
	s.at = max(min(s.at+1+w.Uint64N(20), w.Mark(w.partition)), 1)
	m.Header.Set("Cantus-Cursor", fmt.Sprintf("%s=%d", name, s.at))
}

// disturb sets a cursor that sessions share where it is, for nobody or for
// another owner, now and then where it was before, or removes it.
func (w *mixed) disturb(ctx context.Context) {
	c := judge.Cursor{Name: w.consumed()}
	was, err := w.client.Cursor(ctx, w.partition, c)
	if err != nil {
		return
	}
	c.Set, c.Expected = &was.Txid, &was.Txid
	switch w.IntN(6) {
	case 0:
		c.Set, c.Expected = new(uint64), nil // removes it
	case 1:
		c.Owner = new("nobody") // is refused, unless it is free
	case 2:
		c.Owner, c.ExpectedOwner = &was.Owner, &was.Owner
		if was.Owner == "" {
			c.Owner = nil
		}
	case 3:
		c.Set = new(was.Txid - min(was.Txid, w.Uint64N(3)))
	}
	_, _ = w.client.Cursor(ctx, w.partition, c)
}

// stays reports whether an append was refused because its cursor is not its
// session's: its number was right.
func stays(m *nats.Msg, r Reply) bool {
	return m.Header.Get("Cantus-Cursor") != "" && r.Error != nil && r.Error.SessionSeq != nil && *r.Error.SessionSeq+1 == *number(m, "Cantus-Session-Seq")
}
