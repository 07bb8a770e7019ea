package lockmgr

import (
	"crypto/sha256"
	"hash/maphash"
)

// ID stands for a message id: the first 16 bytes of its SHA-256. The zero ID is
// no id.
type ID [16]byte

// HashID returns the ID of a message id, the zero ID if it is empty.
func HashID(id string) ID {
	if id == "" {
		return ID{}
	}
	sum := sha256.Sum256([]byte(id))
	return ID(sum[:16])
}

var fingerprintSeed = maphash.MakeSeed()

// Fingerprint returns a hash of the payload. Its seed is new in each process,
// so it must not be stored. Two payloads collide with a probability of 2^-64.
func Fingerprint(payload []byte) uint64 { return maphash.Bytes(fingerprintSeed, payload) }

// Recorder is what a log has of a lock.
type Recorder struct {
	// Txid is the newest transaction that recorded an overlapping lock, 0 for
	// none after the high-water mark.
	Txid uint64
	// Forgotten reports that the log does not say: the lock counts as recorded
	// at Txid.
	Forgotten bool
}

// Transaction is what certification needs to know of a transaction. The Manager
// uses it during the call and copies the names that it keeps.
type Transaction struct {
	// Locks in the order of the request. A name may stand more than once.
	Locks []Lock

	// HighWaterMark is the txid up to which the writer had applied the
	// partition. Without one, checked locks are certified as at mark 0: they
	// pass only if nothing that overlaps was ever recorded.
	HighWaterMark    uint64
	HasHighWaterMark bool

	// Older, if given, is for each of Locks what the caller has found in the log
	// up to txid Through: it decides on locks that the table does not know.
	Older   []Recorder
	Through uint64

	// ExpectedLast, if given, must be the partition's last txid.
	ExpectedLast    uint64
	HasExpectedLast bool

	// NotAfter, if given, is the last time, in Unix nanoseconds, with which the
	// transaction may commit.
	NotAfter    int64
	HasNotAfter bool

	// ID and Fingerprint recognise a repeat: the same ID with the same
	// Fingerprint is the same request.
	ID          ID
	Fingerprint uint64

	// Earlier is the newest use of ID that the caller has found in the log up to
	// txid EarlierThrough. It decides if the table does not know the id: see
	// [Manager.UnknownID].
	Earlier        Use
	EarlierThrough uint64

	// Session, if given, is the [HashID] of its session's name, and SessionSeq
	// its number there. Number 1 begins a session, and each other number passes
	// if the one before it has passed. What the session has recorded does not
	// conflict. A recorded transaction of a session must have been certified
	// with its mark: later ones rely on it.
	Session    ID
	SessionSeq uint64
}

// Use is a committed transaction that has a message id; the zero Use is none.
type Use struct {
	Txid        uint64
	Time        int64 // in Unix nanoseconds
	Fingerprint uint64
}
