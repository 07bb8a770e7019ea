package subjects

import "time"

// RestoreRequest is the body of a step by which a partition is restored from a
// backup: exactly one of its fields is set. The batches of the backup are
// loaded by messages with a [HeaderOffset], which have no such body.
type RestoreRequest struct {
	Begin   *RestoreBegin    `json:"begin,omitempty"`
	Cursors []RestoredCursor `json:"cursors,omitempty"`
	End     *RestoreEnd      `json:"end,omitempty"`
}

// RestoreBegin begins the restore of an empty partition.
type RestoreBegin struct {
	// Cluster is the id of the cluster that the backup was taken from.
	Cluster string `json:"cluster"`
	// Txid is that of the transaction before the first one in the backup, 0 for
	// none. Digest, in hexadecimal, and Time are the digest and the time there.
	Txid   uint64    `json:"txid"`
	Digest string    `json:"digest,omitempty"`
	Time   time.Time `json:"time,omitzero"`
	// Mirror makes the partition a mirror of one of Cluster: it is read while
	// its log grows, until the end makes it an ordinary partition. History is
	// that of the partition there.
	Mirror  bool          `json:"mirror,omitempty"`
	History []PastCluster `json:"history,omitempty"`
}

// RestoredCursor is a cursor as it is in the backup.
type RestoredCursor struct {
	Name string    `json:"name"`
	Txid uint64    `json:"txid"`
	Time time.Time `json:"time"`
}

// RestoreEnd ends the restore of a partition.
type RestoreEnd struct {
	// Txid and Digest are what the partition's high-water mark and digest must
	// be by now.
	Txid   uint64 `json:"txid"`
	Digest string `json:"digest"`
	// History is what the partition's [PartitionInfo.History] is from now on.
	History []PastCluster `json:"history"`
}

// PastCluster is a cluster in which transactions of a partition were committed
// before the partition was restored into another one.
type PastCluster struct {
	// Cluster is the cluster's id.
	Cluster string `json:"cluster"`
	// LastTxid is the last of its transactions that the partition has.
	LastTxid uint64 `json:"last_txid"`
}

// RestoreReply is the answer to a step of a restore: how far it is.
type RestoreReply struct {
	Partition int `json:"partition"`
	// Restoring is true from the first step until the last, of a mirror too.
	Restoring     bool   `json:"restoring"`
	HighWaterMark uint64 `json:"high_water_mark"`
	Digest        string `json:"digest"`
	// Joined is how many bytes the leader has of what follows HighWaterMark.
	Joined int    `json:"joined"`
	Error  *Error `json:"error,omitempty"`
}
