package broker

import (
	"cmp"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

// protocolVersion is the version of the protocol between nodes: announcements,
// facts, and requests. Nodes with different versions don't form a cluster: see
// docs/adr/0008.
const protocolVersion = 3

// announcement is a node's status, which it announces to the others every
// announceInterval.
type announcement struct {
	Name     string    `json:"name"`
	NodeID   string    `json:"node_id"`
	Instance string    `json:"instance"` // new at each start
	Started  time.Time `json:"started"`
	Clock    time.Time `json:"clock,omitzero"` // when it was made
	Version  string    `json:"version"`
	Protocol int       `json:"protocol"`
	Records  int       `json:"records,omitempty"` // see recordsVersion

	Cluster    string            `json:"cluster"`
	ClusterID  string            `json:"cluster_id,omitempty"` // empty until it is founded or has joined
	Partitions int               `json:"partitions,omitempty"`
	Replicas   int               `json:"replicas,omitempty"`
	Bootstrap  []string          `json:"bootstrap,omitempty"` // while it waits for the other founders
	Founders   map[string]string `json:"founders,omitempty"`
	Founded    time.Time         `json:"founded,omitzero"`

	Raft    string   `json:"raft"`
	Standby bool     `json:"standby,omitempty"`
	Ready   bool     `json:"ready,omitempty"`
	Unready string   `json:"unready,omitempty"` // why not
	Leaving bool     `json:"leaving,omitempty"` // it is being stopped
	Full    bool     `json:"full,omitempty"`    // its disk has no room for transactions
	Damaged string   `json:"damaged,omitempty"` // on its disk, and not repaired
	Facts   uint64   `json:"facts,omitempty"`   // the version that it has applied
	Members []string `json:"members,omitempty"`

	// Heard lists the instances that this node hears. It proves to each of them
	// that this announcement is not a replay.
	Heard []seen `json:"heard,omitempty"`
	// Key is the public key of a node that has no cluster secret yet. Keys
	// holds the secret, wrapped for each founder that showed a key.
	Key  []byte            `json:"key,omitempty"`
	Keys map[string][]byte `json:"keys,omitempty"`

	Meta   *groupReport  `json:"meta,omitempty"`
	Groups []groupReport `json:"groups,omitempty"`
}

// group returns the report of the node's replica of a partition. A node lists
// its reports in the order of the partitions; one that is out of order may not
// be found, and then counts as missing.
func (a *announcement) group(partition int) (groupReport, bool) {
	i, ok := slices.BinarySearchFunc(a.Groups, partition, func(r groupReport, p int) int { return cmp.Compare(r.Partition, p) })
	if !ok {
		return groupReport{}, false
	}
	return a.Groups[i], true
}

// groupReport is a node's report of one of its replicas.
type groupReport struct {
	Partition int             `json:"partition"`
	State     string          `json:"state"`
	Serves    bool            `json:"serves,omitempty"` // it leads and accepts requests
	Term      uint64          `json:"term"`
	Applied   uint64          `json:"applied"` // index
	Commit    uint64          `json:"commit"`  // index, as far as it knows
	Txid      uint64          `json:"txid"`
	First     uint64          `json:"first"`
	Digests   []chainPoint    `json:"digests,omitempty"`
	Fenced    string          `json:"fenced,omitempty"`
	Halted    bool            `json:"halted,omitempty"`  // see fencing.halt
	Full      string          `json:"full,omitempty"`    // of a leader: why it takes no transactions
	Limited   string          `json:"limited,omitempty"` // of a leader: which limit refuses appends
	Voters    map[string]bool `json:"voters,omitempty"`  // of a leader: the group's members, and whether they vote
	// CaughtUp, of a leader, lists the voters that the group can go on with,
	// itself included: see votersCaughtUp.
	CaughtUp []string `json:"caught_up,omitempty"`
	// Forgot, of a leader, lists members that have lost entries that they had
	// acknowledged to it, and what they have lost.
	Forgot map[string]string `json:"forgot,omitempty"`
	// Rebuilds is how often the replica was rebuilt since the node started.
	Rebuilds uint64 `json:"rebuilds,omitempty"`

	behind uint64 // how many more entries this node's replica had applied when the report came
}

// leads reports whether the replica is its group's leader.
func (r groupReport) leads() bool { return r.State == "leader" }

// decodeAnnouncement decodes the announcement in an envelope. It must name the
// same node as the envelope.
func decodeAnnouncement(e envelope) (a announcement, err error) {
	if err := json.Unmarshal(e.body, &a); err != nil {
		return a, err
	}
	if a.Name != e.name || a.NodeID != e.id || a.Instance != e.instance || a.ClusterID != e.cluster || a.Protocol != e.protocol {
		return a, errors.New("the announcement and its envelope name different nodes")
	}
	return a, subjects.CheckKind(a.Name)
}
