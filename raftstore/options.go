package raftstore

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/cantuslog/cantus/wal"
)

// Options configures a group. Node, Log and FSM are required; of the others
// zero is the default.
type Options struct {
	// Node is this replica's name among the group's.
	Node string
	// Voters bootstraps the group if its log is empty. Every initial replica is
	// given the same. Without it, on a network, a replica with an empty log
	// waits for a leader that has added it. A replica that has lost its log
	// must not bootstrap the group again: it has voted before.
	Voters []string
	Log    *wal.Log
	FSM    FSM

	// Network connects to the other replicas; nil if there are none. ID is the
	// group's number on it.
	Network *Network
	ID      uint32

	// HeartbeatTimeout is how long a follower waits for a heartbeat before it
	// stands for election. ElectionTimeout, which must not be shorter, is how
	// long an election may take before the next. Shorter timeouts find a new
	// leader sooner; longer ones are less likely to replace a leader that is
	// only slow. Default 500 ms each; 1 minute without a network, where raft
	// would only wake to find that it still leads.
	HeartbeatTimeout, ElectionTimeout time.Duration
	// SnapshotInterval is the time between the moment when enough entries are
	// new and the snapshot, up to twice as long. Shorter means less to replay
	// after a crash. Default 5 s.
	SnapshotInterval time.Duration
	// SnapshotEntries is the number of new entries that a snapshot is taken after.
	// Default 256.
	SnapshotEntries uint64
	// Full reports whether this replica, following, has no room for entries of so
	// many bytes. It is called for each request with entries that need room. Default:
	// it always has room.
	Full func(bytes int) bool
	// PeerFull is called when a peer refuses entries of this replica's, leading,
	// because it has no room. The entries are sent again. The function must not
	// block. May be nil.
	PeerFull func(peer string)
	// Halted opens the replica halted, for this reason: see [Group.Halt].
	Halted error
	// HaltedItself is called once, on a goroutine of its own, when the replica
	// has halted by itself. The error says why, and wraps [ErrCommittedCut] or
	// [ErrTermBack]. May be nil.
	HaltedItself func(error)

	// PeerLostEntries is called once when a peer has lost entries that it had
	// acknowledged to this replica, leading: its newest entry is has, and was had
	// at least. The peer gets no more entries and counts for no majority until it
	// has them again or is added anew. The function must not block. May be nil.
	PeerLostEntries func(peer string, has, had uint64)

	// Logger receives what raft and the group log. Default: discarded.
	Logger *slog.Logger

	logger hclog.Logger // writes raft's log to Logger
}

const (
	// standaloneTimeout is the timeout of a group without a network.
	standaloneTimeout = time.Minute
	// snapshotNever is how often raft looks by the clock whether to take a
	// snapshot: snapshotter.go decides that.
	snapshotNever = 365 * 24 * time.Hour
	// commitTimeout is about how long a follower waits to learn that the last
	// entry is committed, if no other entry follows.
	commitTimeout = 40 * time.Millisecond
	// maxAppend bounds the entries in one request, and the proposals that are
	// stored at once.
	maxAppend = 32
)

// filled returns the options with their defaults, and raft's configuration.
func (o Options) filled() (Options, *raft.Config, error) {
	if o.HeartbeatTimeout == 0 {
		o.HeartbeatTimeout = standaloneTimeout
		if o.Network != nil {
			o.HeartbeatTimeout = 500 * time.Millisecond
		}
	}
	if o.ElectionTimeout == 0 {
		o.ElectionTimeout = o.HeartbeatTimeout
	}
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(o.Node)
	c.HeartbeatTimeout, c.ElectionTimeout = o.HeartbeatTimeout, o.ElectionTimeout
	c.LeaderLeaseTimeout = o.HeartbeatTimeout
	c.CommitTimeout = commitTimeout
	c.MaxAppendEntries = maxAppend
	// A removed replica stays, as a follower without a leader.
	c.ShutdownOnRemove = false
	c.SnapshotInterval = snapshotNever
	if o.SnapshotInterval == 0 {
		o.SnapshotInterval = 5 * time.Second
	}
	if o.SnapshotEntries == 0 {
		o.SnapshotEntries = 256
	}
	// Trim cuts the log's head; raft never does.
	c.TrailingLogs = 1<<64 - 1
	c.BatchApplyCh = true
	c.NoLegacyTelemetry = true
	c.Logger = o.logger
	if err := raft.ValidateConfig(c); err != nil {
		return o, nil, fmt.Errorf("raft group of %s: %w", o.Node, err)
	}
	return o, c, nil
}
