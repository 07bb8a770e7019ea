package raftstore

// RaftCommitIndex is what raft takes for committed, be it synced here or not.
func (g *Group) RaftCommitIndex() uint64 { return g.raft.CommitIndex() }

// Hears tells whether a node has a connection for its heartbeats.
func (n *Network) Hears(node string) bool { return n.hasHeartbeatConn(node) }

// Urgent tells whether somebody waits for the group's heartbeats to be answered.
func (g *Group) Urgent() bool { return g.network.urgent.Load() > 0 }
