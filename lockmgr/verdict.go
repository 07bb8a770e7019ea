package lockmgr

// Outcome is the result of certifying a transaction. Its String is the reason
// that clients see.
type Outcome uint8

// The outcomes.
const (
	Pass       Outcome = iota // in flight from now on
	Duplicate                 // a repeat of a transaction that passed before
	IDReused                  // its message id stands for another payload
	Ahead                     // its high-water mark is past the last txid
	WrongLast                 // its expected last txid is not the last
	Conflicted                // at least one of its locks is violated
	Expired                   // its last time has passed
	WrongSeq                  // its session's last number is not the one before
)

var outcomes = [...]string{"pass", "duplicate", "id_reused", "ahead", "wrong_last", "conflict", "expired", "wrong_last"}

// String returns "pass", "duplicate", "id_reused", "ahead", "wrong_last" (for
// WrongSeq, too), "conflict" or "expired".
func (o Outcome) String() string {
	if int(o) < len(outcomes) {
		return outcomes[o]
	}
	return "unknown"
}

// Conflict is one violated lock of a transaction.
type Conflict struct {
	Name string // a copy
	Mode Mode   // Read or Write

	// Txid is the newest transaction that recorded an overlapping lock. If
	// neither the table nor the caller knows one, it is the floor, or what the
	// caller gave instead.
	Txid uint64

	// Forgotten reports that none is known.
	Forgotten bool
}

// Verdict is the answer to Certify.
type Verdict struct {
	Outcome Outcome

	// Txid is, for Pass, the txid assigned; for Duplicate and IDReused that of
	// the transaction that holds the id; otherwise 0.
	Txid uint64

	// Time is, for Duplicate and IDReused, that transaction's, in Unix
	// nanoseconds; otherwise 0.
	Time int64

	// Conflicts lists every violated lock, newest txid first and those of one
	// txid in the order of the request; one entry for each time that a lock was
	// named. A writer that has applied up to the first one's Txid does not meet
	// any of them again. The caller owns the slice.
	Conflicts []Conflict

	// SessionSeq is, for WrongSeq, the last number of the session that has
	// passed, 0 for none. HasSessionSeq is false if the Manager does not know
	// the session, and may have forgotten it.
	SessionSeq    uint64
	HasSessionSeq bool

	// DependsOn is the highest txid in flight that a refusal or Duplicate
	// depends on. The verdict holds if that transaction commits; if it is
	// rolled back, the request must be certified again. 0 means that it depends
	// on committed state alone.
	DependsOn uint64
}
