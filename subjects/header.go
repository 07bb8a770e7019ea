package subjects

import (
	"slices"
	"strings"
)

// The headers that have a meaning for Cantus. Their letter case matters: a
// header that differs only in case is refused, so that a typo never becomes an
// unchecked commit.
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
	// HeaderUnless is a condition: the transaction commits unless one after the
	// high-water mark matches. The value is a [QueryItem] in JSON, or an array
	// of several, one of which has to match.
	HeaderUnless = "Cantus-Unless"
	// HeaderKind is the transaction's kind.
	HeaderKind = "Cantus-Kind"
	// HeaderMsgID is the writer's idempotency key.
	HeaderMsgID = "Nats-Msg-Id"
	// HeaderExpectedLast lets a transaction commit only at exactly this
	// high-water mark.
	HeaderExpectedLast = "Nats-Expected-Last-Sequence"
	// HeaderSession names a session: transactions of one writer that commit in
	// the order of their numbers, without gaps, and whose locks don't conflict
	// with each other.
	HeaderSession = "Cantus-Session"
	// HeaderSessionSeq is a transaction's number in its session, from 1 on.
	HeaderSessionSeq = "Cantus-Session-Seq"
	// HeaderCursor, in a session, names a cursor of the session and the txid to
	// which it moves if the transaction commits; see [ParseMove] for its form.
	HeaderCursor = "Cantus-Cursor"
	// HeaderNotAfter is the last time with which a transaction may commit; see
	// [ParseTime] for its form.
	HeaderNotAfter = "Cantus-Not-After"

	// HeaderAtomic makes the transactions of a batch message commit together or
	// not at all; its value is "true". On the feed and in reads it is the first
	// and the last txid of the batch that a transaction is part of, as 813-815.
	HeaderAtomic = "Cantus-Atomic"

	// HeaderTxid is a transaction's id, on the feed and in reads.
	HeaderTxid = "Cantus-Txid"
	// HeaderPartition is a transaction's partition, on the feed and in reads.
	HeaderPartition = "Cantus-Partition"
	// HeaderTime is when the leader certified a transaction (RFC 3339, to the
	// nanosecond).
	HeaderTime = "Cantus-Time"
	// HeaderStoredMsgID is the writer's idempotency key, on the feed and in
	// reads.
	HeaderStoredMsgID = "Cantus-Msg-Id"
	// HeaderNext is, at the end of a read, the `from` of the next read.
	HeaderNext = "Cantus-Next"

	// HeaderPrevious is, in an answer to a read, the txid of the transaction
	// that was sent before this one, 0 for the first.
	HeaderPrevious = "Cantus-Previous"
	// HeaderLast is, at the end of a read, the txid of the last transaction
	// sent, 0 for none.
	HeaderLast = "Cantus-Last"
	// HeaderCount is, at the end of a read, how many transactions were sent.
	HeaderCount = "Cantus-Count"
	// HeaderHashes lists, in a message of the packed feed, the hashes of the
	// messages that its signature covers.
	HeaderHashes = "Cantus-Hashes"
	// HeaderSignature is the leader's signature over HeaderHashes.
	HeaderSignature = "Cantus-Signature"

	// HeaderOffset is, on a piece of a log that is restored, how many bytes
	// after the transaction HeaderPrevious come before it.
	HeaderOffset = "Cantus-Offset"
	// HeaderCluster is, at the end of a read, the id of the cluster that
	// answers.
	HeaderCluster = "Cantus-Cluster"

	// HeaderErrorCode is the numeric code of a refusal.
	HeaderErrorCode = "Nats-Service-Error-Code"
	// HeaderError is the reason and text of a refusal.
	HeaderError = "Nats-Service-Error"
)

// DefaultKind is the kind of a transaction that names none.
const DefaultKind = "tx"

// StatusEnd is the inline NATS status of the message that ends a read.
const StatusEnd = "204"

