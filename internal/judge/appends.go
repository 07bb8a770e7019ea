package judge

import (
	"cmp"
	"math"
	"slices"

	"github.com/cantuslog/cantus/subjects"
)

// checkAcknowledged compares each acknowledgement with the transaction at its
// txid, and with others of the same txid.
func (p *partition) checkAcknowledged() {
	for i := range p.attempts {
		if a := &p.attempts[i]; a.acknowledged() {
			p.checkTransaction(a, at(p.log, a.result.Txid))
		}
	}
	for txid, as := range p.byTxid {
		fresh := 0
		for _, a := range as {
			if !a.result.Duplicate {
				fresh++
			}
		}
		a := as[0]
		stored := at(p.log, txid)
		other := slices.IndexFunc(as, func(b *attempt) bool { return b != a && (b.key() == "" || b.key() != a.key()) })
		switch {
		case other >= 0 && (stored == nil || stored.ID == a.tx.ID && stored.ID == as[other].tx.ID):
			p.find(AcknowledgedTwice, "txid %d was the answer to %v and to %v", txid, a, as[other])
		case other < 0 && fresh > 1:
			p.find(DuplicateUnsaid, "txid %d was the answer to %v, and %d more times, not as a duplicate", txid, a, fresh-1)
		}
	}
}

// checkTransaction compares an acknowledgement with what is stored at its txid,
// if anything is. Of a duplicate only the payload counts.
func (p *partition) checkTransaction(a *attempt, stored *Stored) {
	if !a.result.Duplicate && a.tx.ExpectedLast != nil && *a.tx.ExpectedLast != a.result.Txid-1 {
		p.find(ExpectedLastMissed, "%v expected to follow on txid %d, and became %d", a, *a.tx.ExpectedLast, a.result.Txid)
	}
	if !a.result.Duplicate && a.tx.NotAfter != 0 && a.result.Time > a.tx.NotAfter {
		p.find(ExpiredMissed, "%v was to commit by %d, and has the time %d", a, a.tx.NotAfter, a.result.Time)
	}
	if stored == nil {
		return // it is lost or trimmed
	}
	diff := a.tx.difference(&stored.Transaction)
	switch {
	case a.tx.ID != stored.ID:
		p.find(AcknowledgedID, "%v was acknowledged as txid %d, which has the id %q", a, stored.Txid, stored.ID)
	case diff != "" && (!a.result.Duplicate || diff == otherContent):
		p.find(AcknowledgedOther, "%v was acknowledged as txid %d, which has %s", a, stored.Txid, diff)
	case a.result.Time != 0 && a.result.Time != stored.Time:
		p.find(AcknowledgedTime, "%v was acknowledged as txid %d of %d, which has the time %d", a, stored.Txid, a.result.Time, stored.Time)
	}
}

// checkPresence finds transactions in the log that should not be there.
func (p *partition) checkPresence() {
	unexplained := map[string][]uint64{} // by content: without an id or an acknowledgement
	for _, t := range p.log {
		if t.ID == "" {
			if len(p.byTxid[t.Txid]) == 0 && t.Content != "" {
				unexplained[t.Content] = append(unexplained[t.Content], t.Txid)
			}
			continue
		}
		senders := p.byID[t.ID]
		mayBe := func(a *attempt) bool { return a.acknowledged() || a.open() }
		switch {
		case len(senders) == 0 && p.header.AllWriters:
			p.find(Invented, "txid %d has the id %q, which nobody sent", t.Txid, t.ID)
		case len(senders) > 0 && !slices.ContainsFunc(senders, mayBe):
			p.find(RefusedCommitted, "txid %d is that of %v, which was refused: %s", t.Txid, senders[0], senders[0].result.Error.Reason)
		}
	}
	if !p.header.AllWriters {
		return
	}
	for content, txids := range unexplained {
		open := 0
		for _, a := range p.byText[content] {
			if a.open() {
				open++
			}
		}
		if len(txids) > open {
			p.find(Invented, "txids %v have a content that was sent without an answer %d times", txids, open)
		}
	}
}

// checkOrder checks the order of real time, and that within batches.
func (p *partition) checkOrder() {
	var latest *Stored // of those before, that which was sent last
	for _, t := range p.log {
		s := p.spans[t.Txid]
		if latest != nil && s.end < p.spans[latest.Txid].start {
			p.find(Reordered, "txid %d was acknowledged at %d, and txid %d was sent at %d", t.Txid, s.end, latest.Txid, p.spans[latest.Txid].start)
		}
		if latest == nil || s.start > p.spans[latest.Txid].start {
			latest = t
		}
	}
	var last *attempt // of the batch
	for i := range p.attempts {
		a := &p.attempts[i]
		if a.Batch == nil || !a.acknowledged() || a.result.Duplicate {
			continue
		}
		if last != nil && last.Operation == a.Operation && last.result.Txid >= a.result.Txid {
			p.find(BatchOrder, "%v has txid %d, transaction %d before it %d", a, a.result.Txid, last.index, last.result.Txid)
		}
		last = a
	}
}

// use is a message id's use by a transaction.
type use struct {
	txid   uint64
	time   int64
	number int // among all uses, in the order of txids
}

// checkIDs checks that a message id which counts is not used again.
func (p *partition) checkIDs() {
	var all []use
	ids := map[uint64]string{}
	for _, t := range p.log {
		if t.ID != "" {
			ids[t.Txid] = t.ID
			all = append(all, use{txid: t.Txid, time: t.Time})
		}
	}
	for txid, as := range p.byTxid {
		if a := as[0]; a.tx.ID != "" && a.result.Time != 0 && at(p.log, txid) == nil { // trimmed or lost
			ids[txid] = a.tx.ID
			all = append(all, use{txid: txid, time: a.result.Time})
		}
	}
	slices.SortFunc(all, func(a, b use) int { return cmp.Compare(a.txid, b.txid) })
	newest := map[string]use{}
	for i, u := range all {
		u.number = i
		id := ids[u.txid]
		if before, again := newest[id]; again && !p.freed(before.txid) && u.time-before.time <= p.header.MessageIDWindow && i-before.number < p.header.MessageIDs {
			p.find(AppendedTwice, "id %q has txid %d and, %d ns later, txid %d", id, before.txid, u.time-before.time, u.txid)
		}
		newest[id] = u
	}
	for i := range p.attempts {
		p.checkIgnored(&p.attempts[i], len(all))
	}
}

// freed reports whether the message id of a transaction may be free because it
// was trimmed. Ids that are remembered for a time hold trims.
func (p *partition) freed(txid uint64) bool {
	return p.header.MessageIDWindow == math.MaxInt64 && txid < p.allowed
}

// checkIgnored checks that a refusal came in spite of no id that counts. uses
// is how many transactions have an id.
func (p *partition) checkIgnored(a *attempt, uses int) {
	if a.tx.ID == "" || a.result.Outcome != Refused || uses > p.header.MessageIDs {
		return
	}
	switch a.result.Error.Reason {
	case subjects.Conflict, subjects.WrongLast, subjects.Ahead, subjects.Expired:
	default:
		return // it is checked before the id, or nothing was checked
	}
	for _, b := range p.byID[a.tx.ID] {
		if !b.acknowledged() || b.End >= a.Start || p.freed(b.result.Txid) {
			continue
		}
		if s, is := p.spans[b.result.Txid]; is && a.End-s.start+p.header.ClockSkew <= p.header.MessageIDWindow {
			p.find(IDIgnored, "%v was refused: %s. The id has txid %d since %d", a, a.result.Error.Reason, b.result.Txid, s.start)
			return
		}
	}
}
