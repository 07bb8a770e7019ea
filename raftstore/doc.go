// Package raftstore runs hashicorp/raft over the logs of package wal: one
// group for each partition.
//
// Its nouns are [Group], one replica of one group, and [FSM], what the group's
// committed entries are applied to. The log that Raft replicates is the
// transaction log itself: there is no copy of the data in the state machine
// and none in snapshots. A snapshot is a marker (index, term, configuration
// and some bytes of the FSM's), taken often, so that a restart replays little;
// Raft never cuts the log's head.
//
// When a [Proposal] has succeeded, its entry is synced on a majority of the
// group's voters and applied by this replica's FSM. When it fails with
// [ErrNotLeader], nothing was done; with [ErrUnknown], nobody knows yet.
//
// Groups are safe for concurrent use. The package knows nothing of NATS or of
// locks, and it alone imports hashicorp/raft.
package raftstore
