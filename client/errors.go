package client

import (
	"errors"
	"fmt"

	"github.com/cantuslog/cantus/subjects"
)

// Met when calling.
var (
	// ErrClosed is returned when the client, or the NATS connection that it
	// was given, is closed.
	ErrClosed = errors.New("client: closed")
	// ErrDraining is returned for an append after [Client.Drain] was called.
	ErrDraining = errors.New("client: draining")
	// ErrFull is returned when as much is in flight as Options allow, and
	// Options.FailWhenFull is set.
	ErrFull = errors.New("client: too much in flight")
	// ErrOptions is returned for an option that is out of its range.
	ErrOptions = errors.New("client: option out of range")
	// ErrFeed is in the chain of what FollowOptions.OnRejected is told.
	ErrFeed = errors.New("client: a message of the feed is not the cluster's")
	// ErrNoPartition is in the chain for a partition that the cluster does not
	// have. Nothing was done.
	ErrNoPartition = errors.New("client: partition does not exist")
	// ErrNotFollowed is returned for a partition that a Follower was not given.
	ErrNotFollowed = errors.New("client: partition is not followed")
)

// Met when a transaction ends without a receipt.
var (
	// ErrUnknown is in the chain of every [*UnknownOutcomeError].
	ErrUnknown = errors.New("client: outcome unknown")
	// ErrTimeout is returned when a transaction has no outcome within
	// [Options.Timeout]. Nothing was appended, unless [ErrUnknown] is in the
	// chain too.
	ErrTimeout = errors.New("client: timed out")
	// ErrNoAnswer is in the chain when the last try had no answer in time.
	ErrNoAnswer = errors.New("client: no answer")
	// ErrNoLeader is in the chain when nobody answers for the partition: it has
	// no leader at the moment, or does not exist, as long as nobody says which
	// (see ErrNoPartition).
	ErrNoLeader = errors.New("client: nobody answers for the partition")
	// ErrAttempts is returned by Transact when each attempt met a conflict. The
	// chain holds the last one.
	ErrAttempts = errors.New("client: conflicts on every attempt")
)

// The reasons of refusals: errors.Is finds them in a [*RefusedError].
var (
	ErrBadRequest = errors.New("client: bad request")
	ErrConflict   = errors.New("client: conflict")
	ErrWrongLast  = errors.New("client: wrong last txid")
	ErrTrimmed    = errors.New("client: trimmed")
	ErrAhead      = errors.New("client: ahead of the log")
	ErrTooLarge   = errors.New("client: too large")
	ErrIDReused   = errors.New("client: message id reused")
	ErrNotFound   = errors.New("client: not found")
)

// The reasons that are tried again: they show only in the chain of what ended
// the trying.
var (
	ErrBusy        = errors.New("client: busy")
	ErrUnavailable = errors.New("client: unavailable")
	ErrStorageFull = errors.New("client: no room on the leader's disk")
	ErrInternal    = errors.New("client: a defect or damage on the node")
)

var byReason = map[subjects.Reason]error{
	subjects.BadRequest: ErrBadRequest, subjects.Conflict: ErrConflict, subjects.WrongLast: ErrWrongLast,
	subjects.Trimmed: ErrTrimmed, subjects.Ahead: ErrAhead, subjects.TooLarge: ErrTooLarge, subjects.IDReused: ErrIDReused,
	subjects.NotFound: ErrNotFound, subjects.Busy: ErrBusy, subjects.Unavailable: ErrUnavailable, subjects.Unknown: ErrUnknown,
	subjects.StorageFull: ErrStorageFull, subjects.Internal: ErrInternal,
}

// RefusedError is the error of a refusal, with all that the reply said. Where it is
// returned itself, and not as the last try of an [*UnknownOutcomeError], nothing was done.
type RefusedError struct {
	Partition int
	// ID is the transaction's message id, "" for a read.
	ID string
	// Reason is the one word to decide by, Code its number, Message text for
	// people.
	Reason  subjects.Reason
	Code    int
	Message string
	// HighWaterMark is the partition's when the answer was made; 0 if the
	// client refused by itself.
	HighWaterMark uint64
	// Lock goes with ErrConflict: the violated lock that was recorded last.
	Lock string
	// Txid is the transaction that recorded it, or the partition's floor if it is
	// forgotten (as Conflicts say); with ErrIDReused, the one that has the message id.
	Txid uint64
	// Conflicts goes with ErrConflict: every violated lock, the newest first.
	Conflicts []subjects.ConflictingLock
	// FirstTxid goes with ErrTrimmed: the oldest transaction kept.
	FirstTxid uint64
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("partition %d: %s (%d): %s", e.Partition, e.Reason, e.Code, e.Message)
}

// Is matches the sentinel of the reason.
func (e *RefusedError) Is(target error) bool { s, ok := byReason[e.Reason]; return ok && s == target }

// ConflictError is the refusal of a transaction whose locks were recorded after its
// high-water mark. Txid is the newest of the conflicts: a writer that has
// applied up to it meets none of them again. Conflicts lists all, the newest first.
type ConflictError struct{ RefusedError }

// Unwrap returns the refusal.
func (e *ConflictError) Unwrap() error { return &e.RefusedError }

// UnknownOutcomeError is the error of a transaction that was sent and may or may not have
// committed. Who has to know reads the log: Transaction.ID is there.
// Appending it again with the same ID is safe while the partition remembers
// the id.
type UnknownOutcomeError struct {
	Partition int
	ID        string
	// Err says what ended the wait, and how the last try ended.
	Err error
}

func (e *UnknownOutcomeError) Error() string {
	return fmt.Sprintf("partition %d: outcome of message id %q unknown: %v", e.Partition, e.ID, e.Err)
}

// Unwrap returns ErrUnknown and the cause.
func (e *UnknownOutcomeError) Unwrap() []error { return []error{ErrUnknown, e.Err} }

// refusal makes the error of what a reply said.
func refusal(e subjects.Error, partition int, id string, mark uint64) error {
	r := RefusedError{
		Partition: partition, ID: id, Reason: e.Reason, Code: e.Code, Message: e.Message, HighWaterMark: mark,
		Lock: e.Lock, Txid: e.Txid, Conflicts: e.Conflicts, FirstTxid: e.FirstTxid,
	}
	if e.Reason == subjects.Conflict {
		return &ConflictError{r}
	}
	return &r
}

// course says what to do about a refusal.
type disposition uint8

const (
	final     disposition = iota // sending again is pointless
	retryable                    // nothing was done: send again
	uncertain                    // it may have been done: send again
)

func dispositionOf(e *subjects.Error) disposition {
	switch e.Reason {
	case subjects.Busy, subjects.Unavailable, subjects.StorageFull:
		return retryable
	case subjects.Unknown, subjects.Internal:
		return uncertain
	}
	if e.Code >= 500 { // a reason of a later version
		return uncertain
	}
	return final
}
