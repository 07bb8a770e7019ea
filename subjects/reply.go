package subjects

import "time"

// Reply is the answer to an append. Exactly one of Txid and Error is set.
type Reply struct {
	Partition int       `json:"partition"`
	Txid      uint64    `json:"txid,omitempty"`
	Time      time.Time `json:"time,omitzero"`
	// Duplicate is true if the message id was used before: Txid and Time are
	// then those of the first use.
	Duplicate bool   `json:"duplicate,omitempty"`
	Error     *Error `json:"error,omitempty"`
	// HighWaterMark is, in a refusal, the partition's high-water mark at that
	// moment.
	HighWaterMark *uint64 `json:"high_water_mark,omitempty"`
}

// BatchReply is the answer to a batch message. Results has the outcome of each
// transaction; consecutive successes are merged into runs. If the message as a
// whole was refused, Error is set and Results is empty.
type BatchReply struct {
	Partition     int        `json:"partition"`
	Results       []BatchRun `json:"results,omitempty"`
	Error         *Error     `json:"error,omitempty"`
	HighWaterMark *uint64    `json:"high_water_mark,omitempty"`
}

// BatchRun is the outcome of Count transactions of a batch message, from
// position Index on, counted from 0. The i-th of a successful run has the txid
// Txid+i and the time Time + i nanoseconds. For duplicates and refusals Count
// is 1.
type BatchRun struct {
	Index     int       `json:"index"`
	Count     int       `json:"count"`
	Txid      uint64    `json:"txid,omitempty"`
	Time      time.Time `json:"time,omitzero"`
	Duplicate bool      `json:"duplicate,omitempty"`
	Error     *Error    `json:"error,omitempty"`
}

// ReadRequest is the body of a read. Zero fields take their defaults.
type ReadRequest struct {
	// From is the first txid wanted. Default 1.
	From uint64 `json:"from,omitempty"`
	// FromTime leaves out the transactions before a time; see [ParseTime] for
	// its range. Default: none.
	FromTime time.Time `json:"from_time,omitzero"`
	// Max is the most transactions to return, up to [MaxReadCount]. Default
	// [DefaultReadCount].
	Max int `json:"max,omitempty"`
	// MaxBytes is the most bytes of payloads and application headers to return,
	// up to [MaxReadBytes]; the first transaction is returned however large it
	// is. Default [DefaultReadBytes].
	MaxBytes int `json:"max_bytes,omitempty"`
	// Wait is how long to wait at the log's end for the first transaction, such
	// as "1.5s" (see [ParseDuration]), at most [MaxReadWaitSeconds]. Default 0.
	Wait string `json:"wait,omitempty"`
	// Kinds selects the transactions of these kinds. Default: all.
	Kinds []string `json:"kinds,omitempty"`
	// Lock selects the transactions that recorded an overlapping lock, as write
	// or append lock. Default: all.
	Lock string `json:"lock,omitempty"`
	// Query selects the transactions to which one of the items applies, up to
	// [MaxQueryItems]. Default: all.
	Query []QueryItem `json:"query,omitempty"`
	// NewestFirst begins with the newest transaction: From is then the highest
	// txid wanted, by default the high-water mark.
	NewestFirst bool `json:"newest_first,omitempty"`
	// HeadersOnly leaves out the payloads.
	HeadersOnly bool `json:"headers_only,omitempty"`
	// Packed asks for many transactions in a message: see [NextPacked].
	Packed bool `json:"packed,omitempty"`
	// Cluster is the id of the cluster from which the reader has the
	// transaction before From. The read is refused if the partition's log is
	// another one there.
	Cluster string `json:"cluster,omitempty"`
}

