package client

import (
	"errors"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// isNoResponders reports whether NATS itself answered, for want of anybody.
func isNoResponders(m *nats.Msg) bool {
	return len(m.Data) == 0 && m.Header.Get("Status") == "503"
}

// answered takes the answer to a flight, on the inbox goroutine. runs is
// memory that may be used; it is given back.
func (l *lane) answered(fl *flight, m *nats.Msg, runs []subjects.BatchRun) []subjects.BatchRun {
	if isNoResponders(m) {
		l.refused(fl, nil, 0)
		return runs
	}
	r, err := decodeBatch(m.Data, runs[:0])
	if err != nil || r.Error == nil && len(r.Results) == 0 {
		l.refused(fl, subjects.Errorf(subjects.Unknown, "the answer can't be read: %q", m.Data[:min(len(m.Data), 200)]), 0)
		return runs
	}
	mark := uint64(0)
	if r.HighWaterMark != nil {
		mark = *r.HighWaterMark
	}
	if r.Error != nil {
		l.refused(fl, r.Error, mark)
		return runs
	}
	l.committed(fl, r.Results)
	l.landed(fl, r.Results, mark)
	return r.Results
}

// committed settles the successes of an answer. It needs no lock: a success is
// the truth, whichever try it is of.
func (l *lane) committed(fl *flight, runs []subjects.BatchRun) {
	count, bytes := 0, 0
	for _, run := range runs {
		if run.Error != nil || run.Txid == 0 {
			continue
		}
		for i := range covered(run, len(fl.ch.items)) {
			f := fl.ch.items[run.Index+i].f
			r := Receipt{
				Partition: l.partition, Txid: run.Txid + uint64(i),
				Time: run.Time.Add(time.Duration(i)), Duplicate: run.Duplicate,
			}
			if f.settle(r, nil) {
				count++
				bytes += f.size
			}
		}
	}
	if count > 0 {
		l.c.room.leave(count, bytes)
	}
}

// covered is how many of n items the run is about.
func covered(run subjects.BatchRun, n int) int {
	if run.Index < 0 || run.Index >= n {
		return 0
	}
	return max(0, min(run.Count, n-run.Index))
}

// landed ends a flight whose transactions have outcomes of their own: refusals
// are settled or sent again by themselves.
func (l *lane) landed(fl *flight, runs []subjects.BatchRun, mark uint64) {
	defer l.signal()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.land(fl) {
		// Late: a refusal of this try says nothing of those after it.
		return
	}
	l.failures, l.signs = 0, 0
	clean := true
	for _, run := range runs {
		if run.Error == nil && !run.Duplicate && run.Txid != 0 {
			l.overtaken(fl)
		}
		if run.Error == nil || covered(run, len(fl.ch.items)) == 0 {
			continue
		}
		f := fl.ch.items[run.Index].f
		err := refusal(*run.Error, l.partition, f.ID(), mark)
		f.last = err
		switch courseOf(run.Error) {
		case final:
			l.settle(f, Receipt{}, err)
			continue
		case again:
			f.open--
		}
		clean = false
	}
	if rest := fl.ch.compact(); rest != nil { // also what the answer left out
		rest.due = time.Now().Add(l.c.backoff(rest.tries + 1))
		rest.tries++
		l.enqueue(rest)
		return
	}
	if clean && fl.ch.tries == 0 {
		fl.ch.free()
	}
}

// refused ends a flight whose message was refused as a whole; e is nil if
// nobody answers for the partition.
func (l *lane) refused(fl *flight, e *subjects.Error, mark uint64) {
	defer l.signal()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.land(fl) {
		return
	}
	if e == nil {
		l.known(fl.ch)
		if err := l.c.nobody(l.partition); err != nil {
			l.shut(err, fl.ch)
			return
		}
		l.again(fl.ch, ErrNoLeader, time.Now())
		return
	}
	switch courseOf(e) {
	case final:
		l.known(fl.ch)
		l.divide(fl.ch, e, mark)
		return
	case again:
		l.known(fl.ch)
	}
	l.again(fl.ch, refusal(*e, l.partition, "", mark), time.Now())
}

// isClosed reports whether err says that the NATS connection is closed for good.
func isClosed(err error) bool {
	return errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrConnectionDraining)
}
