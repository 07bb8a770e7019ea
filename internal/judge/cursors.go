package judge

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/cantuslog/cantus/subjects"
)

// cursor is what the judge knows of one cursor. Each time it is set, or moves
// with a transaction, it gets a time, later than any before. So the times are
// versions, and give the order in which that happened.
type cursor struct {
	*partition
	name      string
	moves     []move       // by transactions, in the order of the log
	mayMove   []*attempt   // that may have moved it, and are not in the log
	versions  []*version   // in ascending order
	unset     []*Operation // answers that there is no such cursor
	sets      []*Operation // that don't remove it, without an answer
	removals  []*Operation // that happened or may have
	unordered bool         // the times may not be versions
}

// version is a position that a cursor had.
type version struct {
	time, txid uint64
	owner      string
	set        *Operation   // that set it; nil if it had no answer
	move       *move        // that moved it there; nil if none had this time
	seen       []*Operation // with this answer, set among them
	first      int64        // the earliest end of these, or when the move was known
}

// checkCursors checks that each cursor behaves like one register.
func (p *partition) checkCursors() {
	p.collectMoves()
	byName := map[string][]*Operation{}
	for name := range p.moves {
		byName[name] = nil
	}
	for _, a := range p.attempts {
		if a.tx.Move != nil {
			byName[a.tx.Move.Cursor] = nil
		}
	}
	for _, o := range p.operations {
		if o.Cursor != nil {
			byName[o.Cursor.Name] = append(byName[o.Cursor.Name], o)
		}
	}
	for name, operations := range byName {
		c := &cursor{partition: p, name: name, moves: p.moves[name], mayMove: p.mayMove[name]}
		c.collect(operations)
		c.checkVersions()
		if !c.unordered {
			c.checkFresh()
			c.checkUnset()
			c.checkExpected()
			c.checkOwned()
			c.checkRefusedMoves()
		}
	}
}

func (c *cursor) collect(operations []*Operation) {
	byTime := map[int64]*version{}
	for _, o := range operations {
		set := o.Cursor.Set
		switch {
		case o.Outcome == OK && set != nil && (o.Txid != *set || o.Owner != o.Cursor.owner()):
			c.find(CursorOther, "%s set cursor %q to %d for %q at %d, and the answer says %d for %q", o.Client, c.name, *set, o.Cursor.owner(), o.Start, o.Txid, o.Owner)
		case o.Cursor.removes() && (o.Outcome == OK || o.open()):
			c.removals = append(c.removals, o)
			c.unordered = c.unordered || c.header.ClockSkew > 0
		case set != nil && o.open():
			c.sets = append(c.sets, o)
		case o.Outcome == Refused && o.Error.Reason != subjects.WrongLast || o.Outcome == Unknown:
		case o.Outcome == Refused && o.Cursor.conditional() && o.Cursor.meets(o.Txid, o.Owner):
			c.find(CursorRefused, "%s's set of cursor %q at %d was refused because it is at %d and %q's, as it expects", o.Client, c.name, o.Start, o.Txid, o.Owner)
		case o.Txid == 0 && o.Time == 0:
			c.unset = append(c.unset, o)
		case o.Time == 0:
			c.unordered = true
		default:
			v := byTime[o.Time]
			if v == nil {
				v = &version{time: uint64(o.Time), txid: o.Txid, owner: o.Owner, first: math.MaxInt64}
				byTime[o.Time] = v
				c.versions = append(c.versions, v)
			}
			if v.txid != o.Txid || v.owner != o.Owner || o.Outcome == OK && set != nil && v.set != nil {
				c.find(CursorOther, "cursor %q was at %d for %q and at %d for %q at the same time %d", c.name, v.txid, v.owner, o.Txid, o.Owner, o.Time)
				continue
			}
			if o.Outcome == OK && set != nil {
				v.set = o
			}
			v.seen, v.first = append(v.seen, o), min(v.first, o.End)
		}
	}
	c.addMoves(byTime)
	slices.SortFunc(c.versions, func(a, b *version) int { return cmp.Compare(a.time, b.time) })
}

// checkVersions checks that somebody set each position, or moved the cursor
// there.
func (c *cursor) checkVersions() {
	for _, v := range c.versions {
		if v.set != nil || v.move != nil && v.move.begun <= v.first || !c.header.AllWriters {
			continue
		}
		if !c.isMove(v) && !slices.ContainsFunc(c.sets, func(o *Operation) bool {
			return *o.Cursor.Set == v.txid && o.Cursor.owner() == v.owner && o.Start <= v.first
		}) {
			c.find(CursorInvented, "cursor %q was at %d for %q, with the time %d: nobody set it to that", c.name, v.txid, v.owner, v.time)
		}
	}
}

