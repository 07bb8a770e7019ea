package judge_test

import (
	"strings"

	"github.com/cantuslog/cantus/internal/judge"
	"github.com/cantuslog/cantus/subjects"
)

// at returns where a cursor is, and whose it is.
func (m *model) cursorAt(name string) position {
	if p := m.cursors[name]; p != nil {
		return *p
	}
	return position{}
}

// stays refuses a transaction whose cursor is not its session's, or would be
// past the log's end. It returns the zero value of any other.
func (m *model) stays(tx *judge.Transaction) judge.Result {
	switch {
	case tx.Move == nil:
	case tx.Move.Txid > m.last():
		return refuse(subjects.Ahead)
	case m.cursorAt(tx.Move.Cursor).owner != "session:"+tx.Session:
		r := refuse(subjects.WrongLast)
		r.Error.SessionSeq = new(tx.SessionSeq - 1)
		return r
	}
	return judge.Result{}
}

// move moves the cursor of a transaction that is stored.
func (m *model) move(t *judge.Stored) {
	if t.Move != nil {
		was := m.cursorAt(t.Move.Cursor)
		m.cursors[t.Move.Cursor] = &position{t.Move.Txid, max(t.Time, was.time+1), was.owner}
	}
}

// expects reports whether a cursor is as a set expects it.
func expects(c *judge.Cursor, p *position) bool {
	now := position{}
	if p != nil {
		now = *p
	}
	switch {
	case c.Expected != nil && *c.Expected != now.txid:
		return false
	case c.ExpectedOwner != nil:
		return *c.ExpectedOwner == now.owner
	}
	return c.Owner == nil || p == nil || *c.Owner == now.owner
}

// setCursor sets or reads a cursor.
func (m *model) setCursor(c *judge.Cursor, now int64) (r judge.Result) {
	switch p := m.cursorAt(c.Name); {
	case c.Set == nil:
		r = judge.Result{Outcome: judge.OK, Txid: p.txid, Time: p.time, Owner: p.owner}
	case *c.Set > m.last():
		r = refuse(subjects.Ahead)
	case !expects(c, m.cursors[c.Name]):
		r = refuse(subjects.WrongLast)
		r.Txid, r.Time, r.Owner = p.txid, p.time, p.owner
	default:
		next := position{txid: *c.Set, time: max(epoch+now, p.time+1)}
		if m.ahead != nil {
			next.time = max(epoch+now+m.ahead(), p.time+1)
		}
		if c.Owner != nil {
			next.owner = *c.Owner
		}
		m.cursors[c.Name] = &next
		if *c.Set == 0 && !strings.HasPrefix(next.owner, "session:") {
			delete(m.cursors, c.Name)
			next = position{}
		}
		r = judge.Result{Outcome: judge.OK, Txid: next.txid, Time: next.time, Owner: next.owner}
	}
	r.HighWaterMark = new(m.last())
	return r
}

var cursorNames = []string{"billing", "audit", "mail"}

func (g *generator) cursor(m *model) {
	c := &judge.Cursor{Name: cursorNames[g.IntN(3)]}
	if g.IntN(2) == 0 {
		c.Set = new(g.Uint64N(m.last() + 1))
		if g.IntN(20) == 0 || c.Name == "mail" && g.IntN(4) == 0 {
			*c.Set = 0
		} else if g.IntN(40) == 0 {
			*c.Set = m.last() + 50
		}
		if g.IntN(2) == 0 {
			c.Expected = new(m.cursorAt(c.Name).txid)
			if g.IntN(5) == 0 {
				*c.Expected++
			}
		}
		if g.moves {
			g.own(m, c)
		}
	}
	g.add(m, &judge.Operation{Cursor: c}, func(o *judge.Operation) { o.Result = m.setCursor(c, g.now) })
}

// own has a set take a cursor over for the session of the partition, give it to
// another owner, or look at its owner.
func (g *generator) own(m *model, c *judge.Cursor) {
	was := m.cursorAt(c.Name)
	switch n := g.IntN(6); {
	case n < 3 && g.writers[m.number] != nil:
		c.Set, c.Expected = &was.txid, new(was.txid)
		c.Owner, c.ExpectedOwner = new("session:"+g.writers[m.number].name), new(was.owner)
	case n == 3:
		c.Owner = new([]string{"b1", "b2"}[g.IntN(2)])
	case n == 4:
		c.ExpectedOwner = new(was.owner)
	}
	if c.ExpectedOwner != nil && g.IntN(6) == 0 {
		*c.ExpectedOwner = "b1"
	}
}

// addMove has a transaction of a session move a cursor, if it was given one.
func (g *generator) addMove(m *model, t *judge.Transaction) {
	name := cursorNames[g.IntN(3)]
	if !g.moves || m.cursorAt(name).owner != "session:"+t.Session && g.IntN(8) > 0 {
		return
	}
	t.Move = &judge.Move{Cursor: name, Txid: 1 + g.Uint64N(max(m.last(), 1))}
	if g.IntN(30) == 0 {
		t.Move.Txid += 50
	}
}
