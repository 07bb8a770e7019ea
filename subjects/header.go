package subjects

import (
	"slices"
	"strings"
)

// The headers that Cantus gives a meaning to. Their spelling is exact: one
// that differs in letter case only is refused, so that a typo never becomes
// an unchecked commit.
const (
	// HeaderHighWaterMark is the txid up to which the writer had applied the
	// partition when it computed the transaction.
	HeaderHighWaterMark = "Cantus-High-Water-Mark"
	// HeaderWriteLock lists locks that are checked, and recorded on commit. The
	// names in its value are separated by commas, as [NextLock] takes them.
	HeaderWriteLock = "Cantus-Write-Lock"
	// HeaderReadLock lists locks that are checked and not recorded.
	HeaderReadLock = "Cantus-Read-Lock"
	// HeaderAppendLock lists locks that are recorded on commit and not checked.
	HeaderAppendLock = "Cantus-Append-Lock"
	// HeaderKind names the sort of transaction.
	HeaderKind = "Cantus-Kind"
	// HeaderMsgID is the writer's idempotency key.
	HeaderMsgID = "Nats-Msg-Id"
	// HeaderExpectedLast lets a transaction commit only at exactly this
	// high-water mark.
	HeaderExpectedLast = "Nats-Expected-Last-Sequence"

	// HeaderTxid is a transaction's id, on the feed and in reads.
	HeaderTxid = "Cantus-Txid"
	// HeaderPartition is a transaction's partition, on the feed and in reads.
	HeaderPartition = "Cantus-Partition"
	// HeaderTime is when the leader certified a transaction (RFC 3339, ns).
	HeaderTime = "Cantus-Time"
	// HeaderStoredMsgID gives back the writer's idempotency key.
	HeaderStoredMsgID = "Cantus-Msg-Id"
	// HeaderNext is the `from` of the next read, at the end of a read.
	HeaderNext = "Cantus-Next"

	// HeaderPrevious is, in an answer to a read, the txid of the transaction that
	// was sent before it in the same read, 0 for the first.
	HeaderPrevious = "Cantus-Previous"
	// HeaderLast is, at the end of a read, the txid of the last transaction sent,
	// 0 for none.
	HeaderLast = "Cantus-Last"
	// HeaderCount is, at the end of a read, how many transactions were sent.
	HeaderCount = "Cantus-Count"
	// HeaderHashes lists, in a message of the packed feed, the hashes of the
	// messages that its signature covers.
	HeaderHashes = "Cantus-Hashes"
	// HeaderSignature is the leader's signature over HeaderHashes.
	HeaderSignature = "Cantus-Signature"

	// HeaderErrorCode is the numeric code of a refusal.
	HeaderErrorCode = "Nats-Service-Error-Code"
	// HeaderError is the reason and text of a refusal.
	HeaderError = "Nats-Service-Error"
)

// DefaultKind is the kind of a transaction that names none.
const DefaultKind = "tx"

// StatusEnd is the inline NATS status of the message that ends a read.
const StatusEnd = "204"

// Limits of the wire. They are part of the protocol and not configurable,
// except that a NATS server with a smaller max_payload lowers MaxTransaction.
const (
	// MaxTransaction is the most bytes a transaction has, payload and header
	// block together.
	MaxTransaction = 1_000_000
	// MaxLocks is the most locks a transaction names.
	MaxLocks = 64
	// MaxLockTokens is the most tokens a lock name has, a final ">" included.
	MaxLockTokens = 16
	// MaxToken is the most bytes a token of a lock name, a kind or a cursor's
	// name has.
	MaxToken = 64
	// MaxHeaders is the most header lines a transaction has, or a batch message.
	MaxHeaders = 256
	// MaxHeaderName is the most bytes the name of a header has.
	MaxHeaderName = 128
	// MaxBody is the most bytes a request's body has, of a request that takes
	// JSON and is no read.
	MaxBody = 4_096
	// MaxMsgID is the most bytes a message id has.
	MaxMsgID = 128
	// MaxBatch is the most transactions a batch message carries.
	MaxBatch = 5_000
	// MaxKinds is the most kinds one read may ask for.
	MaxKinds = 64
	// MaxReadBody is the most bytes a read's body has.
	MaxReadBody = 65_536
	// MaxReadCount is the most transactions one read may ask for.
	MaxReadCount = 65_536
	// MaxReadBytes is the most bytes one read may ask for.
	MaxReadBytes = 8 << 20
	// MaxReadWaitSeconds is the longest a read may wait, in seconds.
	MaxReadWaitSeconds = 60
	// MaxCursors is the most cursors a partition has.
	MaxCursors = 10_000
)

// What a read gives that does not say.
const (
	// DefaultReadCount is how many transactions it gives at most.
	DefaultReadCount = 256
	// DefaultReadBytes is how many bytes they have together at most.
	DefaultReadBytes = 1_000_000
)

// requestHeaders are the headers that an append may carry with a meaning.
var requestHeaders = []string{
	HeaderHighWaterMark, HeaderWriteLock, HeaderReadLock, HeaderAppendLock,
	HeaderKind, HeaderMsgID, HeaderExpectedLast,
}

// IsRequestHeader reports whether key is one of the headers that an append may
// carry with a meaning.
func IsRequestHeader(key string) bool { return slices.Contains(requestHeaders, key) }

// Treatment says what becomes of a header that has no meaning of its own.
type Treatment uint8

const (
	// Stored is the application's own: kept and given back.
	Stored Treatment = iota
	// Ignored is NATS's own: neither looked at nor kept.
	Ignored
)

// CheckOtherHeader decides on a header of an append that is not one of those
// with a meaning. A header that could be a slip is refused by name: an unknown
// one in "Cantus-" or "Nats-Expected-", one that differs from a known one in
// letter case, and those that NATS reads a status from.
func CheckOtherHeader(key string) (Treatment, error) {
	for _, known := range requestHeaders {
		if strings.EqualFold(key, known) {
			return 0, badf("header %q: did you mean %q? Letter case counts", clip(key), known)
		}
	}
	switch {
	case hasPrefixFold(key, "Cantus-"):
		return 0, badf("header %q is not known: an append may carry %s", clip(key), strings.Join(requestHeaders, ", "))
	case hasPrefixFold(key, "Nats-Expected-"):
		return 0, badf("header %q is not supported: of its kind only %s is", clip(key), HeaderExpectedLast)
	case strings.EqualFold(key, "Status"), strings.EqualFold(key, "Description"):
		return 0, badf("header %q is NATS's own: readers would take the transaction for a status", clip(key))
	case hasPrefixFold(key, "Nats-"):
		return Ignored, nil
	}
	return Stored, nil
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}
