package raftstore

import "github.com/hashicorp/raft"

// RaftCommitIndex returns the commit index of raft, which may not be synced
// here yet.
func (g *Group) RaftCommitIndex() uint64 { return g.raft.CommitIndex() }

// HasHeartbeatConn reports whether a node has a connection open for its
// heartbeats.
func (n *Network) HasHeartbeatConn(node string) bool { return n.hasHeartbeatConn(node) }

// Urgent reports whether a caller waits for the group's heartbeats to be
// confirmed.
func (g *Group) Urgent() bool { return g.network.urgent.Load() > 0 }

// Retries reports whether a request to a peer is being retried.
func (g *Group) Retries(peer string) bool {
	return g.network.peer(raft.ServerID(peer)).retrying.Load() > 0
}
