package broker

import (
	"errors"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cantuslog/cantus/internal/invariant"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
)

// responder is the second stage of a tenure: it waits for the outcome of each
// batch and replies.
type responder struct {
	partition     int
	term          uint64 // of the tenure
	log           *slog.Logger
	metrics       *partitionMetrics
	stages        stageMetrics
	mark          func() uint64
	confirmLeader func() bool
	end           func(error)
	limits        messageLimit
	replies       transmitter
	adviseRefused func(endpoint string, msgID []byte, e *subjects.Error) []byte
	adviseAll     func(endpoint string, msgID []byte, e *subjects.Error) []byte
	followed      func(*batch) bool // whether the publisher has anything to do

	certified <-chan *batch
	committed chan<- *batch

	lastTime int64 // of the last transaction that committed; owned by run

	broken atomic.Bool // a batch failed, which ended the tenure

	late    atomic.Int64    // batches in flight that were answered without an outcome
	lateMu  sync.Mutex      // held while late changes, and setLate is called
	setLate func(late bool) // called when late begins or ceases to be 0
}

// run answers batches in order, each when its outcome is known. What is
// committed goes to the publisher before that, so that a follower has a
// transaction about when its writer has the answer. If the publisher's channel
// is full, the batch is handed over after the replies are sent.
func (p *responder) run() {
	defer close(p.committed)
	for b := range p.certified {
		err := p.await(b)
		b.release()
		if err != nil && !p.broken.Swap(true) {
			p.end(err)
		}
		b.users.Store(1)
		publish := err == nil && b.proposal != nil && p.followed(b)
		if publish {
			b.users.Add(1)
			select {
			case p.committed <- b:
				publish = false
				runtime.Gosched() // with no processor idle the publisher would come after the answers
			default:
			}
		}
		p.answer(b, err)
		if err == nil && b.proposal != nil {
			p.stages.observe(b, time.Now())
		}
		if publish {
			p.committed <- b
		}
		b.done()
	}
}

// outcomeTime is how long a batch may be in flight before its requests are
// answered without an outcome. Clients don't wait much longer.
const outcomeTime = 5 * time.Second

// errLate is the outcome of a batch that is answered before its outcome is
// known.
var errLate = subjects.Errorf(subjects.Unknown,
	"a majority of the partition's nodes has not stored it yet: it may or may not commit; send it again with the same message id")

// answer answers a batch that ended with err, unless that was done before.
func (p *responder) answer(b *batch, err error) {
	b.overdue.Stop()
	b.answering.Lock()
	defer b.answering.Unlock()
	if b.answered {
		p.countLate(-1)
		return
	}
	b.answered = true
	p.reply(b, err)
	p.answered(b)
}

// answerLate answers a batch that has no outcome yet. Until it has one, the
// sequencer rejects what comes after it.
func (p *responder) answerLate(b *batch) {
	b.answering.Lock()
	defer b.answering.Unlock()
	if b.answered {
		return
	}
	b.answered = true
	p.reply(b, errLate)
	p.answered(b)
	p.countLate(1)
}

// countLate adds n to the batches that were answered late.
func (p *responder) countLate(n int64) {
	p.lateMu.Lock()
	defer p.lateMu.Unlock()
	if now := p.late.Add(n); now == 0 || now == n {
		p.setLate(now > 0)
	}
}

// answered counts a batch's messages.
func (p *responder) answered(b *batch) {
	p.metrics.answered("append", b.singles, time.Since(b.certified))
	p.metrics.answered("batch", b.batches, time.Since(b.certified))
}

// replyRejected replies to a batch of which nothing was proposed, on the
// goroutine of the sequencer. What is decided must depend on nothing in flight.
func (p *responder) replyRejected(b *batch) {
	p.reply(b, nil)
	p.answered(b)
	b.trace()
	b.requests.free()
}

// errVoid is the failure of a batch that was committed out of turn.
var errVoid = errors.New("broker: batch is void")

// await waits for a batch's outcome and returns nil if it committed, or if
// there was nothing to commit.
func (p *responder) await(b *batch) error {
	if b.proposal == nil {
		return nil
	}
	result, err := b.proposal.Wait()
	if err != nil {
		return err
	}
	switch b.applied = result.(applied); {
	case b.applied.failed:
		return raftstore.ErrUnknown // it is in the log
	case b.applied.void:
		return errVoid
	}
	invariant.TenureTerm.Check(b.applied.term == p.term, b.applied.term, p.term)
	invariant.TimesRise.Check(b.time > p.lastTime, uint64(b.time), uint64(p.lastTime)+1)
	p.lastTime = b.time + int64(len(b.passed)) - 1
	p.metrics.committed(len(b.passed), len(b.data), time.Since(b.certified))
	return nil
}

