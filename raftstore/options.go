package raftstore

import (
	"cmp"
	"fmt"
	"io"
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
	// given the same. A replica that joins is given none, and waits to be
	// added.
	Voters []string
	Log    *wal.Log
	FSM    FSM
	// Network connects the group's replicas. Default: there is this one only.
	Network *Network
	// ID is the group's number, the same on all nodes.
	ID uint32

	// HeartbeatTimeout is how long a follower hears nothing before it stands
	// for election, and ElectionTimeout how long a candidate waits for votes.
	// Default 500 ms; 50 ms without a network, since nobody can disagree.
	HeartbeatTimeout, ElectionTimeout time.Duration
	// MarkInterval is about how often the state is marked while there is
	// something new. Shorter means less to replay after a crash. Default 5 s.
	MarkInterval time.Duration
	// MarkEntries is how many new entries make a mark worth while.
	// Default 256.
	MarkEntries uint64
	// Logger takes what raft has to say. Default: discarded.
	Logger *slog.Logger
}

const (
	// commitTime is how long followers may not know of the last commit while
	// nothing new comes.
	commitTime = 25 * time.Millisecond
	// appendEntries bounds the entries of one request to a follower, each of
	// which may have about a MiB.
	appendEntries = 16
	// rpcsInFlight is how many such requests may be on their way to one
	// follower.
	rpcsInFlight = 4
)

func (o Options) config() (*raft.Config, error) {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(o.Node)
	timeout := 500 * time.Millisecond
	if o.Network == nil {
		timeout = 50 * time.Millisecond
	}
	c.HeartbeatTimeout = cmp.Or(o.HeartbeatTimeout, timeout)
	c.ElectionTimeout = cmp.Or(o.ElectionTimeout, c.HeartbeatTimeout)
	c.LeaderLeaseTimeout = c.HeartbeatTimeout / 2
	c.CommitTimeout = min(commitTime, c.HeartbeatTimeout/4)
	c.MaxAppendEntries = appendEntries
	c.SnapshotInterval = o.MarkInterval
	if c.SnapshotInterval == 0 {
		c.SnapshotInterval = 5 * time.Second
	}
	c.SnapshotThreshold = o.MarkEntries
	if c.SnapshotThreshold == 0 {
		c.SnapshotThreshold = 256
	}
	// Retention cuts the log's head, raft never does.
	c.TrailingLogs = 1<<64 - 1
	c.BatchApplyCh = true
	c.NoLegacyTelemetry = true
	c.Logger = raftLogger(o.Logger)
	if err := raft.ValidateConfig(c); err != nil {
		return nil, fmt.Errorf("raft group of %s: %w", o.Node, err)
	}
	return c, nil
}

// raftLogger passes raft's log on, lower: what it calls an error is most often
// a peer that is away, and its warnings are its daily life.
func raftLogger(l *slog.Logger) hclog.Logger {
	h := hclog.NewInterceptLogger(&hclog.LoggerOptions{Level: hclog.Debug, Output: io.Discard})
	if l != nil {
		h.RegisterSink(logSink{l})
	}
	return h
}

type logSink struct{ log *slog.Logger }

func (s logSink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	if level == hclog.Error {
		s.log.Warn("raft: "+msg, args...)
		return
	}
	s.log.Debug("raft: "+msg, args...)
}