// checkFresh checks that no answer is older than one that came before its
// request, or than a transaction that moved the cursor.
func (c *cursor) checkFresh() {
	newer := int64(math.MaxInt64) // the earliest end of an answer with a later version
	moved := newer                // the earliest time that a later move was known
	for _, v := range slices.Backward(c.versions) {
		for _, o := range v.seen {
			removed := slices.ContainsFunc(c.removals, func(r *Operation) bool { return r.Outcome == OK && v.first < r.Start && r.End < o.Start })
			if o.Start > newer || removed {
				c.find(CursorStale, "%s's cursor %q at %d was at %d: there was a newer answer before", o.Client, c.name, o.Start, v.txid)
			} else if o.Start > moved {
				c.find(MoveMissed, "%s's cursor %q at %d was at %d: a transaction had moved it since", o.Client, c.name, o.Start, v.txid)
			}
		}
		if v.unseen() {
			moved = min(moved, v.first)
		} else {
			newer = min(newer, v.first)
		}
	}
}

// checkUnset checks the answers that say that the cursor does not exist.
func (c *cursor) checkUnset() {
	for _, o := range c.unset {
		for _, v := range c.versions {
			if v.first >= o.Start || c.removedBetween(v, o) {
				continue
			}
			class := CursorStale
			if v.unseen() {
				class = MoveMissed
			}
			c.find(class, "%s's cursor %q at %d did not exist: it was at %d before", o.Client, c.name, o.Start, v.txid)
			break
		}
	}
}

// removedBetween reports whether a removal may have happened after a version
// and before the end of an operation.
func (c *cursor) removedBetween(v *version, o *Operation) bool {
	return slices.ContainsFunc(c.removals, func(r *Operation) bool {
		return r != o && r.Start <= o.End && (r.open() || r.End >= v.start())
	})
}

// checkExpected checks that each set with an expected position or owner follows
// on that.
func (c *cursor) checkExpected() {
	for i, v := range c.versions {
		if v.set != nil && v.set.Cursor.conditional() && !c.follows(v, c.versions[:i]) && !c.mayMeet(v.set) {
			c.lost(v.set)
		}
	}
	for _, r := range c.removals {
		if r.Outcome == OK && r.Cursor.conditional() && !r.Cursor.meets(0, "") && !c.mayMeet(r) &&
			!slices.ContainsFunc(c.versions, func(v *version) bool { return r.Cursor.meets(v.txid, v.owner) && v.start() <= r.End }) {
			c.lost(r)
		}
	}
}

// follows reports whether a set may follow directly on a version with what it
// expects, or on none if it expects that.
func (c *cursor) follows(v *version, before []*version) bool {
	meets, surely := v.set.Cursor.meets, c.movedBefore(v.set.Start)
	var last *version // before the set, whatever its time
	for _, w := range slices.Backward(before) {
		if last != nil && last.time-w.time > uint64(c.header.ClockSkew) {
			return false
		}
		may := w.unseen() && w.move.txid >= surely // it may be newer than others here
		switch {
		case may && c.late(w, v) && w.move.begun > v.set.End: // it is newer than the set
		case last != nil:
			if may && c.late(w, last) && meets(w.txid, w.owner) {
				return true
			}
		case meets(w.txid, w.owner), meets(0, "") && c.removedBetween(w, v.set):
			return true
		case !may || !c.late(w, v) || w.move.txid == surely:
			last = w
		}
	}
	return last == nil && meets(0, "")
}

// mayMeet reports whether a set without an answer may have made the cursor what
// another one expects, before its end.
func (c *cursor) mayMeet(o *Operation) bool {
	return c.movedTo(o) || slices.ContainsFunc(c.sets, func(s *Operation) bool {
		return s != o && s.Start <= o.End && o.Cursor.meets(*s.Cursor.Set, s.Cursor.owner())
	})
}

func (c *cursor) lost(o *Operation) {
	if c.header.AllWriters {
		c.find(CursorLost, "%s set cursor %q at %d to %d, and it can't have been %s", o.Client, c.name, o.Start, *o.Cursor.Set, o.Cursor.expectation())
	}
}

// expectation says what a conditional set expects.
func (c *Cursor) expectation() string {
	text := "there"
	if c.Expected != nil {
		text = fmt.Sprintf("at %d", *c.Expected)
	}
	switch {
	case c.ExpectedOwner != nil:
		text += fmt.Sprintf(" and %q's", *c.ExpectedOwner)
	case c.Owner != nil:
		text += fmt.Sprintf(" and %q's, or missing", *c.Owner)
	}
	return text
}
