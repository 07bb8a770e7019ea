package client

import (
	"errors"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// isNoResponders reports whether m is the NATS server's reply that a subject
// has no subscribers.
func isNoResponders(m *nats.Msg) bool {
	return len(m.Data) == 0 && m.Header.Get("Status") == "503"
}

// onAnswer handles the answer to an attempt. It decodes into runs, and returns
// that memory for reuse.
func (s *sender) onAnswer(a *attempt, m *nats.Msg, runs []subjects.BatchRun) []subjects.BatchRun {
	if isNoResponders(m) {
		s.onRefused(a, nil, 0)
		return runs
	}
	r, err := decodeBatch(m.Data, runs[:0])
	if err != nil || r.Error == nil && (len(r.Results) == 0 || !a.batch.answers(r.Results)) {
		s.onRefused(a, subjects.Errorf(subjects.Unknown, "malformed answer: %q", m.Data[:min(len(m.Data), 200)]), 0)
		return runs
	}
	mark := uint64(0)
	if r.HighWaterMark != nil {
		mark = *r.HighWaterMark
	}
	if r.Error != nil {
		s.onRefused(a, r.Error, mark)
		return runs
	}
	s.completeCommitted(a, r.Results)
	s.onResults(a, r.Results, mark)
	return r.Results
}

// completeCommitted completes the transactions that the answer reports as
// committed. It needs no lock: a success is true of whichever attempt it
// answers.
func (s *sender) completeCommitted(a *attempt, runs []subjects.BatchRun) {
	count, bytes := 0, 0
	for _, run := range runs {
		if run.Error != nil || run.Txid == 0 {
			continue
		}
		for i := range covered(run, len(a.batch.items)) {
			f := a.batch.items[run.Index+i].future
			r := Receipt{
				Partition: s.partition, Txid: run.Txid + uint64(i),
				Time: run.Time.Add(time.Duration(i)), Duplicate: run.Duplicate,
			}
			if f.complete(r, nil) {
				count++
				bytes += f.size
			}
		}
	}
	if count > 0 {
		s.c.limiter.release(count, bytes)
	}
}

// answers reports whether the results of an answer have the form of one to b:
// that to an atomic batch has one, about all of it.
func (b *batch) answers(runs []subjects.BatchRun) bool {
	return b.atomic == nil || len(runs) == 1 && runs[0].Index == 0 && runs[0].Count == b.items[0].future.count && runs[0].Txid > 0
}

// covered returns how many of n items run describes, 0 if it is malformed.
func covered(run subjects.BatchRun, n int) int {
	if run.Index < 0 || run.Index >= n {
		return 0
	}
	return max(0, min(run.Count, n-run.Index))
}

// onResults ends an attempt whose transactions have outcomes of their own.
// Refused transactions are completed or retried one by one.
func (s *sender) onResults(a *attempt, runs []subjects.BatchRun, mark uint64) {
	defer s.signal()
	s.mu.Lock()
	defer s.mu.Unlock()
	isCurrent := s.removeInflight(a)
	if a.batch.session != nil {
		s.onSessionResults(a, runs, mark, isCurrent)
		return
	}
	if !isCurrent {
		// The attempt was abandoned. Its refusals say nothing about later ones.
		return
	}
	s.failures, s.leaderChanges = 0, 0
	clean := true
	for _, run := range runs {
		if run.Error == nil && !run.Duplicate && run.Txid != 0 {
			s.suspectEarlier(a)
		}
		if run.Error == nil || covered(run, len(a.batch.items)) == 0 {
			continue
		}
		f := a.batch.items[run.Index].future
		err := refusal(*run.Error, s.partition, f.ID(), mark)
		f.lastErr = err
		switch dispositionOf(run.Error) {
		case final:
			if f.uncertain > 1 && mayBeFalse(run.Error) {
				err = &UnknownOutcomeError{Partition: s.partition, ID: f.ID(), Err: err}
			}
			s.fail(f, err)
			continue
		case retryable:
			f.uncertain--
		}
		clean = false
	}
	if rest := a.batch.compact(); rest != nil { // including transactions without a result
		rest.notBefore = time.Now().Add(s.c.backoff(rest.attempts + 1))
		rest.attempts++
		s.enqueue(rest)
		return
	}
	if clean && a.batch.attempts == 0 && a.batch.atomic == nil {
		a.batch.free()
	}
}

// mayBeFalse reports whether an earlier attempt without an answer may commit in
// spite of a refusal: it may be looked up in the log still, where this one was
// forgotten, and the clock of another leader may be behind.
func mayBeFalse(e *subjects.Error) bool {
	return e.Reason == subjects.Expired || e.Unless != nil && e.Unless.Forgotten ||
		slices.ContainsFunc(e.Conflicts, func(c subjects.ConflictingLock) bool { return c.Forgotten })
}

// onRefused ends an attempt whose message was refused as a whole. e is nil if
// the partition's subject has no subscribers.
func (s *sender) onRefused(a *attempt, e *subjects.Error, mark uint64) {
	defer s.signal()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.removeInflight(a) {
		if a.batch.session != nil && (e == nil || dispositionOf(e) != uncertain) {
			s.noteNotAppended(a.batch)
		}
		return
	}
	if e == nil {
		s.noteNotAppended(a.batch)
		if err := s.c.onNoResponders(s.partition); err != nil {
			s.closeLocked(err, a.batch)
			return
		}
		s.retryAfterBackoff(a.batch, ErrNoLeader, time.Now())
		return
	}
	switch dispositionOf(e) {
	case final:
		s.noteNotAppended(a.batch)
		if a.batch.atomic != nil && mayBeFalse(e) && a.batch.items[0].future.uncertain > 0 {
			f := a.batch.items[0].future
			s.fail(f, &UnknownOutcomeError{Partition: s.partition, ID: f.ID(), Err: refusal(*e, s.partition, f.ID(), mark)})
			return
		}
		s.split(a.batch, e, mark)
		return
	case retryable:
		s.noteNotAppended(a.batch)
	}
	err := refusal(*e, s.partition, "", mark)
	if wait := e.RetryDelay(); wait > 0 {
		s.retryWhenAllowed(a.batch, err, wait, time.Now())
		return
	}
	if a.batch.atomic != nil { // the refusal may be about atomic batches only: others need not wait
		a.batch.notBefore = time.Now().Add(s.c.backoff(a.batch.attempts + 1))
		s.retry(a.batch, err)
		return
	}
	s.retryAfterBackoff(a.batch, err, time.Now())
}

// isClosed reports whether err means that the NATS connection is closed for
// good.
func isClosed(err error) bool {
	return errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrConnectionDraining)
}
