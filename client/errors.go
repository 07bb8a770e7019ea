package client

import (
	"errors"
	"fmt"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

// Errors of calls.
var (
	// ErrClosed is returned when the client, or the NATS connection that it
	// uses, is closed.
	ErrClosed = errors.New("client: closed")
	// ErrDraining is returned for an append after [Client.Drain] was called.
	ErrDraining = errors.New("client: draining")
	// ErrFull is returned when a limit on the transactions in flight is reached
	// and [Options.FailWhenFull] is set.
	ErrFull = errors.New("client: too many transactions in flight")
	// ErrOptions is returned for an option that is out of its range.
	ErrOptions = errors.New("client: option out of range")
	// ErrFeed is wrapped by the errors passed to [FollowOptions.OnRejected].
	ErrFeed = errors.New("client: message of the feed does not verify")
	// ErrNoPartition is wrapped by errors about a partition that the cluster
	// does not have. Nothing was done.
	ErrNoPartition = errors.New("client: partition does not exist")
	// ErrOtherHistory is wrapped by every [*HistoryError].
	ErrOtherHistory = errors.New("client: the log has another history")
	// ErrNotFollowed is returned for a partition that the Follower does not
	// follow.
	ErrNotFollowed = errors.New("client: partition is not followed")
)

// Errors of transactions that end without a receipt.
var (
	// ErrUnknown is wrapped by every [*UnknownOutcomeError].
	ErrUnknown = errors.New("client: outcome unknown")
	// ErrTimeout is returned when a transaction has no outcome within
	// [Options.Timeout]. Nothing was appended, unless the error also wraps
	// [ErrUnknown].
	ErrTimeout = errors.New("client: timed out")
	// ErrNoAnswer is wrapped when the last attempt was not answered in time.
	ErrNoAnswer = errors.New("client: no answer")
	// ErrNoLeader is wrapped when nobody answers for the partition: either it
	// has no leader at the moment, or it does not exist and the client does not
	// know that yet (see [ErrNoPartition]).
	ErrNoLeader = errors.New("client: nobody answers for the partition")
	// ErrSessionEnded is wrapped by every [*SessionError].
	ErrSessionEnded = errors.New("client: the session has ended")
	// ErrNothing is returned by [Transactor.Transact], [Decide] and their atomic
	// forms if the function has set no transaction: nothing was appended. If the
	// function may find nothing to do, expect this error.
	ErrNothing = errors.New("client: nothing to append: Set was not called, or no transaction added")
	// ErrAttempts is returned by [Transactor.Transact] when every attempt met a
	// conflict. It wraps the last one.
	ErrAttempts = errors.New("client: conflicts on every attempt")
)

// Reasons of refusals. A [*RefusedError] matches one of them with errors.Is.
var (
	ErrBadRequest = errors.New("client: bad request")
	ErrConflict   = errors.New("client: conflict")
	ErrWrongLast  = errors.New("client: wrong last txid")
	ErrTrimmed    = errors.New("client: trimmed")
	ErrAhead      = errors.New("client: ahead of the log")
	ErrTooLarge   = errors.New("client: too large")
	ErrIDReused   = errors.New("client: message id reused")
	ErrExpired    = errors.New("client: expired")
	ErrNotFound   = errors.New("client: not found")
)

// Reasons for which the client retries. They are wrapped by the error that
// ended the retries.
var (
	ErrBusy        = errors.New("client: busy")
	ErrUnavailable = errors.New("client: unavailable")
	ErrStorageFull = errors.New("client: not enough disk space")
	ErrInternal    = errors.New("client: internal error of the node")
)

var byReason = map[subjects.Reason]error{
	subjects.BadRequest: ErrBadRequest, subjects.Conflict: ErrConflict, subjects.WrongLast: ErrWrongLast,
	subjects.Trimmed: ErrTrimmed, subjects.Ahead: ErrAhead, subjects.TooLarge: ErrTooLarge, subjects.IDReused: ErrIDReused, subjects.Expired: ErrExpired,
	subjects.NotFound: ErrNotFound, subjects.Busy: ErrBusy, subjects.Unavailable: ErrUnavailable, subjects.Unknown: ErrUnknown,
	subjects.StorageFull: ErrStorageFull, subjects.Internal: ErrInternal,
}

// RefusedError is a refusal, with everything that the answer said. Unless it is
// wrapped by an [*UnknownOutcomeError] as the result of the last attempt,
// nothing was done.
type RefusedError struct {
	Partition int
	// ID is the transaction's message id, "" for a read or in a session.
	ID string
	// Session is the transaction's session, "" if it is in none, and SessionSeq
	// its number there.
	Session    string
	SessionSeq uint64
	// Reason is the reason to decide by, Code its number, and Message a text
	// for people.
	Reason  subjects.Reason
	Code    int
	Message string
	// HighWaterMark is the partition's when it answered, or 0 if the client
	// itself refused.
	HighWaterMark uint64
	// Lock is set with ErrConflict: the violated lock that was recorded last.
	Lock string
	// Txid is the transaction that recorded Lock or that Unless matches, or the
	// one up to which the log could not be searched, as Conflicts or Unless
	// says. With ErrIDReused it is the
	// transaction that has the message id.
	Txid uint64
	// Conflicts is set with ErrConflict: every violated lock, newest first.
	Conflicts []subjects.ConflictingLock
	// Unless is set with ErrConflict if the condition is the cause: the item
	// that matches. There are no Lock and Conflicts then.
	Unless *subjects.MatchedCondition
	// LastAccepted is set with ErrWrongLast in a session: the number accepted
	// last, nil if the partition does not know the session.
	LastAccepted *uint64
	// FirstTxid is set with ErrTrimmed: the oldest transaction kept.
	FirstTxid uint64
	// Limit is set with ErrBusy and ErrStorageFull if a limit of the namespace
	// is the cause: "transactions", "bytes" or "kept".
	Limit string
	// RetryAfter is set with ErrBusy and a Limit: how long it allows nothing.
	// The client waits at least as long before it sends again.
	RetryAfter time.Duration
}

func (e *RefusedError) Error() string {
	of := ""
	if e.Session != "" {
		of = fmt.Sprintf("number %d of session %q: ", e.SessionSeq, e.Session)
	}
	return fmt.Sprintf("partition %d: %s%s (%d): %s", e.Partition, of, e.Reason, e.Code, e.Message)
}

// Is reports whether target is the sentinel error of the reason.
func (e *RefusedError) Is(target error) bool { s, ok := byReason[e.Reason]; return ok && s == target }

// ConflictError is the refusal of a transaction because its locks were recorded
// after its high-water mark, or because its condition matches a transaction
// after it. Conflicts lists all the locks, newest first, and Txid is the newest
// conflict: a writer that has applied the partition up to it meets none of them
// again. Of a condition, Unless has one item that matches: another item may
// match a later transaction.
type ConflictError struct{ RefusedError }

// Unwrap returns the refusal.
func (e *ConflictError) Unwrap() error { return &e.RefusedError }

// HistoryError is returned when the partition does not have all that the client
// has applied: the cluster was restored from a backup that ends before it, or
// is another one. Under later txids it has other transactions. It matches
// [ErrOtherHistory] and [ErrAhead] with errors.Is.
//
// Go on from a state that is not later than transaction Common. Without one,
// begin from an empty state.
type HistoryError struct {
	RefusedError
	// After is the last transaction that the client has, from cluster Had.
	After uint64
	Had   string
	// Cluster is the id of the cluster that answers. Common is the last
	// transaction that both have, 0 if there is none.
	Cluster string
	Common  uint64
}

func (e *HistoryError) Error() string {
	if e.Common == 0 {
		return fmt.Sprintf("partition %d: what was applied, up to transaction %d, is from cluster %s, of which this cluster, %s, has nothing: check the address, or begin from an empty state",
			e.Partition, e.After, e.Had, e.Cluster)
	}
	return fmt.Sprintf("partition %d: what was applied, up to transaction %d, is from cluster %s; this cluster, %s, was restored from a backup, recovered or promoted, and has another history after transaction %d: "+
		"go on from a state that is not later than that",
		e.Partition, e.After, e.Had, e.Cluster, e.Common)
}

// Unwrap returns ErrOtherHistory and the refusal.
func (e *HistoryError) Unwrap() []error { return []error{ErrOtherHistory, &e.RefusedError} }

// UnknownOutcomeError is the error of a transaction that may or may not have
// committed. To find out, read the log: Transaction.ID, or Session and
// SessionSeq, are stored there. Appending the transaction again with the same
// ID is safe while the partition remembers the id.
type UnknownOutcomeError struct {
	Partition int
	// ID is its message id, "" in a session.
	ID string
	// Session is its session, "" if it is in none, and SessionSeq its number
	// there.
	Session    string
	SessionSeq uint64
	// Err says what ended the wait, and how the last attempt ended.
	Err error
}

func (e *UnknownOutcomeError) Error() string {
	if e.Session != "" {
		return fmt.Sprintf("partition %d: outcome of number %d of session %q unknown: %v", e.Partition, e.SessionSeq, e.Session, e.Err)
	}
	return fmt.Sprintf("partition %d: outcome of message id %q unknown: %v", e.Partition, e.ID, e.Err)
}

// Unwrap returns ErrUnknown and the cause.
func (e *UnknownOutcomeError) Unwrap() []error { return []error{ErrUnknown, e.Err} }

// SessionError is the error of a transaction that is not committed because its
// session has ended before. Err is why: what became of number Seq, the first
// one without a receipt. So the error of a transaction after a refused one
// matches what the refusal matches, such as [ErrConflict]. It also matches
// [ErrSessionEnded].
type SessionError struct {
	Partition int
	Session   string
	Seq       uint64
	Err       error
}

func (e *SessionError) Error() string {
	return fmt.Sprintf("partition %d: session %q has ended with number %d, so begin another one from a state that has what was committed: %v", e.Partition, e.Session, e.Seq, e.Err)
}

// Unwrap returns ErrSessionEnded and the cause.
func (e *SessionError) Unwrap() []error { return []error{ErrSessionEnded, e.Err} }

// refusal converts the error of an answer.
func refusal(e subjects.Error, partition int, id string, mark uint64) error {
	return refusedError(e, partition, id, mark).typed()
}

// typed returns the refusal as an error of the type for its reason.
func (e RefusedError) typed() error {
	if e.Reason == subjects.Conflict {
		return &ConflictError{e}
	}
	return &e
}

// refusedError is refusal for errors that have no type of their own.
func refusedError(e subjects.Error, partition int, id string, mark uint64) RefusedError {
	return RefusedError{
		Partition: partition, ID: id, Reason: e.Reason, Code: e.Code, Message: e.Message, HighWaterMark: mark,
		Lock: e.Lock, Txid: e.Txid, Conflicts: e.Conflicts, Unless: e.Unless, FirstTxid: e.FirstTxid,
		LastAccepted: e.SessionSeq, Limit: e.Limit, RetryAfter: e.RetryDelay(),
	}
}

// disposition says how the client reacts to a refusal.
type disposition uint8

const (
	final     disposition = iota // resending is pointless
	retryable                    // nothing was done: resend
	uncertain                    // it may have been done: resend
)

func dispositionOf(e *subjects.Error) disposition {
	switch e.Reason {
	case subjects.Busy, subjects.Unavailable, subjects.StorageFull:
		return retryable
	case subjects.Unknown, subjects.Internal:
		return uncertain
	}
	if e.Code >= 500 { // a reason unknown to this version
		return uncertain
	}
	return final
}
