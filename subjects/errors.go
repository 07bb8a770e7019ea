package subjects

import (
	"fmt"
	"math"
	"time"
)

// Reason is one word for why a request was refused. Clients decide by it, or by
// its code, and never by the text of the message.
type Reason string

// The reasons, grouped by what a client does next.
const (
	// Correct the request.
	BadRequest Reason = "bad_request" // a header or body is malformed
	TooLarge   Reason = "too_large"   // over a size limit
	IDReused   Reason = "id_reused"   // the message id stands for another payload
	Expired    Reason = "expired"     // it was to commit by a time that has passed

	// Apply the missing transactions, compute again, send again.
	Conflict  Reason = "conflict"   // a lock was recorded after the high-water mark
	WrongLast Reason = "wrong_last" // the expected last sequence, the number in a session, or a cursor's expected position, does not follow on what is there

	// Read from elsewhere.
	Trimmed  Reason = "trimmed"   // older than what is kept
	NotFound Reason = "not_found" // no transaction is known to have recorded the lock

	// Stop and investigate.
	Ahead Reason = "ahead" // past the end of the log

	// Send again later.
	Busy        Reason = "busy"         // a queue is full; nothing was done
	Unavailable Reason = "unavailable"  // no longer the leader, or stopping; nothing was done
	Unknown     Reason = "unknown"      // may or may not have committed: send again with the same message id
	StorageFull Reason = "storage_full" // no space on the leader's disk; nothing was committed
	Internal    Reason = "internal"     // a defect or damage; the node's log says more
)

// codes is the table of reasons and codes; subjects.md has the same.
var codes = map[Reason]int{
	BadRequest: 400, NotFound: 404, Expired: 408, Conflict: 409, WrongLast: 409, Trimmed: 410, Ahead: 412,
	TooLarge: 413, IDReused: 422, Busy: 429, Internal: 500, Unavailable: 503, Unknown: 504, StorageFull: 507,
}

// Code returns the reason's numeric code, 500 for an unknown reason.
func (r Reason) Code() int {
	if c, ok := codes[r]; ok {
		return c
	}
	return codes[Internal]
}

// Reasons lists every reason with its code.
func Reasons() map[Reason]int {
	all := make(map[Reason]int, len(codes))
	for r, c := range codes {
		all[r] = c
	}
	return all
}

// ConflictingLock is one lock that a refused transaction violated.
type ConflictingLock struct {
	Lock string `json:"lock"`
	Mode string `json:"mode"`
	Txid uint64 `json:"txid"`
	// Forgotten is true if the log could not be searched at Txid and before: the
	// lock counts as recorded there.
	Forgotten bool `json:"forgotten,omitempty"`
}

// MatchedCondition is the item of a refused transaction's condition that
// matches.
type MatchedCondition struct {
	// Item is its number among the items of the request, from 0 on.
	Item int `json:"item"`
	// Txid is the transaction that it matches: the newest one that was found.
	Txid uint64 `json:"txid"`
	// Forgotten is true if the partition could not look at Txid and what is
	// before it: the item counts as matching there.
	Forgotten bool `json:"forgotten,omitempty"`
}

// Error is a refusal as it is on the wire.
type Error struct {
	Code    int    `json:"code"`
	Reason  Reason `json:"reason"`
	Message string `json:"message"`
	// Lock is, for a conflict, the violated lock that was recorded last.
	Lock string `json:"lock,omitempty"`
	// Txid is the transaction that recorded Lock, or where that counts as
	// recorded if it is forgotten; for id_reused, the transaction that has the
	// message id.
	Txid uint64 `json:"txid,omitempty"`
	// Conflicts lists every violated lock, the most recently recorded first.
	Conflicts []ConflictingLock `json:"conflicts,omitempty"`
	// Unless is, for a conflict of a condition, the item that matches. Lock and
	// Conflicts are empty then, and Txid is the item's.
	Unless *MatchedCondition `json:"unless,omitempty"`
	// SessionSeq is, for wrong_last of a transaction in a session, the number of
	// the session's last transaction that was accepted, 0 for none. It is nil if
	// the partition does not know the session.
	SessionSeq *uint64 `json:"session_seq,omitempty"`
	// FirstTxid is, for trimmed, the oldest transaction that is kept.
	FirstTxid uint64 `json:"first_txid,omitempty"`
	// Cluster is the id of the cluster that answers, if a read or a cursor is
	// refused because of the cluster in its request. Txid is then the last
	// transaction that the two have in common, 0 for none.
	Cluster string `json:"cluster,omitempty"`
	// Limit is the limit of the namespace because of which an append is
	// refused: "transactions", "bytes" or "kept"; "" for another cause. See
	// [NamespaceLimits].
	Limit string `json:"limit,omitempty"`
	// RetryAfter is in how many seconds the limit allows more, 0 if only a trim
	// can bring that about.
	RetryAfter float64 `json:"retry_after,omitempty"`
}

// maxRetryDelay bounds RetryDelay: an operator may raise a limit meanwhile, and
// what a message says may be anything.
const maxRetryDelay = time.Hour

// RetryDelay returns how long to wait at least before the request is sent
// again, by RetryAfter: 0 if nothing is known, and an hour at most.
func (e *Error) RetryDelay() time.Duration {
	seconds := min(max(e.RetryAfter, 0), maxRetryDelay.Seconds())
	return time.Duration(math.Ceil(seconds * float64(time.Second)))
}

// Errorf returns an Error with a reason, the reason's code, and a message.
func Errorf(reason Reason, format string, args ...any) *Error {
	return &Error{Code: reason.Code(), Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// Error returns the reason and the message.
func (e *Error) Error() string { return fmt.Sprintf("%s (%d): %s", e.Reason, e.Code, e.Message) }

func badf(format string, args ...any) error { return Errorf(BadRequest, format, args...) }
