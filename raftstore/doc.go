// Package raftstore runs Raft groups. It is not a store: the data is in the logs
// of package wal.
//
// One group for each partition replicates that partition's log by
// hashicorp/raft. The log that Raft replicates is the transaction log itself:
// there is no copy of the data in the state machine and none in snapshots. A
// snapshot is metadata: an index, a term, the configuration and a few bytes of
// the FSM's. It is taken often, so that a restart replays little. Raft never
// cuts the log's head; [Group.Trim] does.
//
// Its nouns are [Group], one replica of one group; [FSM], the state machine
// that a group's committed entries are applied to; and [Network], which
// connects the groups of a node with their replicas on other nodes.
//
// When a [Proposal] has succeeded, its entry is synced on this replica and on a
// majority of the group's voters, and applied by this replica's FSM. When it
// fails with [ErrNotLeader], nothing was done; with [ErrUnknown], the outcome
// is not known yet.
//
// Groups are safe for concurrent use. The package knows nothing of NATS or of
// locks, and it alone imports hashicorp/raft. A peer that has proved that it
// has the cluster's key is taken to be honest: it may be broken, old, or lost,
// but it does not lie. Terms that no election can have produced are rejected
// all the same.
//
// # Reading the source
//
// The files, in the order in which an entry passes them:
//
//   - group.go: [Group.Propose] passes the entry to raft, [Proposal.Wait]
//     returns its outcome. Also open, close, barrier and status.
//   - logstore.go: the leader stores the entry. async_writes.go: its followers
//     get it while the leader's disk still writes.
//   - transport.go, pipeline.go: the leader sends the entry, and retries while
//     that matters. peer_acks.go: it remembers what each peer has acknowledged.
//   - network.go, endpoint.go: the node's network and a group's end of it.
//     Package peernet has the connections: the handshake, TLS and frames. For
//     Raft they carry the stream of hashicorp/raft's network transport.
//   - rpc_filter.go: on the follower the entry passes the filter before raft
//     sees it, and is stored by the follower's logstore.go.
//   - fsm.go: once committed, the entry is applied.
//   - snapshotter.go, snapshot_store.go: a snapshot is taken after many
//     entries.
//
// Beside that path:
//
//   - heartbeat_send.go, heartbeat_receive.go, heartbeat_bypass.go: heartbeats,
//     batched for all groups of two nodes.
//   - failover.go: an election at once when a leader's process is gone.
//     starvation.go: none while the node is only short of processor time.
//     standalone.go: a replica without peers.
//   - membership.go: changes of members, leadership transfer.
//   - fetch_client.go, fetch_server.go, fetch_wire.go, fetch_state.go: a copy
//     of another replica's log.
//   - halt.go: a replica that takes no part in its group.
//   - options.go, errors.go, logging.go.
//
// # A replica that is behind
//
// A snapshot without the log before it is no state, so none is ever installed
// from another node. A replica that lacks what the leader has trimmed learns of
// it ([Group.Behind]), is closed, and gets another replica's whole log
// ([Fetch]) before it is opened again. Until then the log can't be opened: its
// replica may have acknowledged entries, which count as committed, and must not
// vote without them.
//
// The newest entry that the replica may have acknowledged is remembered in the
// log's small state when the fetch begins, or when the log is reset. A fetch
// from a replica whose snapshot is less up to date than that, by Raft's own
// comparison of term and index, fails with [ErrStale]. An entry of an older
// term than the snapshot's, at a later index, is no loss: it can't have been
// committed.
//
// A leader that offers a snapshot to a replica that has fetched meanwhile is
// told that it is installed if the log holds what it covers.
package raftstore
