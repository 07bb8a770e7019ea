package judge

import (
	"cmp"
	"math"
	"slices"

	"github.com/cantuslog/cantus/subjects"
)

// Move is a cursor that moves with a transaction.
type Move struct {
	Cursor string `json:"cursor"`
	Txid   uint64 `json:"txid"`
}

// moves returns the cursor that moves with the transaction, the zero Move for
// none.
func (t *Transaction) moves() Move {
	if t.Move == nil {
		return Move{}
	}
	return *t.Move
}

// move is a cursor write by a transaction.
type move struct {
	txid  uint64 // of the transaction
	time  int64
	to    uint64
	owner string // that the cursor must have, and keeps
	start int64  // of the first request that can have appended it
	begun int64  // it is not older
	known int64  // when it was known to be committed
}

// collectMoves makes a list of the transactions that moved each cursor, in the
// order of the log.
func (p *partition) collectMoves() {
	p.moves, p.mayMove = map[string][]move{}, map[string][]*attempt{}
	add := func(txid uint64, time int64, tx *Transaction, start, begun int64) {
		m := move{txid, time, tx.Move.Txid, subjects.SessionOwner(tx.Session), start, begun, p.seen.reached(txid)}
		if start == math.MinInt64 {
			m.known = math.MaxInt64 // nobody here has sent it: a restore moves nothing
		}
		p.moves[tx.Move.Cursor] = append(p.moves[tx.Move.Cursor], m)
	}
	ids := map[string]bool{}
	for _, t := range p.log {
		if t.Move != nil {
			add(t.Txid, t.Time, &t.Transaction, p.spans[t.Txid].start, p.spans[t.Txid].from)
			ids[t.ID] = true
		}
	}
	for txid, as := range p.byTxid {
		if a := as[0]; a.tx.Move != nil && a.result.Time != 0 && at(p.log, txid) == nil { // trimmed or lost
			start := a.Start
			for _, b := range p.byID[a.tx.ID] {
				start = min(start, b.Start)
			}
			add(txid, a.result.Time, a.tx, start, start)
			ids[a.tx.ID] = true
		}
	}
	for i := range p.attempts {
		if a := &p.attempts[i]; a.tx.Move != nil && a.open() && !ids[a.tx.ID] && p.first > 1 {
			p.mayMove[a.tx.Move.Cursor] = append(p.mayMove[a.tx.Move.Cursor], a)
		}
	}
	for _, ms := range p.moves {
		slices.SortFunc(ms, func(a, b move) int { return cmp.Compare(a.txid, b.txid) })
	}
}

// owner returns the owner that a set leaves the cursor with, "" for none.
func (c *Cursor) owner() string {
	if c.Owner == nil || c.removes() {
		return ""
	}
	return *c.Owner
}

// removes reports whether a set removes the cursor: that of a session may be
// at 0.
func (c *Cursor) removes() bool {
	return c.Set != nil && *c.Set == 0 && (c.Owner == nil || !subjects.IsSessionOwner(*c.Owner))
}

// conditional reports whether a set depends on how the cursor is.
func (c *Cursor) conditional() bool {
	return c.Set != nil && (c.Expected != nil || c.Owner != nil || c.ExpectedOwner != nil)
}

// meets reports whether a cursor at a position and of an owner is as a set
// expects it. One that does not exist is at 0 and has no owner.
func (c *Cursor) meets(txid uint64, owner string) bool {
	owned := true
	if c.ExpectedOwner != nil {
		owned = owner == *c.ExpectedOwner
	} else if c.Owner != nil {
		owned = owner == *c.Owner || txid == 0 && owner == ""
	}
	return owned && (c.Expected == nil || *c.Expected == txid)
}

// addMoves makes a version of each transaction that moved the cursor. Its time
// is the transaction's, unless a clock was behind: then it is later.
func (c *cursor) addMoves(byTime map[int64]*version) {
	for i := range c.moves {
		m := &c.moves[i]
		v := byTime[m.time]
		switch {
		case v == nil:
			v = &version{time: uint64(m.time), txid: m.to, owner: m.owner, move: m, first: m.known}
			c.versions = append(c.versions, v)
		case v.set == nil && v.txid == m.to && v.owner == m.owner:
			v.move, v.first = m, min(v.first, m.known)
		case c.header.ClockSkew == 0:
			v.move = m
			c.find(CursorOther, "cursor %q was at %d and %q's at %d, when txid %d of that time moved it to %d for %q",
				c.name, v.txid, v.owner, v.time, m.txid, m.to, m.owner)
		}
	}
}

// unseen reports whether a version is known from the log alone. Its time may be
// later then.
func (v *version) unseen() bool { return v.move != nil && len(v.seen) == 0 }