// reply sends the outcomes of all requests of a batch that ended with err, or
// that has no outcome yet if err is errLate.
func (p *responder) reply(b *batch, err error) {
	mark := p.mark()
	p.verify(b, mark)
	p.checkAnswers(b, err, mark)
	out := make([]byte, 0, 160*b.singles+1024*b.batches)
	failed := outcome{err: wireError(err)}
	if errors.Is(err, errVoid) {
		failed.err = subjects.Errorf(subjects.Unavailable, "the leader changed: nothing was done, try again")
	}
	for i, r := range b.passed {
		o := outcome{txid: b.first + uint64(i), time: b.time + int64(i)}
		if err != nil {
			o = failed
		}
		out = p.appendOutcome(out, r, o, mark)
	}
	for _, d := range b.decided {
		o := d.outcome
		switch {
		case d.dependsOn == 0:
		case p.broken.Load():
			invariant.DependencyLost.Reached()
			o = outcome{err: subjects.Errorf(subjects.Unavailable, "it was refused because of a transaction that did not commit: nothing was done, try again")}
		case isLate(err) && d.dependsOn > mark:
			o = outcome{err: subjects.Errorf(subjects.Unavailable, "it was refused because of a transaction that has not committed yet: nothing was done, try again")}
		}
		out = p.appendOutcome(out, d.r, o, mark)
	}
	if err := p.replies.Send(out); err != nil {
		p.log.Debug("answers not sent", "err", err)
	}
	if b.tracer != nil {
		b.replied = time.Now()
	}
}

func isLate(err error) bool { return errors.Is(err, errLate) }

// checkAnswers checks what the answers to a batch that ended with err say about
// what is committed. mark is the high-water mark.
func (p *responder) checkAnswers(b *batch, err error, mark uint64) {
	if n := uint64(len(b.passed)); n > 0 && err == nil {
		last := b.first + n - 1
		invariant.AcknowledgedApplied.Check(mark >= last, mark, last)
	}
	broken := p.broken.Load()
	for i := range b.decided {
		d := &b.decided[i]
		if d.dependsOn != 0 && (broken || isLate(err) && d.dependsOn > mark) {
			continue // it is answered otherwise
		}
		invariant.DependencyCommitted.Check(mark >= d.dependsOn, mark, d.dependsOn)
		switch e := d.outcome.err; {
		case e == nil:
			invariant.DuplicateCommitted.Check(mark >= d.outcome.txid, mark, d.outcome.txid)
		case e.Reason == subjects.Conflict:
			invariant.ConflictCommitted.Check(mark >= e.Txid, mark, e.Txid)
		}
	}
}

// verify turns `ahead`, `wrong_last` and `expired` into `unavailable` unless a
// majority confirms that this node still leads: a newer leader may have
// committed more, this very request included.
func (p *responder) verify(b *batch, mark uint64) {
	confirmed := sync.OnceValue(func() bool { return !p.broken.Load() && p.confirmLeader() })
	for i := range b.decided {
		d := &b.decided[i]
		if d.outcome.err == nil {
			continue
		}
		reason := d.outcome.err.Reason
		further := reason == subjects.Ahead || reason == subjects.Expired || reason == subjects.WrongLast && (d.r.cert.ExpectedLast > mark || d.r.cert.SessionSeq > 0)
		if further && !confirmed() {
			invariant.LeadershipUnconfirmed.Reached()
			d.outcome = outcome{err: notConfirmedError(p.partition)}
		}
	}
}

// noteTrace notes the outcome of a request that is traced.
func (r *request) noteTrace(o outcome) {
	if a := r.traced; a != nil {
		a.Txid, a.Duplicate, a.Err = o.txid, o.duplicate, o.err
	}
}

// appendOutcome appends the reply to one request, or keeps the outcome until
// the other transactions of its batch message have theirs.
func (p *responder) appendOutcome(out []byte, r *request, o outcome, mark uint64) []byte {
	endpoint, room := "append", p.limits.MaxPayload()
	if r.batch != nil || r.items != nil {
		endpoint = "batch"
	}
	if c := r.batch; c != nil {
		c.outcomes[r.index] = o
		c.left--
		if c.left == 0 && c.reply != "" {
			out = appendBatchReply(out, c, p.partition, mark, room)
		}
	}
	r.noteTrace(o)
	for _, t := range r.items {
		t.noteTrace(o)
	}
	if o.err != nil {
		p.metrics.refused(endpoint, o.err.Reason)
		p.metrics.conflicted(o.err)
		out = append(out, p.adviseAll(endpoint, r.tx.MsgID, o.err)...)
	}
	switch {
	case r.reply == "" && o.err != nil:
		return append(out, p.adviseRefused(endpoint, r.tx.MsgID, o.err)...)
	case r.reply == "" || r.batch != nil:
		return out
	case r.items != nil && o.err == nil: // it was committed before
		r.items[0].batch.outcomes[0] = o
		return appendBatchReply(out, r.items[0].batch, p.partition, mark, room)
	}
	return appendReply(out, r.reply, p.partition, o, mark, room)
}
