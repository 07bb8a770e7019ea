package subjects

import "fmt"

// Reason is the one word that tells refusals apart. Clients decide by it and
// by its code, never by a message's text.
type Reason string

// The reasons, grouped by what a client does next.
const (
	// Mend the request.
	BadRequest Reason = "bad_request" // a header or body is malformed
	TooLarge   Reason = "too_large"   // over a size limit
	IDReused   Reason = "id_reused"   // the message id stands for another payload

	// Apply what was missed, recompute, send again.
	Conflict  Reason = "conflict"   // a lock was recorded after the high-water mark
	WrongLast Reason = "wrong_last" // the expected last sequence, or a cursor's expected position, is not the present one

	// Read from elsewhere.
	Trimmed  Reason = "trimmed"   // older than what is kept
	NotFound Reason = "not_found" // no transaction is known to have recorded the lock

	// Stop and look.
	Ahead Reason = "ahead" // past the end of the log

	// Again, later.
	Busy        Reason = "busy"         // a queue is full; nothing was done
	Unavailable Reason = "unavailable"  // not the leader any more, or stopping; nothing was done
	Unknown     Reason = "unknown"      // may or may not have committed: again with the same message id
	StorageFull Reason = "storage_full" // no room on the leader's disk; nothing was committed
	Internal    Reason = "internal"     // a defect or damage; the node's log says more
)

// codes is the one table of reasons and codes; subjects.md shows it.
var codes = map[Reason]int{
	BadRequest: 400, NotFound: 404, Conflict: 409, WrongLast: 409, Trimmed: 410, Ahead: 412,
	TooLarge: 413, IDReused: 422, Busy: 429, Internal: 500, Unavailable: 503, Unknown: 504, StorageFull: 507,
}

// Code returns the reason's numeric code, 500 for one that is not in the table.
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
	// Forgotten reports that the partition does not know the lock any more, and Txid
	// is the floor.
	Forgotten bool `json:"forgotten,omitempty"`
}

// Error is a refusal as it stands on the wire.
type Error struct {
	Code    int    `json:"code"`
	Reason  Reason `json:"reason"`
	Message string `json:"message"`
	// Lock is, for conflict, the violated lock that was recorded last.
	Lock string `json:"lock,omitempty"`
	// Txid is the transaction that recorded it, or the floor if it is forgotten; for
	// id_reused, the one that has the message id.
	Txid uint64 `json:"txid,omitempty"`
	// Conflicts lists every lock that was violated, the newest first.
	Conflicts []ConflictingLock `json:"conflicts,omitempty"`
	// FirstTxid goes with trimmed: the oldest transaction kept.
	FirstTxid uint64 `json:"first_txid,omitempty"`
}

// Errorf makes an Error of a reason; the code follows from it.
func Errorf(reason Reason, format string, args ...any) *Error {
	return &Error{Code: reason.Code(), Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// Error returns the reason and the message.
func (e *Error) Error() string { return fmt.Sprintf("%s (%d): %s", e.Reason, e.Code, e.Message) }

func badf(format string, args ...any) error { return Errorf(BadRequest, format, args...) }