// start returns before when a version did not exist.
func (v *version) start() int64 {
	switch {
	case v.set != nil:
		return v.set.Start
	case v.move != nil:
		return v.move.begun
	}
	return math.MinInt64
}

// late reports whether a version that is known from the log alone may be newer
// than another one, in spite of their times.
func (c *cursor) late(v, than *version) bool {
	return v.unseen() && than.time >= v.time && than.time-v.time <= uint64(c.header.ClockSkew) && c.header.ClockSkew > 0
}

// movedBefore returns the last transaction that moved the cursor and was known
// to be committed before a time, 0 if there is none.
func (c *cursor) movedBefore(at int64) uint64 {
	known := c.seen.before(at)
	i, _ := slices.BinarySearchFunc(c.moves, known+1, func(m move, txid uint64) int { return cmp.Compare(m.txid, txid) })
	for ; i > 0; i-- {
		if m := &c.moves[i-1]; m.start > math.MinInt64 {
			return m.txid
		}
	}
	return 0
}

// isMove reports whether a transaction may be what made a version that is not
// at its time.
func (c *cursor) isMove(v *version) bool {
	skew := uint64(c.header.ClockSkew)
	if slices.ContainsFunc(c.moves, func(m move) bool {
		return m.to == v.txid && m.owner == v.owner && m.begun <= v.first && v.time-uint64(m.time) <= skew
	}) {
		return true
	}
	return slices.ContainsFunc(c.mayMove, func(a *attempt) bool {
		return a.tx.Move.Txid == v.txid && subjects.SessionOwner(a.tx.Session) == v.owner && a.Start <= v.first
	})
}

// movedTo reports whether what had no answer, and is trimmed, may have moved
// the cursor to what a set expects.
func (c *cursor) movedTo(o *Operation) bool {
	return slices.ContainsFunc(c.mayMove, func(a *attempt) bool {
		return a.Start <= o.End && o.Cursor.meets(a.tx.Move.Txid, subjects.SessionOwner(a.tx.Session))
	})
}

// checkOwned checks that the cursor was the session's when a transaction moved
// it.
func (c *cursor) checkOwned() {
	for i, v := range c.versions {
		if v.move == nil || v.move.start == math.MinInt64 || !c.header.AllWriters {
			continue
		}
		given := slices.ContainsFunc(c.sets, func(s *Operation) bool { return s.Cursor.owner() == v.owner && s.Start <= v.move.known })
		for _, w := range c.versions[i+1:] {
			if !c.late(v, w) {
				break
			}
			given = given || w.move == nil && w.owner == v.owner
		}
		switch {
		case given:
		case i == 0:
			c.find(OwnerMissed, "txid %d moved cursor %q, which was nobody's, and not %q's", v.move.txid, c.name, v.owner)
		case c.versions[i-1].owner != v.owner:
			c.find(OwnerMissed, "txid %d moved cursor %q, which was %q's since %d, and not %q's", v.move.txid, c.name, c.versions[i-1].owner, c.versions[i-1].time, v.owner)
		case c.removedSurely(c.versions[i-1], v.move):
			c.find(OwnerMissed, "txid %d moved cursor %q, which was removed before, and not %q's", v.move.txid, c.name, v.owner)
		}
	}
}

// removedSurely reports whether the cursor was removed after a version and
// before a transaction moved it.
func (c *cursor) removedSurely(v *version, m *move) bool {
	return slices.ContainsFunc(c.removals, func(r *Operation) bool { return r.Outcome == OK && v.first < r.Start && r.End < m.start })
}

// checkRefusedMoves checks the refusals of transactions whose number was right:
// the cursor must not have been the session's at some time of the request.
func (c *cursor) checkRefusedMoves() {
	if !c.header.AllWriters {
		return
	}
	for i := range c.attempts {
		a := &c.attempts[i]
		if last := a.lastNumber(); last != nil && *last+1 == a.tx.SessionSeq && a.tx.moves().Cursor == c.name && c.ownedDuring(a) {
			c.find(OwnerFalse, "%v was refused because of cursor %q, which was its session's", a, c.name)
		}
	}
}

// ownedDuring reports whether the cursor was the session's from before a
// request until its end.
func (c *cursor) ownedDuring(a *attempt) bool {
	owner := subjects.SessionOwner(a.tx.Session)
	i := len(c.versions) - 1
	for i >= 0 && c.versions[i].first >= a.Start {
		i--
	}
	if i < 0 || c.versions[i].owner != owner {
		return false
	}
	now := c.versions[i]
	other := slices.ContainsFunc(c.versions[i+1:], func(v *version) bool { return v.owner != owner && v.start() <= a.End }) ||
		slices.ContainsFunc(c.sets, func(s *Operation) bool { return s.Cursor.owner() != owner && s.Start <= a.End })
	return !other && !c.removedBetween(now, a.Operation)
}
