package raftstore

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/cantuslog/cantus/wal"
)

// Options configures a group. Node, Log and FSM are needed; of the rest zero
// is the default.
type Options struct {
	// Node is this replica's name among the group's.
	Node string
	// Voters found the group if its log is empty. Every founding replica is
	// given the same. Without them, on a network, a replica with an empty log
	// waits for a leader that has added it. A replica that has lost its log
	// must not found the group again: it has voted before.
	Voters []string
	Log    *wal.Log
	FSM    FSM

	// Network leads to the other replicas, nil if there are none. ID is the
	// group's number on it.
	Network *Network
	ID      uint32

	// HeartbeatTimeout is how long a follower hears nothing before it stands
	// for election, and ElectionTimeout, which is not shorter, how long an
	// election may take before there is another: less finds a new leader
	// sooner, more is surer not to replace one that is only slow. Default
	// 500 ms each; 1 minute without a network, where no leader is waited for and
	// raft would only wake to find that it still leads.
	HeartbeatTimeout, ElectionTimeout time.Duration
	// MarkInterval is about how long the state waits to be marked once there is
	// enough that is new. Shorter means less to replay after a crash. Default 5 s.
	SnapshotInterval time.Duration
	// MarkEntries is how many new entries make a mark worth while.
	// Default 256.
	SnapshotEntries uint64
	// Full reports whether this replica, following, takes no more entries that
	// need room; nil never does. It is asked for each request with entries.
	Full func() bool
	// Halted opens the replica halted, for this reason: see [Group.Halt].
	Halted error
	// Contradicted is told once, on a goroutine of its own, that the replica has
	// halted by itself, and why. The error wraps [ErrCommittedCut] or
	// [ErrTermBack]. Default: it is not told.
	HaltedItself func(error)

	// PeerForgot is told once that a peer has lost entries which it had
	// acknowledged to this replica, leading: its newest entry is has, and was had
	// at least. It gets no more entries and counts for no majority, until it has
	// them again or is added anew. The function must not block. Default: it is
	// not told.
	PeerLostEntries func(peer string, has, had uint64)

	// Logger takes what raft has to say. Default: discarded.
	Logger *slog.Logger

	logger hclog.Logger // raft's way to Logger
}

const (
	// aloneTimeout is the timeout of a group without a network.
	standaloneTimeout = time.Minute
	// markNever is how often raft looks by the clock whether to mark: marks.go does.
	snapshotNever = 365 * 24 * time.Hour
	// commitTimeout is about how long a follower waits to hear that the last
	// entry is committed, if no other follows.
	commitTimeout = 40 * time.Millisecond
	// maxAppend is how many entries go into one request, and how many
	// proposals are stored at once.
	maxAppend = 32
)

// filled gives the options with their defaults, and raft's configuration.
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
	// A replica that is removed stays, as a follower of nobody.
	c.ShutdownOnRemove = false
	c.SnapshotInterval = snapshotNever
	if o.SnapshotInterval == 0 {
		o.SnapshotInterval = 5 * time.Second
	}
	if o.SnapshotEntries == 0 {
		o.SnapshotEntries = 256
	}
	// Retention cuts the log's head, raft never does.
	c.TrailingLogs = 1<<64 - 1
	c.BatchApplyCh = true
	c.NoLegacyTelemetry = true
	c.Logger = o.logger
	if err := raft.ValidateConfig(c); err != nil {
		return o, nil, fmt.Errorf("raft group of %s: %w", o.Node, err)
	}
	return o, c, nil
}
