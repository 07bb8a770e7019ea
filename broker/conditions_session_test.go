package broker

import (
	"fmt"

	"github.com/cantuslog/cantus/lockmgr"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// lockItem is a lock of the request as an item of a condition.
func (r *request) lockItem(name string) queryItem {
	return queryItem{locks: []string{name}, besides: text(r.tx.Session)}
}

// newestOf returns the newest transaction of a session, 0 if there is none.
func newestOf(session []byte, all []*wal.Transaction) uint64 {
	for i := len(all); i > 0; i-- {
		if string(all[i-1].Session) == string(session) {
			return uint64(i)
		}
	}
	return 0
}

// addSession adds the headers of a session, mostly with its next number. Its
// names differ from those that other leaders use.
func (h *conditionHistory) addSession(block []byte) []byte {
	name := fmt.Sprint("c", h.rand.IntN(3))
	all := h.all()
	seq := uint64(1)
	if at := newestOf([]byte(name), all); at > 0 && h.rand.IntN(6) > 0 {
		seq = all[at-1].SessionSeq + 1
	}
	if h.rand.IntN(6) == 0 {
		seq += h.rand.Uint64N(2)
	}
	block = subjects.AppendField(block, subjects.HeaderSession, name)
	return subjects.AppendField(block, subjects.HeaderSessionSeq, fmt.Sprint(seq))
}

// checkSession checks that a request which has passed is the next one of its
// session, of all that were ever certified. A session that was forgotten may
// begin again behind its last transaction: this one is no repeat then.
func (h *conditionHistory) checkSession(r *request, all []*wal.Transaction) {
	if r.tx.SessionSeq == 0 {
		return
	}
	last := uint64(0)
	at := newestOf(r.tx.Session, all)
	if at > 0 {
		last = all[at-1].SessionSeq
	}
	if r.tx.SessionSeq == 1 && at > 0 && h.forgetful && r.cert.HighWaterMark >= at {
		h.tally["another session of the name"]++
	} else if r.tx.SessionSeq != last+1 {
		h.fatalf("number %d of session %s passes, the last was %d", r.tx.SessionSeq, r.tx.Session, last)
	}
	h.tally["passed in a session"]++
	for _, l := range r.cert.Locks {
		if l.Mode != lockmgr.Append && newestMatch(&queryItem{locks: []string{l.Name}}, all, r.cert.HighWaterMark) > 0 {
			h.tally["own lock"]++
		}
	}
	for _, item := range r.unless {
		item.besides = ""
		if newestMatch(&item, all, r.cert.HighWaterMark) > 0 {
			h.tally["own condition"]++
		}
	}
}

// checkNumber checks the verdict on a number that is not the next one of its
// session, or that is known. It returns the transaction that the verdict
// depends on.
func (h *conditionHistory) checkNumber(j judged, all []*wal.Transaction) uint64 {
	seq, v := j.r.tx.SessionSeq, j.verdict
	at := newestOf(j.r.tx.Session, all)
	last := uint64(0)
	if at > 0 {
		last = all[at-1].SessionSeq
	}
	switch {
	case seq == 0:
		h.fatalf("verdict %+v without a session", v)
	case v.Outcome == lockmgr.Duplicate, v.Outcome == lockmgr.IDReused:
		if t := all[v.Txid-1]; string(t.Session) != string(j.r.tx.Session) || t.SessionSeq != seq || t.Atomic.Index > 0 {
			h.fatalf("number %d of session %s is a repeat of %d, which is number %d of %s", seq, j.r.tx.Session, v.Txid, t.SessionSeq, t.Session)
		}
		h.tally["repeat"]++
		return v.Txid
	case !v.HasSessionSeq:
		if !h.forgetful {
			h.fatalf("session %s is not known, and nothing was forgotten", j.r.tx.Session)
		}
		h.tally["forgotten session"]++
		return 0
	case v.SessionSeq != last || seq == last+1:
		h.fatalf("number %d of session %s is refused, with the last number %d: it is %d", seq, j.r.tx.Session, v.SessionSeq, last)
	}
	h.tally["wrong number"]++
	return at
}
