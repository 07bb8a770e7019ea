package raftstore

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/cantuslog/cantus/wal"
)

// Options configures a group. Node, Log and FSM are required. The zero value of
// each other field is its default.
type Options struct {
	// Node is the name of this replica's node, unique in the group.
	Node string
	// Voters bootstraps the group if the log is empty. It must be the same on
	// all initial replicas. If it is empty, a replica on a network with an
	// empty log waits for a leader that adds it. A replica that has lost its
	// log must not bootstrap the group again, since it may already have voted.
	Voters []string
	Log    *wal.Log
	FSM    FSM

	// Network connects to the other replicas; nil if there are none. ID is the
	// group's number on it.
	Network *Network
	ID      uint32

	// HeartbeatTimeout is how long a follower waits for a heartbeat before it
	// starts an election. ElectionTimeout, which must not be shorter, is how
	// long an election may take before the next one. Shorter timeouts find a
	// new leader sooner; longer ones are less likely to replace a leader that
	// is only slow. Default: 500 ms each; 1 minute without a network, where the
	// timeouts have no use.
	HeartbeatTimeout, ElectionTimeout time.Duration
	// SnapshotInterval is the time from the moment when there are enough new
	// entries until a snapshot is taken; it may be up to twice as long. A
	// shorter interval leaves less to replay after a crash. Default 5 s.
	SnapshotInterval time.Duration
	// SnapshotEntries is the number of new entries after which a snapshot is
	// scheduled. Default 256.
	SnapshotEntries uint64
	// SnapshotQuiet is how long there must be no new entry until a snapshot is
	// taken of those that there are; it may be up to twice as long. The log of
	// a replica whose group is idle then says that all its entries are
	// committed, whatever becomes of the others. Default 1 s; without a
	// network, which has no others, no such snapshot is taken.
	SnapshotQuiet time.Duration
	// Full reports whether a follower has no room for this many bytes of
	// entries. It is called for each request with entries that need room.
	// Default: there is always room.
	Full func(bytes int) bool
	// PeerFull is called on a leader when a peer rejects entries because it has
	// no room, or could not store them. The leader retries. PeerFull must not
	// block. It may be nil.
	PeerFull func(peer string)
	// Halted, if not nil, is the reason to open the replica halted: see
	// [Group.Halt].
	Halted error
	// HaltedItself is called once, in its own goroutine, when the replica has
	// halted itself. The error contains the reason, and wraps [ErrCommittedCut]
	// or [ErrTermBack]. It may be nil.
	HaltedItself func(error)

	// PeerLostEntries is called once on a leader when a peer has lost entries
	// that it had acknowledged to this leader: its last entry is has, and had
	// it had acknowledged. The peer receives no entries and counts for no
	// majority until it has them again or is added again. The function must not
	// block. It may be nil.
	PeerLostEntries func(peer string, has, had uint64)

	// Logger receives the messages of raft and the group. Default: discarded.
	Logger *slog.Logger

	logger hclog.Logger // writes raft's log to Logger
}

const (
	// standaloneTimeout is the default timeout of a group without a network.
	standaloneTimeout = time.Minute
	// snapshotNever is the interval of raft's own snapshots: the snapshotter
	// takes them instead.
	snapshotNever = 365 * 24 * time.Hour
	// commitTimeout is about how long it takes until a follower learns that the
	// last entry is committed, if no other entry follows.
	commitTimeout = 40 * time.Millisecond
	// maxAppend bounds the entries in one request, and the proposals that are
	// stored at once.
	maxAppend = 32
)

// withDefaults returns the options with their defaults, and raft's
// configuration.
func (o Options) withDefaults() (Options, *raft.Config, error) {
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
	// A removed replica remains a follower without a leader.
	c.ShutdownOnRemove = false
	c.SnapshotInterval = snapshotNever
	if o.SnapshotInterval == 0 {
		o.SnapshotInterval = 5 * time.Second
	}
	if o.SnapshotEntries == 0 {
		o.SnapshotEntries = 256
	}
	if o.SnapshotQuiet == 0 && o.Network != nil {
		o.SnapshotQuiet = time.Second
	}
	c.TrailingLogs = 1<<64 - 1 // raft never trims the log; Group.Trim does
	c.BatchApplyCh = true
	c.NoLegacyTelemetry = true
	c.Logger = o.logger
	if err := raft.ValidateConfig(c); err != nil {
		return o, nil, fmt.Errorf("raft group of %s: %w", o.Node, err)
	}
	return o, c, nil
}
