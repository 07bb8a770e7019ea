package subjects

import "time"

// AdminRequest is the body of an operation under "admin.cluster" and
// "admin.node": the fields that the operation needs, no others.
type AdminRequest struct {
	// Node is the one that is operated on, or moved from.
	Node string `json:"node,omitempty"`
	// To is the node that something is moved or transferred to.
	To        string `json:"to,omitempty"`
	Partition *int   `json:"partition,omitempty"`
	// Standby adds a node without votes.
	Standby bool `json:"standby,omitempty"`
	// Key is the fingerprint of the key that a node which is added shows, as its
	// status has it.
	Key string `json:"key,omitempty"`
}

// AdminReply is the answer to an operation. Done says in words what was
// decided; it comes about by and by, as the status shows.
type AdminReply struct {
	Done  string `json:"done,omitempty"`
	Error *Error `json:"error,omitempty"`
}

// TrimRequest is the body of a trim: exactly one of its fields is set.
type TrimRequest struct {
	// Before is the oldest txid that is still wanted.
	Before uint64 `json:"before,omitempty"`
	// Age keeps the transactions of so long, such as "720h".
	Age string `json:"age,omitempty"`
	// Bytes keeps the newest so many bytes.
	Bytes uint64 `json:"bytes,omitempty"`
}

// TrimReply is the answer to a trim.
type TrimReply struct {
	Partition int    `json:"partition"`
	FirstTxid uint64 `json:"first_txid"`
	// Because says what keeps transactions that were to go, "" if nothing does.
	Because string `json:"because,omitempty"`
	Error   *Error `json:"error,omitempty"`
}

// ClusterStatus describes the cluster to operators, as one node sees it.
type ClusterStatus struct {
	Cluster    string `json:"cluster"`
	ID         string `json:"id"`
	AnsweredBy string `json:"answered_by"`
	// Facts is the version of what the nodes have agreed on.
	Facts      uint64            `json:"facts"`
	MetaLeader string            `json:"meta_leader"`
	Replicas   int               `json:"replicas"`
	Nodes      []NodeStatus      `json:"nodes"`
	Partitions []PartitionStatus `json:"partitions"`
	Error      *Error            `json:"error,omitempty"`
}

// NodeStatus describes a node. State is "member", "standby", "draining",
// "leaving", or "waiting" for one that asks to be added.
type NodeStatus struct {
	Name    string `json:"name"`
	State   string `json:"state"`
	Alive   bool   `json:"alive"`
	Ready   bool   `json:"ready"`
	Unready string `json:"unready,omitempty"`
	// StorageFull reports whether the node's disk has no room for transactions.
	StorageFull bool   `json:"storage_full,omitempty"`
	Version     string `json:"version,omitempty"`
	Raft        string `json:"raft,omitempty"`
	// Replicas and Leads count the partitions that the node is to have and to
	// lead; Leading those that it leads now.
	Replicas int `json:"replicas"`
	Leads    int `json:"leads"`
	Leading  int `json:"leading"`
	// Key is the fingerprint of the key that a waiting node shows, if it has no
	// cluster secret.
	Key   string    `json:"key,omitempty"`
	Since time.Time `json:"since,omitzero"`
	// Away is when a node that is not alive was last heard.
	Away time.Time `json:"away_since,omitzero"`
}

// PartitionStatus describes where a partition is.
type PartitionStatus struct {
	Partition int    `json:"partition"`
	Leader    string `json:"leader"`
	Term      uint64 `json:"term"`
	// Placement is where it is to be; the first is to lead.
	Placement []string        `json:"placement"`
	Replicas  []ReplicaStatus `json:"replicas"`
	// StorageFull is why appends are refused as [StorageFull], "" if they are not.
	StorageFull string `json:"storage_full,omitempty"`
}

// ReplicaStatus describes a replica as its node last said.
type ReplicaStatus struct {
	Name          string `json:"name"`
	State         string `json:"state"`
	Voter         bool   `json:"voter"`
	HighWaterMark uint64 `json:"high_water_mark"`
	FirstTxid     uint64 `json:"first_txid"`
	Fenced        string `json:"fenced,omitempty"`
}
