package judge

import (
	"cmp"
	"slices"
	"strings"

	"github.com/cantuslog/cantus/subjects"
)

// recorder is the newest transaction that recorded something, its session, and
// the newest that is not of the session.
type recorder struct {
	txid    uint64
	session string
	other   uint64
}

// by makes a transaction of a session, or of none, the newest.
func (r *recorder) by(t *Stored) {
	if t.Session == "" || t.Session != r.session {
		r.other = r.txid
	}
	r.txid, r.session = t.Txid, t.Session
}

// besides returns the newest transaction that is not of a session.
func (r *recorder) besides(session string) uint64 {
	if session != "" && session == r.session {
		return r.other
	}
	return r.txid
}

// lockTree knows for each lock name the newest transaction that recorded it. It
// is the rule of the contract, token by token.
type lockTree struct {
	point   recorder // of this name
	subtree recorder // of the subtree of this name
	below   recorder // of anything below, subtrees included
	next    map[string]*lockTree
}

// record enters a lock of a transaction, which is newer than all before.
func (l *lockTree) record(name string, t *Stored) {
	for rest, more := name, true; more; {
		var token string
		token, rest, more = strings.Cut(rest, ".")
		if token == ">" {
			l.subtree.by(t)
			l.below.by(t)
			return
		}
		l.below.by(t)
		if l.next == nil {
			l.next = map[string]*lockTree{}
		}
		if l.next[token] == nil {
			l.next[token] = &lockTree{}
		}
		l = l.next[token]
	}
	l.point.by(t)
}

// newest returns the newest transaction, not of a session, that recorded a lock
// which overlaps name, 0 if there is none.
func (l *lockTree) newest(name, session string) (txid uint64) {
	for rest, more := name, true; more; {
		var token string
		token, rest, more = strings.Cut(rest, ".")
		if token == ">" {
			return max(txid, l.below.besides(session))
		}
		txid = max(txid, l.subtree.besides(session))
		if l = l.next[token]; l == nil {
			return txid
		}
	}
	return max(txid, l.point.besides(session))
}

// checkLocks goes through the log: each transaction's locks must be clean at
// its high-water mark, and each conflict must be the one that follows from the
// log up to the newest transaction that it names.
func (p *partition) checkLocks() {
	conflicts := p.conflicts()
	var tree lockTree
	for i, t := range p.log {
		if t.HighWaterMark != nil && t.mark() >= t.atomic().First {
			p.find(AheadMissed, "txid %d has the high-water mark %d", t.Txid, t.mark())
		}
		if to := t.moves(); to.Txid >= t.atomic().First {
			p.find(AheadMissed, "txid %d moves cursor %q to %d", t.Txid, to.Cursor, to.Txid)
		}
		if t.Txid == t.atomic().First || i == 0 { // those of an atomic batch don't conflict with each other
			for _, u := range p.rest(i) {
				p.checkClean(u, &tree)
			}
		}
		for name := range t.recorded {
			tree.record(name, t)
			p.locks++
		}
		for len(conflicts) > 0 && conflicts[0].result.Error.Txid <= t.Txid {
			if conflicts[0].result.Error.Txid == t.Txid {
				p.checkComplete(conflicts[0], &tree)
			}
			conflicts = conflicts[1:]
		}
	}
	p.checkFloors()
}

// checkClean checks that no lock of a transaction was recorded after its mark,
// by those in the tree.
func (p *partition) checkClean(t *Stored, tree *lockTree) {
	for mode, name := range t.checked {
		if n := tree.newest(name, t.Session); n > t.mark() {
			p.find(ConflictMissed, "txid %d, %s lock %q: recorded by txid %d, after its high-water mark %d", t.Txid, mode, name, n, t.mark())
		}
	}
}

// conflicts returns the conflicts that are justified, in the order of the
// newest transactions that they name, and reports the others.
func (p *partition) conflicts() (justified []*attempt) {
	for i := range p.attempts {
		a := &p.attempts[i]
		if a.result.Outcome != Refused || a.result.Error.Reason != subjects.Conflict || a.result.Error.Unless != nil {
			continue
		}
		if p.justified(a) {
			justified = append(justified, a)
		}
	}
	slices.SortStableFunc(justified, func(a, b *attempt) int { return cmp.Compare(a.result.Error.Txid, b.result.Error.Txid) })
	return justified
}

