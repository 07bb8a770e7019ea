package subjects

import "time"

// AdminRequest is the body of an operation under "admin.cluster" and
// "admin.node". It has the fields that the operation needs, and no others.
type AdminRequest struct {
	// Node is the node to operate on, or to move something from.
	Node string `json:"node,omitempty"`
	// To is the node to move or transfer something to.
	To string `json:"to,omitempty"`
	// Partition is the partition to operate on.
	Partition *int `json:"partition,omitempty"`
	// Standby adds the node without votes.
	Standby bool `json:"standby,omitempty"`
	// Key is the fingerprint of the key of the node to add, as in its
	// [NodeStatus].
	Key string `json:"key,omitempty"`
}

// AdminReply is the answer to an operation. Done describes what was decided.
// The nodes carry it out in the background; the status shows how far they are.
// The answer comes once the members that are heard have applied the decision;
// Warnings name those that could not within 2 seconds.
type AdminReply struct {
	Done string `json:"done,omitempty"`
	// Facts is a version of the facts that has the decision: the status of a
	// node with an older one is of the time before it. It is 0 where the
	// facts don't change.
	Facts uint64 `json:"facts,omitempty"`
	// Rebuilds is what [ReplicaStatus.Rebuilds] is at least once the replica has
	// been rebuilt. It is 0 for any other operation.
	Rebuilds uint64 `json:"rebuilds,omitempty"`
	// Warnings are texts for people: what may be meant otherwise, and which
	// nodes have not applied the decision yet.
	Warnings []string `json:"warnings,omitempty"`
	Error    *Error   `json:"error,omitempty"`
}

// BatchesRequest is the body of a request for batches as they are in the log.
// Zero fields take their defaults.
type BatchesRequest struct {
	// From is a txid of the first batch wanted. Default 1.
	From uint64 `json:"from,omitempty"`
	// MaxBytes is the most bytes of the stream to return, up to [MaxReadBytes];
	// the first batch is returned however large it is. Default
	// [DefaultReadBytes].
	MaxBytes int `json:"max_bytes,omitempty"`
	// Wait is that of a [ReadRequest].
	Wait string `json:"wait,omitempty"`
}

// TrimRequest is the body of a trim: exactly one of its fields is set.
type TrimRequest struct {
	// Before is the oldest txid that is still wanted.
	Before uint64 `json:"before,omitempty"`
	// Age keeps the transactions that are younger, such as "720h".
	Age string `json:"age,omitempty"`
	// Bytes keeps the newest transactions up to this many bytes.
	Bytes uint64 `json:"bytes,omitempty"`
}

// TrimReply is the answer to a trim.
type TrimReply struct {
	Partition int    `json:"partition"`
	FirstTxid uint64 `json:"first_txid"`
	// Because is the reason why the trim removes less than was asked for, ""
	// for none.
	Because string `json:"because,omitempty"`
	Error   *Error `json:"error,omitempty"`
}

// RetentionPolicy says which transactions of a partition may be trimmed. A
// transaction may go once every cursor has passed it and, if Age, Bytes or
// Count is set, once one of them says so.
type RetentionPolicy struct {
	// Age is how old a transaction is that may go, such as "720h".
	Age string `json:"age,omitempty"`
	// Bytes keeps at least the newest bytes of the log.
	Bytes uint64 `json:"bytes,omitempty"`
	// Count keeps at least the newest transactions.
	Count uint64 `json:"count,omitempty"`
	// Cursors hold what they have not passed; one that does not exist holds
	// everything.
	Cursors []string `json:"cursors,omitempty"`
	// Archive is the cursor that backups move. It holds like the others.
	Archive string `json:"archive,omitempty"`
	// ArchiveLag is how long a transaction may wait for the archive until an
	// advisory says that it is behind. Default 24 hours.
	ArchiveLag string `json:"archive_lag,omitempty"`
}

// RetentionRequest is the body of "admin.cluster.retention": it sets the policy
// of a partition, or of all that have none of their own, or removes it.
type RetentionRequest struct {
	// Partition is the partition, nil for all that have no policy of their own.
	Partition *int `json:"partition,omitempty"`
	// Policy is nil to remove the one that was set.
	Policy *RetentionPolicy `json:"policy,omitempty"`
}

// RetentionQuery is the body of "admin.retention": what a policy would trim
// now.
type RetentionQuery struct {
	// Policy is the one to try. Default: the one that is set.
	Policy *RetentionPolicy `json:"policy,omitempty"`
}

