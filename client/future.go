package client

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"
)

// Receipt is the proof that a transaction is committed.
type Receipt struct {
	Partition int
	Txid      uint64
	// Time is when the leader certified it.
	Time time.Time
	// Duplicate says that its message id was known already: of an earlier try
	// whose answer was lost, or of an earlier transaction.
	Duplicate bool
}

// Future is a transaction on its way.
type Future struct {
	sender *sender
	id     string // as given
	number uint64 // of the id that was made up
	size   int    // of the room that it takes

	// done is made for the first who waits; once the outcome is there it is
	// alreadyDone.
	done      atomic.Pointer[chan struct{}]
	completed atomic.Bool
	receipt   Receipt // set before done is closed
	err       error

	// lane.mu guards
	deadline  time.Time
	sent      bool
	uncertain int // tries that may have been carried out, for all that is known
	lastErr   error
}

var alreadyDone = func() *chan struct{} {
	done := make(chan struct{})
	close(done)
	return &done
}()

// Done is closed when the outcome is known, or given up.
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

// ID is the transaction's message id.
func (f *Future) ID() string {
	if f.id != "" {
		return f.id
	}
	return string(f.appendID(nil))
}

func (f *Future) appendID(dst []byte) []byte {
	if f.id != "" {
		return append(dst, f.id...)
	}
	return strconv.AppendUint(append(dst, f.sender.c.idPrefix...), f.number, 36)
}

// Wait returns the outcome. When ctx ends first it returns ctx's error, and the
// transaction stays on its way.
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

// settle sets the outcome and reports whether it was the first to do so, in
// which case the caller gives the room back.
func (f *Future) complete(r Receipt, err error) bool {
	if !f.completed.CompareAndSwap(false, true) {
		return false
	}
	f.receipt, f.err = r, err
	if waiting := f.done.Swap(alreadyDone); waiting != nil {
		close(*waiting)
	}
	return true
}

// giveUp is the error of a transaction that is not tried any more because of
// cause; lane.mu is held.
func (f *Future) incompleteError(cause error) error {
	switch {
	case f.lastErr != nil:
		cause = fmt.Errorf("%w; last try: %w", cause, f.lastErr)
	case f.sent:
		cause = fmt.Errorf("%w; %w", cause, ErrNoAnswer)
	}
	if f.uncertain > 0 {
		return &UnknownOutcomeError{Partition: f.sender.partition, ID: f.ID(), Err: cause}
	}
	return fmt.Errorf("partition %d: not appended: %w", f.sender.partition, cause)
}