// named returns the conflicts that a refusal names. One that was too large for
// its message has the newest alone.
func named(e *subjects.Error, tx *Transaction) []subjects.ConflictingLock {
	if len(e.Conflicts) > 0 {
		return e.Conflicts
	}
	for mode, name := range tx.checked {
		if name == e.Lock {
			return []subjects.ConflictingLock{{Lock: name, Mode: mode, Txid: e.Txid}}
		}
	}
	return []subjects.ConflictingLock{{Lock: e.Lock, Txid: e.Txid}}
}

// justified reports whether a committed transaction justifies each conflict of
// a refusal.
func (p *partition) justified(a *attempt) bool {
	e := a.result.Error
	for _, c := range named(e, a.tx) {
		sent := false
		for mode, name := range a.tx.checked {
			sent = sent || mode == c.Mode && name == c.Lock
		}
		switch t := at(p.log, c.Txid); {
		case !sent:
			p.find(ConflictFalse, "%v was refused for the %s lock %q, which it has not", a, c.Mode, c.Lock)
			return false
		case c.Txid <= a.tx.mark():
			p.find(ConflictFalse, "%v was refused for txid %d, which is not after its high-water mark %d", a, c.Txid, a.tx.mark())
			return false
		case c.Txid > p.known:
			p.find(ConflictUncommitted, "%v was refused for txid %d: the log ends at %d", a, c.Txid, p.known)
			return false
		case c.Forgotten || t == nil: // t is trimmed or lost
		case t.Session != "" && t.Session == a.tx.Session:
			p.find(ConflictFalse, "%v was refused for txid %d, of its own session", a, c.Txid)
			return false
		case !t.records(c.Lock):
			p.find(ConflictFalse, "%v was refused for txid %d, which has recorded nothing that overlaps %q", a, c.Txid, c.Lock)
			return false
		case p.spans[c.Txid].from > a.End:
			p.find(ConflictFalse, "%v was refused at %d for txid %d, which can't be older than %d", a, a.End, c.Txid, p.spans[c.Txid].from)
			return false
		}
	}
	return true
}

// checkComplete compares a conflict with the log up to the newest transaction
// that it names.
func (p *partition) checkComplete(a *attempt, tree *lockTree) {
	e := a.result.Error
	if len(e.Conflicts) == 0 {
		return
	}
	if top := e.Conflicts[0]; top.Txid != e.Txid || top.Lock != e.Lock {
		p.find(ConflictIncomplete, "%v was refused for lock %q and txid %d, which is not the first of its conflicts", a, e.Lock, e.Txid)
		return
	}
	for mode, name := range a.tx.checked {
		n := tree.newest(name, a.tx.Session)
		if n <= a.tx.mark() {
			continue
		}
		i := slices.IndexFunc(e.Conflicts, func(c subjects.ConflictingLock) bool { return c.Lock == name && c.Mode == mode })
		switch {
		case i < 0:
			p.find(ConflictIncomplete, "%v was refused without its %s lock %q, which txid %d had recorded", a, mode, name, n)
			return
		case e.Conflicts[i].Txid < n, e.Conflicts[i].Txid > n && !e.Conflicts[i].Forgotten:
			p.find(ConflictIncomplete, "%v was refused for %q and txid %d: the newest was %d", a, name, e.Conflicts[i].Txid, n)
			return
		}
	}
}

// readBack is after how many transactions a starting node may stop reading the
// log backwards.
const readBack = 8_000_000

// checkFloors checks each floor: what lies above it must be as much as a lock
// table holds, unless it was trimmed.
func (p *partition) checkFloors() {
	after := make([]int, len(p.log)+1) // locks recorded from a position on
	for i := len(p.log) - 1; i >= 0; i-- {
		after[i] = after[i+1]
		for range p.log[i].recorded {
			after[i]++
		}
	}
	check := func(floor uint64, what string) {
		if floor < p.allowed || floor > p.known {
			return // trimmed, or found otherwise
		}
		i, _ := slices.BinarySearchFunc(p.log, floor, func(t *Stored, txid uint64) int { return cmp.Compare(t.Txid, txid) })
		if after[i] < p.header.Locks && len(p.log)-i < readBack {
			p.find(FloorHigh, "%s has the floor %d: only %d locks were recorded from there on, there is room for %d", what, floor, after[i], p.header.Locks)
		}
	}
	for i := range p.attempts {
		a := &p.attempts[i]
		if a.result.Outcome != Refused {
			continue
		}
		for _, c := range a.result.Error.Conflicts {
			if c.Forgotten {
				check(c.Txid, a.String())
			}
		}
	}
	for _, o := range p.operations {
		if o.Info != nil && o.Outcome == OK {
			check(o.Info.Floor, o.Client+"'s description of "+o.Info.Leader)
		}
	}
}