// GetRequest is the body of a get: one of Txid, Lock, MsgID
// and Session is set.
type GetRequest struct {
	// Txid asks for the transaction with this txid.
	Txid uint64 `json:"txid,omitempty"`
	// Lock asks for the newest transaction that recorded an overlapping lock.
	Lock string `json:"lock,omitempty"`
	// MsgID asks for the newest transaction with a message id.
	MsgID string `json:"msg_id,omitempty"`
	// Session and SessionSeq ask for a transaction by its number in a session,
	// for the first one if that is an atomic batch.
	Session    string `json:"session,omitempty"`
	SessionSeq uint64 `json:"session_seq,omitempty"`
}

// QueryItem selects the transactions that are of one of the kinds, unless it
// has none, and that recorded a lock overlapping each of the locks, as write or
// append lock. It has at least one kind or lock.
type QueryItem struct {
	// Kinds has up to [MaxKinds] kinds.
	Kinds []string `json:"kinds,omitempty"`
	// Locks has up to [MaxQueryLocks] lock names.
	Locks []string `json:"locks,omitempty"`
}

// CursorRequest is the body of a cursor write. A request with an empty body
// reads the cursor.
type CursorRequest struct {
	// Txid is the position to set: the last transaction that was applied. 0
	// removes the cursor, unless Owner is a session's: see [SessionOwner].
	Txid *uint64 `json:"txid"`
	// Expected is the position that the cursor must have now, 0 for one that
	// was never set. Without it the cursor is set whatever its position is.
	Expected *uint64 `json:"expected,omitempty"`
	// Owner sets the cursor only if it does not exist or has this owner, and
	// makes it this owner's. Without it the cursor is set whoever owns it, and
	// has no owner then.
	Owner *string `json:"owner,omitempty"`
	// ExpectedOwner is the owner that the cursor must have now, "" if it must
	// have none or not exist. With it Owner is no condition, and only says whose
	// the cursor is from then on.
	ExpectedOwner *string `json:"expected_owner,omitempty"`
}

// CursorReply is the answer of a cursor.
type CursorReply struct {
	Partition int    `json:"partition"`
	Name      string `json:"name"`
	Txid      uint64 `json:"txid"`
	// Time is when the position was set, zero if it never was.
	Time time.Time `json:"time,omitzero"`
	// Owner is whose the cursor is, "" for nobody's.
	Owner         string `json:"owner,omitempty"`
	HighWaterMark uint64 `json:"high_water_mark"`
	Error         *Error `json:"error,omitempty"`
}

// CursorsRequest is the body of a request for the cursors of a partition. Zero
// fields take their defaults.
type CursorsRequest struct {
	// After is the name before the first cursor wanted. Default: all are.
	After string `json:"after,omitempty"`
	// Max is the most cursors to return, up to [MaxCursorList], which is also
	// the default.
	Max int `json:"max,omitempty"`
}

// CursorsReply lists cursors of a partition, in the order of their names.
type CursorsReply struct {
	Partition int              `json:"partition"`
	Cursors   []CursorPosition `json:"cursors"`
	// Next is the After of a request for the cursors that follow, "" if there
	// are none.
	Next          string `json:"next,omitempty"`
	HighWaterMark uint64 `json:"high_water_mark"`
	Error         *Error `json:"error,omitempty"`
}

// CursorPosition is a cursor in a list.
type CursorPosition struct {
	Name string    `json:"name"`
	Txid uint64    `json:"txid"`
	Time time.Time `json:"time"`
	// Owner is whose the cursor is, "" for nobody's.
	Owner string `json:"owner,omitempty"`
}

// InfoRequest is the body of a request for a partition's description. It may be
// empty.
type InfoRequest struct {
	// At asks for the last transaction at or before a time; see [ParseTime] for
	// its range.
	At time.Time `json:"at,omitzero"`
}

// ClusterInfo describes the cluster.
type ClusterInfo struct {
	Cluster string `json:"cluster"`
	// ID is the cluster's id. A cluster that was restored from a backup of this
	// one has another.
	ID         string `json:"id"`
	Version    string `json:"version"`
	Partitions int    `json:"partitions"`
	// Namespace is the namespace that is described, "" for the cluster: by its
	// names, it is used as if it were one.
	Namespace string     `json:"namespace,omitempty"`
	Nodes     []NodeInfo `json:"nodes"`
	// FeedKey is the public key that verifies the packed feed: Ed25519, in
	// base64. [ParseFeedKey] decodes it.
	FeedKey string `json:"feed_key"`
}

