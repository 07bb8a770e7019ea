package raftstore

import "github.com/hashicorp/raft"

// Snapshotter is a snapshotter without a group.
type Snapshotter struct{ snapshotter }

// NewSnapshotter returns one that takes a snapshot by calling take.
func NewSnapshotter(o Options, take func() error) *Snapshotter {
	s := &Snapshotter{snapshotter{entries: o.SnapshotEntries, interval: o.SnapshotInterval, quiet: o.SnapshotQuiet, warn: func(string, ...any) {}, taking: make(chan struct{}, 1)}}
	s.snapshot = func() error {
		at := s.applied.Load()
		err := take()
		if err == nil {
			s.last.Store(at)
		}
		return err
	}
	return s
}

// Apply records that the entries up to index were applied.
func (s *Snapshotter) Apply(index uint64) { s.recordApplied(index) }

// RaftCommitIndex returns raft's commit index. The entry may not be synced here
// yet.
func (g *Group) RaftCommitIndex() uint64 { return g.raft.CommitIndex() }

// HasHeartbeatConn reports whether a node has an open connection to this one
// for its heartbeats.
func (n *Network) HasHeartbeatConn(node string) bool { return n.hasHeartbeatConn(node) }

// Urgent reports whether a caller waits for replies to the group's heartbeats.
func (g *Group) Urgent() bool { return g.network.urgent.Load() > 0 }

// Retries reports whether a request to a peer is being retried.
func (g *Group) Retries(peer string) bool {
	return g.network.peer(raft.ServerID(peer)).retrying.Load() > 0
}

// HeartbeatsTo returns how many heartbeats were sent to a node, or are queued.
func (n *Network) HeartbeatsTo(node string) int {
	b := n.heartbeatsTo(node)
	b.mu.Lock()
	defer b.mu.Unlock()
	count := len(b.queue)
	if b.conn != nil {
		b.conn.mu.Lock()
		defer b.conn.mu.Unlock()
		count += int(b.conn.lastID)
	}
	return count
}
