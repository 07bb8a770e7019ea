// Package raftstore runs hashicorp/raft over the logs of package wal, one
// group for each partition, and carries it between nodes.
//
// Its nouns are [Group], one replica of one group; [FSM], what the group's
// committed entries are applied to; and [Network], a node's one listener and
// its dialing of peers by name, which all groups of the node share. The log
// that Raft replicates is the transaction log itself: there is no copy of the
// data in the state machine and none in snapshots. A snapshot is a marker
// (index, term, configuration and some bytes of the FSM's), taken often, so
// that a restart replays little; Raft never cuts the log's head, [Group.Trim]
// does.
//
// When a [Proposal] has succeeded, its entry is synced on this replica and on a
// majority of the group's voters, and applied by this replica's FSM. When it
// fails with [ErrNotLeader], nothing was done; with [ErrUnknown], nobody knows
// yet.
//
// Groups are safe for concurrent use. The package knows nothing of NATS or of
// locks, and it alone imports hashicorp/raft. A peer that has proved that it has
// the cluster's key is taken to be honest: it may be broken, old, or lost, but does
// not lie. Terms that no election can have brought about are refused all the same.
//
// # A replica that is behind
//
// A marker without the log before it is no state, so no marker is ever
// installed from afar. A replica that lacks what the leader has trimmed hears
// of it ([Group.Behind]), is closed, and gets the other replica's whole log
// ([Fetch]) before it is opened again. Until then the log can't be opened: its
// replica may have acknowledged entries, which count as committed, and must
// not vote without them. What it had at the most is remembered in the log's
// small state when the fetch begins, or the log is reset, and a fetch from a
// replica whose marker is less up to date, by Raft's own comparison of term and
// index, is [ErrStale]. An entry of an older term than the marker's and behind
// it is no loss: it can't have been committed.
//
// A leader that offers a marker to a replica that has fetched meanwhile is told
// that it is installed if the log holds what it covers.
//
// # On the wire
//
// Package peernet has the connections: the handshake, TLS, and the frames that
// carry a stream of bytes. For Raft the stream is that of hashicorp/raft's
// network transport; fetches (fetch_wire.go) and heartbeats (heartbeats.go) have messages of
// their own.
package raftstore