// NodeInfo describes a node.
type NodeInfo struct {
	Name  string `json:"name"`
	Ready bool   `json:"ready"`
}

// PartitionInfo describes a partition, as its leader sees it.
type PartitionInfo struct {
	Partition int `json:"partition"`
	// FirstTxid is the oldest transaction that is kept; 1 if none was trimmed.
	FirstTxid     uint64 `json:"first_txid"`
	HighWaterMark uint64 `json:"high_water_mark"`
	// AsOf is, if the request named a time, the txid of the last transaction at
	// or before it, 0 for none.
	AsOf *uint64 `json:"as_of,omitempty"`
	// Digest is the partition's digest at HighWaterMark, in hexadecimal.
	Digest string `json:"digest"`
	// BaseDigest is the partition's digest before FirstTxid, in hexadecimal:
	// zeros if nothing was trimmed.
	BaseDigest string        `json:"base_digest"`
	Leader     string        `json:"leader"`
	Term       uint64        `json:"term"`
	Replicas   []ReplicaInfo `json:"replicas"`
	Locks      LockInfo      `json:"locks"`
	// StorageFull is the reason why appends are refused with [StorageFull], ""
	// if they are not.
	StorageFull string `json:"storage_full,omitempty"`
	// ArchivedFrom is the oldest transaction from which on the archive of the
	// leader's node was found to have all up to FirstTxid, 0 for none.
	ArchivedFrom uint64 `json:"archived_from,omitempty"`
	// NotArchived is why reads of older transactions are not answered from the
	// archive of the leader's node, as text for people; "" if they are, if
	// nothing was trimmed, and without an archive.
	NotArchived string `json:"not_archived,omitempty"`
	// Retention is how the partition is trimmed, nil if it has no policy.
	Retention *RetentionInfo `json:"retention,omitempty"`
	// Namespace is the namespace that the partition belongs to, "" for none, and
	// Number its number there. Only answers under the cluster's own names have
	// these.
	Namespace string `json:"namespace,omitempty"`
	Number    int    `json:"number,omitempty"`
	// Limits are those of the namespace, nil for none.
	Limits *LimitInfo `json:"limits,omitempty"`
	// Restoring is true while the partition is being restored from a backup:
	// nothing is appended or read until that has ended.
	Restoring bool `json:"restoring,omitempty"`
	// MirrorOf is the id of the cluster whose partition this one mirrors, ""
	// for none: nothing is appended but what comes from there.
	MirrorOf string `json:"mirror_of,omitempty"`
	// Promoted is true if the partition was a mirror; the last element of
	// History then says of which cluster, and up to which transaction.
	Promoted bool `json:"promoted,omitempty"`
	// History lists the clusters in which the partition's transactions were
	// committed before it was restored into this one, the oldest first.
	History []PastCluster `json:"history,omitempty"`
	Error   *Error        `json:"error,omitempty"`
}

// ReplicaInfo describes one replica of a partition. State is "leader",
// "follower", "candidate", "shutdown", or "away" if nothing is heard of it.
type ReplicaInfo struct {
	Name  string `json:"name"`
	State string `json:"state"`
	// Voter is true if the replica counts for a majority.
	Voter         bool   `json:"voter"`
	HighWaterMark uint64 `json:"high_water_mark"`
}

// LockInfo describes a partition's lock table.
type LockInfo struct {
	// Tracked is the number of lock names remembered, of at most Capacity.
	Tracked  int `json:"tracked"`
	Capacity int `json:"capacity"`
	// Floor is the highest txid forgotten.
	Floor uint64 `json:"floor"`
}
