package raftstore

import (
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
	// given the same.
	Voters []string
	Log    *wal.Log
	FSM    FSM

	// HeartbeatTimeout is how long a follower hears nothing before it stands
	// for election. Default 1 s; 50 ms where Node is the only voter, since
	// nobody can disagree.
	HeartbeatTimeout time.Duration
	// MarkInterval is about how often the state is marked while there is
	// something new. Shorter means less to replay after a crash. Default 5 s.
	MarkInterval time.Duration
	// MarkEntries is how many new entries make a mark worth while.
	// Default 256.
	MarkEntries uint64
	// Logger takes what raft has to say. Default: discarded.
	Logger *slog.Logger
}

func (o Options) config() (*raft.Config, error) {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(o.Node)
	c.HeartbeatTimeout = o.HeartbeatTimeout
	if c.HeartbeatTimeout == 0 {
		c.HeartbeatTimeout = time.Second
		if len(o.Voters) == 1 {
			c.HeartbeatTimeout = 50 * time.Millisecond
		}
	}
	c.ElectionTimeout = c.HeartbeatTimeout
	c.LeaderLeaseTimeout = c.HeartbeatTimeout / 2
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
