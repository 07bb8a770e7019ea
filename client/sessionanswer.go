package client

import (
	"time"

	"github.com/cantuslog/cantus/subjects"
)

// sessionVerdict is what a refusal says of a transaction in a session.
type sessionVerdict uint8

const (
	sessionRefused   sessionVerdict = iota // for good: the session ends
	sessionCommitted                       // it was committed before, and the partition has forgotten its txid
	sessionMissing                         // one before it was not accepted: send that one
	sessionAgain                           // nothing was done: send it again
	sessionUnsure                          // it may have been done: send it again
)

// judge returns what a refusal says of the transaction with a number. The
// caller holds sender.mu.
func (s *Session) judge(number uint64, e *subjects.Error) sessionVerdict {
	switch dispositionOf(e) {
	case retryable:
		return sessionAgain
	case uncertain:
		return sessionUnsure
	}
	switch {
	case e.Reason != subjects.WrongLast:
		return sessionRefused
	case e.SessionSeq == nil:
		// The partition does not know the session. It need not, before number 1
		// is committed.
		if f := s.firstPending(); number > 1 && f != nil && f.number == 1 {
			return sessionMissing
		}
		return sessionRefused
	case *e.SessionSeq >= number:
		return sessionCommitted
	case *e.SessionSeq < number-1:
		return sessionMissing
	}
	return sessionRefused
}

// onSessionResults handles the outcomes of a session's batch. The first
// transaction that was not accepted says how to go on: those after it were
// refused because of it. isCurrent is false if the batch was sent again since,
// or one before it. The caller holds mu, and completeCommitted was called.
func (s *sender) onSessionResults(a *attempt, runs []subjects.BatchRun, mark uint64, isCurrent bool) {
	ss := a.batch.session
	if isCurrent {
		s.failures, s.leaderChanges = 0, 0
	}
	stopped, verdict := false, sessionAgain
	for _, run := range runs {
		if run.Error == nil {
			s.noteAccepted(a, run, isCurrent)
			continue
		}
		if covered(run, len(a.batch.items)) == 0 {
			continue
		}
		f := a.batch.items[run.Index].future
		v := ss.judge(f.number, run.Error)
		switch v {
		case sessionCommitted:
			s.finish(f, Receipt{Partition: s.partition, Duplicate: true}, nil)
			continue
		case sessionRefused, sessionMissing, sessionAgain:
			f.uncertain--
		}
		if !isCurrent || stopped {
			continue
		}
		stopped, verdict = true, v
		f.lastErr = f.refusal(run.Error, mark)
		if v == sessionRefused {
			s.refuse(f, run.Error)
		}
	}
	if isCurrent {
		s.goOn(a.batch, verdict)
	}
}

// noteAccepted notes that transactions of an attempt were accepted.
func (s *sender) noteAccepted(a *attempt, run subjects.BatchRun, isCurrent bool) {
	if run.Txid == 0 || !isCurrent {
		return
	}
	a.batch.session.setbacks = 0
	if !run.Duplicate {
		s.suspectEarlier(a)
	}
}

// refuse ends a session with the refusal of a transaction, f.lastErr. Earlier
// attempts may yet be accepted if they have no answer, and the refusal may be
// false, or says that the session is not known any more.
func (s *sender) refuse(f *Future, e *subjects.Error) {
	err := f.lastErr
	if f.uncertain > 0 && (mayBeFalse(e) || e.Reason == subjects.WrongLast && e.SessionSeq == nil) {
		err = f.unknown(err)
	}
	s.endSession(f, err)
}

// goOn sends what has no outcome of a batch again, which was answered, and what
// follows it.
func (s *sender) goOn(b *batch, verdict sessionVerdict) {
	ss := b.session
	rest := b.compact()
	if rest == nil {
		ss.remove(b)
		if b.attempts == 0 {
			b.free()
		}
		return
	}
	s.goBack(b)
	rest.attempts++
	ss.replace(b, rest)
	if verdict == sessionMissing && ss.sent > 0 {
		ss.awaited = true // the answer to what is missing is under way
		return
	}
	ss.setbacks++
	ss.notBefore = time.Now().Add(s.c.backoff(ss.setbacks))
}