// Limits of the protocol. They are not configurable, except that a NATS server
// with a smaller max_payload lowers MaxTransaction.
const (
	// MaxTransaction is the most bytes of a transaction, payload and header
	// block together.
	MaxTransaction = 1_000_000
	// MaxLocks is the most locks of a transaction.
	MaxLocks = 64
	// MaxLockTokens is the most tokens of a lock name, a final ">" included.
	MaxLockTokens = 16
	// MaxToken is the most bytes of a token of a lock name, of a kind, and of
	// the names of cursors and sessions.
	MaxToken = 64
	// MaxHeaders is the most header lines of a transaction, or of a batch
	// message.
	MaxHeaders = 256
	// MaxHeaderName is the most bytes of a header's name.
	MaxHeaderName = 128
	// MaxBody is the most bytes of a JSON request body, except that of a read.
	MaxBody = 4_096
	// MaxMsgID is the most bytes of a message id.
	MaxMsgID = 128
	// MaxBatch is the most transactions in a batch message.
	MaxBatch = 5_000
	// MaxKinds is the most kinds that one read, or one item of a query, may ask
	// for.
	MaxKinds = 64
	// MaxQueryItems is the most items of a query, and MaxQueryLocks the most
	// locks of one item.
	MaxQueryItems = 16
	MaxQueryLocks = 16
	// MaxUnless is the most items of a transaction's condition.
	MaxUnless = 16
	// MaxReadBody is the most bytes of a read's body.
	MaxReadBody = 65_536
	// MaxRestoreBody is the most bytes of the JSON body of a restore's step.
	MaxRestoreBody = 65_536
	// MaxReadCount is the most transactions one read may ask for.
	MaxReadCount = 65_536
	// MaxReadBytes is the most bytes one read may ask for.
	MaxReadBytes = 8 << 20
	// MaxReadWaitSeconds is the longest a read may wait, in seconds.
	MaxReadWaitSeconds = 60
	// MaxCursors is the most cursors of a partition.
	MaxCursors = 10_000
	// MaxCursorList is the most cursors in an answer that lists them.
	MaxCursorList = 1_000
)

// Defaults of a read.
const (
	// DefaultReadCount is the most transactions that it returns.
	DefaultReadCount = 256
	// DefaultReadBytes is the most bytes that they have together.
	DefaultReadBytes = 1_000_000
)

// requestHeaders are the headers with a meaning that an append may have.
var requestHeaders = []string{
	HeaderHighWaterMark, HeaderWriteLock, HeaderReadLock, HeaderAppendLock,
	HeaderUnless, HeaderKind, HeaderMsgID, HeaderSession, HeaderSessionSeq,
	HeaderCursor, HeaderExpectedLast, HeaderNotAfter,
}

// IsRequestHeader reports whether key is one of the headers with a meaning that
// an append may have.
func IsRequestHeader(key string) bool { return slices.Contains(requestHeaders, key) }

// Treatment says what a node does with a header that has no meaning for Cantus.
type Treatment uint8

const (
	// Stored headers are the application's: they are kept and returned by
	// reads.
	Stored Treatment = iota
	// Ignored headers are those of NATS: they are not kept.
	Ignored
)

// CheckOtherHeader returns the treatment of a header of an append that has no
// meaning for Cantus. It returns an error for a header that may be a mistake:
// an unknown one that begins with "Cantus-" or "Nats-Expected-", one that
// differs from a known one in letter case, and those from which NATS reads a
// status.
func CheckOtherHeader(key string) (Treatment, error) {
	for _, known := range requestHeaders {
		if strings.EqualFold(key, known) {
			return 0, badf("header %q: did you mean %q? Letter case counts", clip(key), known)
		}
	}
	switch {
	case strings.EqualFold(key, HeaderAtomic):
		return 0, badf("header %q belongs on a batch message, as %s: true", clip(key), HeaderAtomic)
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
