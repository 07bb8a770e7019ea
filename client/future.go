package client

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

// Receipt is the proof that a transaction is committed.
type Receipt struct {
	Partition int
	// Txid is the transaction's. It is 0 only in a [Session], rarely: see
	// [Session.Append].
	Txid uint64
	// Time is when the leader certified the transaction.
	Time time.Time
	// Duplicate reports that the partition already knew the message id: from an
	// earlier attempt whose answer was lost, or from an earlier transaction.
	Duplicate bool
}

// Future is the outcome of an accepted transaction.
type Future struct {
	sender  *sender
	session *Session // that it is in, or nil
	id      string   // as set by the caller, or empty
	number  uint64   // of the generated id, if id is empty; in a session, its number there
	size    int      // as charged to the limiter
	count   int      // transactions of an atomic batch, 0 for one that is in none
	header  []byte   // lines that the Tracer has added
	end     func(Receipt, error)

	// done is created by the first caller that waits. Once the outcome is known
	// it is alreadyDone.
	done      atomic.Pointer[chan struct{}]
	completed atomic.Bool
	receipt   Receipt // set before done is closed
	err       error

	// Guarded by sender.mu.
	deadline  time.Time
	sent      bool
	uncertain int // attempts that may have appended the transaction
	lastErr   error
}

var alreadyDone = func() *chan struct{} {
	done := make(chan struct{})
	close(done)
	return &done
}()

// Done returns a channel that is closed when the outcome is known or the
// transaction is abandoned.
func (f *Future) Done() <-chan struct{} {
	if done := f.done.Load(); done != nil {
		return *done
	}
	done := make(chan struct{})
	if f.done.CompareAndSwap(nil, &done) {
		return done
	}
	return *f.done.Load()
}

// ID returns the transaction's message id, "" in a [Session].
func (f *Future) ID() string {
	if f.id != "" || f.session != nil {
		return f.id
	}
	return string(f.appendID(nil))
}

// SessionSeq returns the transaction's number in its [Session], 0 if it is in
// none.
func (f *Future) SessionSeq() uint64 {
	if f.session == nil {
		return 0
	}
	return f.number
}

// appendIdentity appends the header lines by which the partition knows the
// transaction again.
func (f *Future) appendIdentity(dst []byte) []byte {
	if f.session != nil {
		dst = subjects.AppendField(dst, subjects.HeaderSession, f.session.name)
		return appendNumber(dst, subjects.HeaderSessionSeq, f.number)
	}
	var id [128]byte
	return subjects.AppendField(dst, subjects.HeaderMsgID, f.appendID(id[:0]))
}

func (f *Future) appendID(dst []byte) []byte {
	if f.id != "" {
		return append(dst, f.id...)
	}
	return strconv.AppendUint(append(dst, f.sender.c.idPrefix...), f.number, 36)
}

// Wait returns the outcome. If ctx ends first, Wait returns its error, and the
// transaction is still attempted.
func (f *Future) Wait(ctx context.Context) (Receipt, error) {
	if f.done.Load() == alreadyDone {
		return f.receipt, f.err
	}
	select {
	case <-f.Done():
		return f.receipt, f.err
	case <-ctx.Done():
		return Receipt{}, context.Cause(ctx)
	}
}

// complete sets the outcome and reports whether it did so first. The caller
// that did releases f.size to the limiter.
func (f *Future) complete(r Receipt, err error) bool {
	if !f.completed.CompareAndSwap(false, true) {
		return false
	}
	f.receipt, f.err = r, err
	if f.end != nil {
		f.end(r, err)
	}
	if waiting := f.done.Swap(alreadyDone); waiting != nil {
		close(*waiting)
	}
	return true
}

// incompleteError returns the error of a transaction that is no longer
// attempted because of cause. The caller holds sender.mu.
func (f *Future) incompleteError(cause error) error {
	switch {
	case f.lastErr != nil:
		cause = fmt.Errorf("%w; last attempt: %w", cause, f.lastErr)
	case f.sent:
		cause = fmt.Errorf("%w; %w", cause, ErrNoAnswer)
	}
	if f.uncertain > 0 {
		return f.unknown(cause)
	}
	return fmt.Errorf("partition %d: not appended: %w", f.sender.partition, cause)
}

// unknown returns the error of a transaction whose outcome is unknown because
// of cause.
func (f *Future) unknown(cause error) error {
	e := &UnknownOutcomeError{Partition: f.sender.partition, ID: f.ID(), Err: cause}
	if f.session != nil {
		e.Session, e.SessionSeq = f.session.name, f.number
	}
	return e
}

// refusal converts the error of an answer about the transaction.
func (f *Future) refusal(e *subjects.Error, mark uint64) error {
	r := refusedError(*e, f.sender.partition, f.ID(), mark)
	if f.session != nil {
		r.Session, r.SessionSeq = f.session.name, f.number
	}
	return r.typed()
}