// RetentionReply describes how a partition is trimmed, and what would go now.
type RetentionReply struct {
	Partition int `json:"partition"`
	// Policy is the one that was tried, or the one that is set; nil for none.
	Policy *RetentionPolicy `json:"policy,omitempty"`
	// Own is true if the policy that is set is the partition's own, and not
	// that of all partitions.
	Own bool `json:"own,omitempty"`
	// FirstTxid is the oldest transaction kept, and Bytes the size of the log
	// from there on.
	FirstTxid     uint64 `json:"first_txid"`
	HighWaterMark uint64 `json:"high_water_mark"`
	Bytes         uint64 `json:"bytes"`
	// Goes is what would go now, nil for nothing.
	Goes *RetentionGoes `json:"goes,omitempty"`
	// Holds and Warnings are texts for people: what keeps transactions that
	// could go otherwise, and what may be meant otherwise.
	Holds    []string `json:"holds,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
	// Cursors are those of the policy.
	Cursors []RetentionCursor `json:"cursors,omitempty"`
	// ArchiveBehind is true if the archive is behind by more than its lag.
	ArchiveBehind bool   `json:"archive_behind,omitempty"`
	Error         *Error `json:"error,omitempty"`
}

// RetentionGoes are the oldest transactions of a partition up to LastTxid, of
// which LastTime is the time.
type RetentionGoes struct {
	LastTxid     uint64    `json:"last_txid"`
	LastTime     time.Time `json:"last_time"`
	Transactions uint64    `json:"transactions"`
	Bytes        uint64    `json:"bytes"`
}

// RetentionCursor is a cursor that a policy names.
type RetentionCursor struct {
	Name string `json:"name"`
	// Txid is the cursor's position, 0 if it does not exist.
	Txid uint64 `json:"txid"`
	// LagTransactions is how many transactions it has not passed, and
	// LagSeconds for how long the oldest of them has been there.
	LagTransactions uint64  `json:"lag_transactions"`
	LagSeconds      float64 `json:"lag_seconds"`
}

// RetentionInfo is how a partition is trimmed, in short.
type RetentionInfo struct {
	Policy RetentionPolicy `json:"policy"`
	// Own is true if the policy is the partition's own, and not that of all
	// partitions.
	Own bool `json:"own,omitempty"`
	// Waits are the cursors that keep transactions which could go otherwise, as
	// far as is known without reading the log. A policy of cursors alone waits
	// for those that do not exist, or have been behind for its ArchiveLag.
	Waits []RetentionCursor `json:"waits,omitempty"`
	// ArchiveBehind is true if the archive is behind by more than its lag.
	ArchiveBehind bool `json:"archive_behind,omitempty"`
}

// NamespaceRequest is the body of "admin.cluster.namespace": it makes a
// namespace, sets its limits, or removes it.
type NamespaceRequest struct {
	Name string `json:"name"`
	// Partitions are the namespace's, by the cluster's numbers: the first is its
	// partition 0. They may be left out if the namespace exists.
	Partitions []int `json:"partitions,omitempty"`
	// Limits replace those that were set.
	Limits NamespaceLimits `json:"limits,omitzero"`
	// Remove removes the namespace. Its partitions stay.
	Remove bool `json:"remove,omitempty"`
}

// NamespaceLimits bound what clients append to each partition of a namespace. 0
// is no limit.
type NamespaceLimits struct {
	// Transactions and Bytes are what a partition takes in a second.
	Transactions uint64 `json:"transactions,omitempty"`
	Bytes        uint64 `json:"bytes,omitempty"`
	// Kept is the size of a partition's log, in bytes, from which on it takes
	// nothing more.
	Kept uint64 `json:"kept,omitempty"`
}

// LimitInfo are the limits that hold for a partition.
type LimitInfo struct {
	NamespaceLimits
	// Size is the size of the partition's log, in bytes.
	Size uint64 `json:"size"`
	// Refusing is the text of the newest refusal because of a limit, "" if
	// there was none in the last seconds.
	Refusing string `json:"refusing,omitempty"`
}

// NamespaceStatus describes a namespace.
type NamespaceStatus struct {
	Name       string          `json:"name"`
	Partitions []int           `json:"partitions"`
	Limits     NamespaceLimits `json:"limits"`
}

// MaxRetentionCursors is the most cursors that a policy names.
const MaxRetentionCursors = 32

// ClusterStatus describes the cluster for operators, as one node sees it.
type ClusterStatus struct {
	// Cluster is the cluster's name, ID its id.
	Cluster string `json:"cluster"`
	ID      string `json:"id"`
	// AnsweredBy is the node whose view this is.
	AnsweredBy string `json:"answered_by"`
	// Time is when it answered, by its clock.
	Time time.Time `json:"time"`
	// Facts is the version of the facts, on which the nodes have agreed.
	Facts uint64 `json:"facts"`
	// MetaLeader is the node that leads the group of the facts, "" if none
	// does.
	MetaLeader string `json:"meta_leader"`
	// MetaReplicas are the replicas of the facts. Their high-water marks are
	// versions of the facts.
	MetaReplicas []ReplicaStatus `json:"meta_replicas"`
	// Replicas is the number of voters that a partition should have.
	Replicas   int               `json:"replicas"`
	Nodes      []NodeStatus      `json:"nodes"`
	Partitions []PartitionStatus `json:"partitions"`
	// Namespaces are the parts of the cluster that belong to a service each, in
	// the order of their names.
	Namespaces []NamespaceStatus `json:"namespaces,omitempty"`
	Error      *Error            `json:"error,omitempty"`
}

// NodeStatus describes a node. State is "member", "standby", "draining",
// "leaving", or "waiting" for one that asks to be added.
type NodeStatus struct {
	Name  string `json:"name"`
	State string `json:"state"`
	// Alive is true if the node that answered hears from this one.
	Alive bool `json:"alive"`
	Ready bool `json:"ready"`
	// Unready is the reason why the node is not ready.
	Unready string `json:"unready,omitempty"`
	// StorageFull is true if the node's disk has no space for transactions.
	StorageFull bool `json:"storage_full,omitempty"`
	// Damaged is what was found damaged on the node's disk and is not repaired.
	Damaged string `json:"damaged,omitempty"`
	// Version is the node's program version.
	Version string `json:"version,omitempty"`
	// Raft is the host:port at which the other nodes reach it.
	Raft string `json:"raft,omitempty"`
	// Replicas and Leads count the partitions that the node should have and
	// lead. Leading counts those that it leads now.
	Replicas int `json:"replicas"`
	Leads    int `json:"leads"`
	Leading  int `json:"leading"`
	// Key is the fingerprint of the key of a waiting node that has no cluster
	// secret.
	Key string `json:"key,omitempty"`
	// Since is when the node started.
	Since time.Time `json:"since,omitzero"`
	// Away is when a node that is not alive was last heard of.
	Away time.Time `json:"away_since,omitzero"`
}

// PartitionStatus describes a partition and its replicas.
type PartitionStatus struct {
	Partition int `json:"partition"`
	// Leader is the node that leads the partition, in Term; "" if none says
	// that it does.
	Leader string `json:"leader"`
	Term   uint64 `json:"term"`
	// LeaderlessSince is when the node that answered last heard of a leader, if
	// it hears of none.
	LeaderlessSince time.Time `json:"leaderless_since,omitzero"`
	// Placement lists the nodes that should have a replica; the first should
	// lead.
	Placement []string        `json:"placement"`
	Replicas  []ReplicaStatus `json:"replicas"`
	// StorageFull is the reason why appends are refused with [StorageFull], ""
	// if they are not.
	StorageFull string `json:"storage_full,omitempty"`
	// Limited is the text of the newest refusal because of a limit of the
	// partition's namespace, "" if there was none in the last seconds.
	Limited string `json:"limited,omitempty"`
}

// ReplicaStatus describes a replica, as its node last reported it. State is one
// of those of [ReplicaInfo].
type ReplicaStatus struct {
	Name  string `json:"name"`
	State string `json:"state"`
	// Voter is true if the replica counts for a majority.
	Voter         bool   `json:"voter"`
	HighWaterMark uint64 `json:"high_water_mark"`
	// CaughtUp is true if the replica votes and the leader counts on it: the
	// leader hears it, and it has the leader's log but for some last entries,
	// and room for more.
	CaughtUp bool `json:"caught_up,omitempty"`
	// FirstTxid is the oldest transaction that the replica keeps.
	FirstTxid uint64 `json:"first_txid"`
	// Fenced is the reason why the replica is fenced, "" if it is not.
	Fenced string `json:"fenced,omitempty"`
	// Rebuilds is how often the replica was rebuilt since its node started.
	Rebuilds uint64 `json:"rebuilds,omitempty"`
}
