package judge

import (
	"cmp"
	"math"
	"slices"

	"github.com/cantuslog/cantus/subjects"
)

// cursor is what the judge knows of one cursor. Each time it is set, it gets a
// time, later than any before. So the times are versions, and give the order in
// which the sets happened.
type cursor struct {
	*partition
	name      string
	versions  []*version   // in ascending order
	unset     []*Operation // answers that there is no such cursor
	sets      []*Operation // to a position, without an answer
	removals  []*Operation // that happened or may have
	unordered bool         // the times may not be versions
}

// version is a position that a cursor had.
type version struct {
	time, txid uint64
	set        *Operation   // that set it; nil if it had no answer
	seen       []*Operation // with this answer, set among them
	first      int64        // the earliest end of these
}

// checkCursors checks that each cursor behaves like one register.
func (p *partition) checkCursors() {
	byName := map[string][]*Operation{}
	for _, o := range p.operations {
		if o.Cursor != nil {
			byName[o.Cursor.Name] = append(byName[o.Cursor.Name], o)
		}
	}
	for name, operations := range byName {
		c := &cursor{partition: p, name: name}
		c.collect(operations)
		c.checkVersions()
		if !c.unordered {
			c.checkFresh()
			c.checkUnset()
			c.checkExpected()
		}
	}
}

func (c *cursor) collect(operations []*Operation) {
	byTime := map[int64]*version{}
	for _, o := range operations {
		set := o.Cursor.Set
		switch {
		case o.Outcome == OK && set != nil && o.Txid != *set:
			c.find(CursorOther, "%s set cursor %q to %d at %d, and the answer says %d", o.Client, c.name, *set, o.Start, o.Txid)
		case set != nil && *set == 0 && (o.Outcome == OK || o.open()):
			c.removals = append(c.removals, o)
			c.unordered = c.unordered || c.header.ClockSkew > 0
		case set != nil && o.open():
			c.sets = append(c.sets, o)
		case o.Outcome == Refused && o.Error.Reason != subjects.WrongLast || o.Outcome == Unknown:
		case o.Outcome == Refused && o.Cursor.Expected != nil && *o.Cursor.Expected == o.Txid:
			c.find(CursorRefused, "%s's set of cursor %q at %d expected %d, and was refused because it is there", o.Client, c.name, o.Start, o.Txid)
		case o.Txid == 0:
			c.unset = append(c.unset, o)
		case o.Time == 0:
			c.unordered = true
		default:
			v := byTime[o.Time]
			if v == nil {
				v = &version{time: uint64(o.Time), txid: o.Txid, first: math.MaxInt64}
				byTime[o.Time] = v
				c.versions = append(c.versions, v)
			}
			if v.txid != o.Txid || o.Outcome == OK && set != nil && v.set != nil {
				c.find(CursorOther, "cursor %q was at %d and at %d at the same time %d", c.name, v.txid, o.Txid, o.Time)
				continue
			}
			if o.Outcome == OK && set != nil {
				v.set = o
			}
			v.seen, v.first = append(v.seen, o), min(v.first, o.End)
		}
	}
	slices.SortFunc(c.versions, func(a, b *version) int { return cmp.Compare(a.time, b.time) })
}

// checkVersions checks that somebody set each position.
func (c *cursor) checkVersions() {
	for _, v := range c.versions {
		if v.set != nil || !c.header.AllWriters {
			continue
		}
		if !slices.ContainsFunc(c.sets, func(o *Operation) bool { return *o.Cursor.Set == v.txid && o.Start <= v.first }) {
			c.find(CursorInvented, "cursor %q was at %d, with the time %d: nobody set it to that", c.name, v.txid, v.time)
		}
	}
}

// checkFresh checks that no answer is older than one that came before its
// request.
func (c *cursor) checkFresh() {
	newer := int64(math.MaxInt64) // the earliest end of an answer with a later version
	for _, v := range slices.Backward(c.versions) {
		for _, o := range v.seen {
			removed := slices.ContainsFunc(c.removals, func(r *Operation) bool { return r.Outcome == OK && v.first < r.Start && r.End < o.Start })
			if o.Start > newer || removed {
				c.find(CursorStale, "%s's cursor %q at %d was at %d: there was a newer answer before", o.Client, c.name, o.Start, v.txid)
			}
		}
		newer = min(newer, v.first)
	}
}

// checkUnset checks the answers that say that the cursor does not exist.
func (c *cursor) checkUnset() {
	for _, o := range c.unset {
		for _, v := range c.versions {
			if v.first < o.Start && !c.removedBetween(v, o) {
				c.find(CursorStale, "%s's cursor %q at %d did not exist: it was at %d before", o.Client, c.name, o.Start, v.txid)
				break
			}
		}
	}
}

// removedBetween reports whether a removal may have happened after a version
// and before the end of an operation.
func (c *cursor) removedBetween(v *version, o *Operation) bool {
	return slices.ContainsFunc(c.removals, func(r *Operation) bool {
		return r != o && r.Start <= o.End && (r.open() || v.set == nil || r.End >= v.set.Start)
	})
}

// checkExpected checks that each set with an expected position follows on that
// position.
func (c *cursor) checkExpected() {
	for i, v := range c.versions {
		if v.set == nil || v.set.Cursor.Expected == nil {
			continue
		}
		var before *version
		if i > 0 {
			before = c.versions[i-1]
		}
		expected := *v.set.Cursor.Expected
		may := before != nil && before.txid == expected || c.mayBe(expected, v.set)
		if expected == 0 {
			may = before == nil || c.removedBetween(before, v.set)
		}
		if !may {
			c.lost(v.set)
		}
	}
	for _, r := range c.removals {
		if e := r.Cursor.Expected; r.Outcome == OK && e != nil && *e > 0 && !c.mayBe(*e, r) &&
			!slices.ContainsFunc(c.versions, func(v *version) bool { return v.txid == *e && (v.set == nil || v.set.Start <= r.End) }) {
			c.lost(r)
		}
	}
}

// mayBe reports whether a set without an answer may have set the cursor to a
// position before the end of an operation.
func (c *cursor) mayBe(txid uint64, o *Operation) bool {
	return slices.ContainsFunc(c.sets, func(s *Operation) bool { return *s.Cursor.Set == txid && s.Start <= o.End })
}

func (c *cursor) lost(o *Operation) {
	if c.header.AllWriters {
		c.find(CursorLost, "%s set cursor %q at %d from %d to %d, and it can't have been there", o.Client, c.name, o.Start, *o.Cursor.Expected, *o.Cursor.Set)
	}
}
