// Package raftstore runs Raft groups. It does not store their data: that is in
// the logs of package wal.
//
// Each partition has a group, which replicates the partition's log with
// hashicorp/raft. The log that Raft replicates is the transaction log itself:
// neither the state machine nor a snapshot has a copy of the data. A snapshot
// is metadata: an index, a term, the configuration and a few bytes from the
// FSM. Snapshots are frequent, so that a restart replays little. Raft never
// trims the log; [Group.Trim] does.
//
// The main types are [Group], one replica of one group; [FSM], the state
// machine that applies a group's committed entries; and [Network], which
// connects a node's groups with their replicas on other nodes.
//
// When a [Proposal] succeeds, its entry is synced on this replica and on a
// majority of the group's voters, and this replica's FSM has applied it. If it
// fails with [ErrNotLeader], nothing was done; with [ErrUnknown], the entry may
// or may not be committed.
//
// Groups are safe for concurrent use. The package does not depend on NATS or on
// locks, and no other package imports hashicorp/raft. A peer that has proved
// that it has the cluster's key is trusted to be honest: it may be faulty or
// outdated, but it is not malicious. Even so, terms that no election can have
// produced are rejected.
//
// # Reading the source
//
// The files, in the order in which an entry passes through them:
//
//   - group.go: [Group.Propose] passes the entry to raft, [Proposal.Wait]
//     returns its outcome. Also open, close, barrier and status.
//   - logstore.go: the leader stores the entry. async_writes.go: the leader
//     sends it to its followers while its own disk is still writing it.
//   - transport.go, pipeline.go: the leader sends the entry, and retries for as
//     long as it leads. peer_acks.go: it records what each peer has
//     acknowledged.
//   - network.go, endpoint.go: the node's network and a group's end of it.
//     Package peernet has the connections: the handshake, TLS and frames. For
//     Raft they carry the stream of hashicorp/raft's network transport.
//   - rpc_filter.go: the follower filters the request before raft handles it.
//     Then the follower's logstore.go stores the entry.
//   - fsm.go: once committed, the entry is applied.
//   - snapshotter.go, snapshot_store.go: a snapshot is taken after many
//     entries, and when no more come.
//
// The other files:
//
//   - heartbeat_send.go, heartbeat_receive.go, heartbeat_bypass.go: heartbeats,
//     batched for all groups that two nodes share.
//   - failover.go: an immediate election when a leader's process has died.
//     starvation.go: no election if a node is only short of processor time.
//     standalone.go: a replica without peers.
//   - membership.go: membership changes, leadership transfer. recover.go: a
//     group goes on with one voter after the others are lost.
//   - fetch_client.go, fetch_server.go, fetch_wire.go, fetch_state.go: a
//     replica copies another replica's log. fetch_entries.go: it reads entries
//     of one.
//   - halt.go: a replica that is halted.
//   - options.go, errors.go, logging.go.
//
// # A replica that is behind
//
// A snapshot is useless without the log before it, so a replica never installs
// another replica's. If the leader has trimmed entries that a replica lacks,
// [Group.Behind] signals it. The replica is closed, copies another replica's
// whole log ([Fetch]), and is opened again. Until the fetch is done, the log
// can't be opened: the replica may have acknowledged entries, which count as
// committed, and must not vote without them.
//
// The log's small state records the newest entry that the replica may have
// acknowledged, from the moment when the fetch begins or the log is reset. A
// fetch fails with [ErrStale] if the other replica's snapshot is less up to
// date than that entry, by Raft's comparison of term and index. An entry of an
// older term than the snapshot's, at a later index, can't have been committed,
// so it need not be fetched.
//
// A leader may offer a snapshot to a replica that has fetched the log in the
// meantime. If the log holds the entries that the snapshot covers, the replica
// replies that the snapshot is installed.
package raftstore
