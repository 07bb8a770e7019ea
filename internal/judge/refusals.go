package judge

import (
	"slices"

	"github.com/cantuslog/cantus/subjects"
)

// anyRequest are the reasons that any request can be refused for.
var anyRequest = []subjects.Reason{
	subjects.BadRequest, subjects.TooLarge, subjects.Busy, subjects.Internal,
	subjects.Unavailable, subjects.Unknown, subjects.StorageFull,
}

// checkRefusals checks that each refusal has a reason that its request can
// have, and that what it says of the log's end and of message ids is true.
func (p *partition) checkRefusals() {
	for i := range p.attempts {
		if a := &p.attempts[i]; a.result.Outcome == Refused {
			p.checkRefusedAppend(a)
		}
	}
	for _, o := range p.operations {
		if o.Append == nil && o.Batch == nil && o.Outcome == Refused {
			p.checkRefused(o)
		}
	}
}

func (p *partition) checkRefusedAppend(a *attempt) {
	e, tx := a.result.Error, a.tx
	switch {
	case e.Reason == subjects.Conflict && e.Unless != nil && len(tx.Unless) > 0: // see checkConditions
	case e.Reason == subjects.Conflict && e.Unless == nil && len(tx.Write)+len(tx.Read) > 0: // see checkLocks
	case e.Reason == subjects.WrongLast && tx.Session != "": // see checkSessions
	case e.Reason == subjects.Ahead && tx.HighWaterMark != nil:
		p.checkAhead(a.Operation, max(tx.mark(), tx.moves().Txid), "high-water mark, or cursor position,")
	case e.Reason == subjects.WrongLast && tx.ExpectedLast != nil:
		// It is false only if nothing was sent that could have come after it.
		if last := *tx.ExpectedLast; p.header.AllWriters && last+1 >= p.first && p.seen.before(a.Start) == last && p.begun.until(a.End) <= last {
			p.find(WrongLastFalse, "%v expected the last sequence %d, and the log ended there", a, last)
		}
	case e.Reason == subjects.Expired && tx.NotAfter != 0: // by a clock that is not in the history
	case e.Reason == subjects.IDReused && tx.ID != "":
		p.checkReused(a)
	case slices.Contains(anyRequest, e.Reason):
	default:
		p.find(ReasonUnexpected, "%v was refused: %s", a, e.Reason)
	}
}

// checkReused checks that another payload has the message id.
func (p *partition) checkReused(a *attempt) {
	txid := a.result.Error.Txid
	t := at(p.log, txid)
	switch {
	case t == nil && txid > p.known:
		p.find(IDReusedFalse, "%v was refused for txid %d: the log ends at %d", a, txid, p.known)
	case t == nil: // it is trimmed or lost
	case t.ID != a.tx.ID:
		p.find(IDReusedFalse, "%v was refused for txid %d, which has the id %q", a, txid, t.ID)
	case t.Content == a.tx.Content && t.Content != "":
		p.find(IDReusedFalse, "%v was refused for txid %d, which has the same content", a, txid)
	}
}

// checkAhead checks that the log had not reached a txid before the request.
func (p *partition) checkAhead(o *Operation, txid uint64, what string) {
	if s := p.seen.before(o.Start); txid <= s {
		p.find(AheadFalse, "%s's %s %d at %d was refused as ahead: txid %d was committed before", o.Client, what, txid, o.Start, s)
	}
}

func (p *partition) checkRefused(o *Operation) {
	switch reason := o.Error.Reason; {
	case slices.Contains(anyRequest, reason):
	case reason == subjects.Ahead && o.Read != nil && !o.Read.Replica:
		if o.Read.From > 0 {
			p.checkAhead(o, o.Read.From-1, "read behind txid")
		}
	case reason == subjects.Ahead && o.Get != nil && o.Get.Txid > 0:
		p.checkAhead(o, o.Get.Txid, "get of txid")
	case reason == subjects.Ahead && o.Cursor != nil && o.Cursor.Set != nil:
		p.checkAhead(o, *o.Cursor.Set, "cursor position")
	case reason == subjects.Ahead && o.Trim != nil && o.Trim.Before > 0:
		p.checkAhead(o, o.Trim.Before-1, "trim behind txid")
	case reason == subjects.Trimmed && (o.Read != nil || o.Get != nil):
		p.checkTrimmed(o)
	case reason == subjects.NotFound && o.Get != nil && o.Get.Lock != "": // see checkNotFound
	case reason == subjects.WrongLast && o.Cursor != nil && o.Cursor.conditional(): // see checkCursors
	default:
		p.find(ReasonUnexpected, "%s's request at %d was refused: %s", o.Client, o.Start, reason)
	}
}

// checkTrimmed checks that what was asked for may have been trimmed.
func (p *partition) checkTrimmed(o *Operation) {
	var from uint64
	if o.Read != nil {
		from = o.Read.From
	} else {
		from = o.Get.Txid
	}
	first := o.Error.FirstTxid
	if first > p.allowed || from >= first && from > 0 {
		p.find(TrimmedFalse, "%s's request for txid %d at %d was refused as trimmed, with the first txid %d: at most %d could be", o.Client, from, o.Start, first, p.allowed)
	}
}

// checkMarks checks that the log reached each high-water mark before the answer
// that has it.
func (p *partition) checkMarks() {
	for _, o := range p.operations {
		p.checkMark(o, o.HighWaterMark)
		for i := range o.Results {
			p.checkMark(o, o.Results[i].HighWaterMark)
		}
	}
}

func (p *partition) checkMark(o *Operation, mark *uint64) {
	switch {
	case mark == nil:
	case *mark > p.known:
		p.find(MarkBeyond, "%s's answer at %d has the high-water mark %d: the log ends at %d", o.Client, o.End, *mark, p.known)
	case p.header.AllWriters && *mark >= p.first && *mark <= p.last && *mark > p.begun.until(o.End):
		p.find(MarkBeyond, "%s's answer at %d has the high-water mark %d, which was sent later", o.Client, o.End, *mark)
	}
}

// checkInfos checks that a partition's descriptions are the newest, and that
// terms and leaders are right.
func (p *partition) checkInfos() {
	var terms timeline
	leaders := map[uint64]string{}
	for _, o := range p.operations {
		if o.Info != nil && o.Outcome == OK {
			terms.add(o.End, o.Info.Term)
		}
	}
	terms.build()
	for _, o := range p.operations {
		if o.Info == nil || o.Outcome != OK {
			continue
		}
		i := o.Info
		if s := p.seen.before(o.Start); *o.HighWaterMark < s {
			p.find(InfoStale, "%s's description at %d has the high-water mark %d: txid %d was committed before", o.Client, o.Start, *o.HighWaterMark, s)
		}
		if i.FirstTxid > p.allowed {
			p.find(TrimBeyond, "%s's description at %d begins at txid %d: nobody asked for more than %d", o.Client, o.Start, i.FirstTxid, p.allowed)
		}
		if before := terms.before(o.Start); i.Term > 0 && i.Term < before {
			p.find(TermBack, "%s's description at %d has term %d: it was %d before", o.Client, o.Start, i.Term, before)
		}
		if l := leaders[i.Term]; i.Term > 0 && l != "" && l != i.Leader {
			p.find(TwoLeaders, "%s and %s led in term %d", l, i.Leader, i.Term)
		}
		leaders[i.Term] = i.Leader
	}
}
