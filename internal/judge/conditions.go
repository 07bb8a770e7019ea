package judge

import (
	"slices"

	"github.com/cantuslog/cantus/subjects"
)

// matches reports whether an item of a condition matches a transaction.
func (t *Stored) matches(item *subjects.QueryItem) bool {
	if len(item.Kinds) > 0 && !slices.Contains(item.Kinds, t.kind()) {
		return false
	}
	for _, lock := range item.Locks {
		if !t.records(lock) {
			return false
		}
	}
	return true
}

// checkConditions checks that no acknowledged transaction's condition matches
// one between its high-water mark and itself, and that each refusal because of
// a condition names a transaction that it matches.
func (p *partition) checkConditions() {
	for i := range p.attempts {
		a := &p.attempts[i]
		switch r := a.result; {
		case len(a.tx.Unless) == 0:
		case a.acknowledged() && !r.Duplicate:
			p.checkUnmatched(a)
		case r.Outcome == Refused && r.Error.Reason == subjects.Conflict && r.Error.Unless != nil:
			p.checkMatch(a, r.Error.Unless)
		}
	}
}

func (p *partition) checkUnmatched(a *attempt) {
	for txid := max(a.tx.mark()+1, p.first); txid < a.result.Txid; txid++ {
		t := at(p.log, txid)
		for i := range a.tx.Unless {
			if t != nil && !t.isOf(a.tx.Session) && t.matches(&a.tx.Unless[i]) {
				p.find(ConditionMissed, "%v was acknowledged as txid %d: item %d of its condition matches txid %d, after its high-water mark %d",
					a, a.result.Txid, i, txid, a.tx.mark())
				return
			}
		}
	}
}

func (p *partition) checkMatch(a *attempt, m *subjects.MatchedCondition) {
	t := at(p.log, m.Txid)
	switch {
	case m.Item < 0 || m.Item >= len(a.tx.Unless):
		p.find(ConditionFalse, "%v was refused for item %d of its condition, which has %d", a, m.Item, len(a.tx.Unless))
	case a.result.Error.Txid != m.Txid:
		p.find(ConditionFalse, "%v was refused for txid %d, and its condition for %d", a, a.result.Error.Txid, m.Txid)
	case m.Txid <= a.tx.mark():
		p.find(ConditionFalse, "%v was refused for txid %d, which is not after its high-water mark %d", a, m.Txid, a.tx.mark())
	case m.Txid > p.known:
		p.find(ConflictUncommitted, "%v was refused for txid %d: the log ends at %d", a, m.Txid, p.known)
	case t == nil: // it is trimmed or lost
	case m.Forgotten && m.Txid >= p.allowed && p.known-m.Txid < searched:
		p.find(ConditionFalse, "%v was refused because the log could not be searched at txid %d, and nothing there was trimmed", a, m.Txid)
	case m.Forgotten:
	case t.isOf(a.tx.Session) || !t.matches(&a.tx.Unless[m.Item]):
		p.find(ConditionFalse, "%v was refused for txid %d, which item %d of its condition does not match", a, m.Txid, m.Item)
	case p.spans[m.Txid].from > a.End:
		p.find(ConditionFalse, "%v was refused at %d for txid %d, which can't be older than %d", a, a.End, m.Txid, p.spans[m.Txid].from)
	}
}

// searched is how many transactions a node looks through for a condition in any
// case: it stops after 64 MiB, and a transaction has about 1 MB at most.
const searched = 64
