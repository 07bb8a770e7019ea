package raftstore

// RaftCommitIndex is what raft takes for committed, be it synced here or not.
func (g *Group) RaftCommitIndex() uint64 { return g.raft.CommitIndex() }
