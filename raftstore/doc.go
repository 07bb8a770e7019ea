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
// locks, and it alone imports hashicorp/raft. A peer proves that it has the
// cluster's key before it is told anything. One that has is taken to be honest: it
// may be broken, old, or lost, but does not lie. Terms that no election can have
// brought about are refused all the same. Without TLS, an attacker that can alter
// packets can take a connection over once it is made.
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
// Integers are big-endian, checksums CRC-32C. A connection is for one purpose,
// and for one group unless that is heartbeats. It begins, behind the TLS handshake
// where there is TLS, with five messages. The dialer opens:
//
//	offset  size
//	     0     8  "CANTUSRP"
//	     8     2  version, 2
//	    10     2  length of what follows, 36
//	    12    32  a nonce
//	    44     4  checksum of all before it
//
// Magic, version and length stay as they are in later versions. The listener
// answers with a nonce of 32 bytes, and nothing else. What follows has a length (2),
// a body, and a proof (32). The dialer greets:
//
//	0     1  what for: 1 Raft, 2 a fetch, 3 heartbeats, 4 nothing
//	1     4  group; 0 for heartbeats
//	5        three names, each one byte of length and n bytes: the dialing node,
//	         the id of its data directory, the node that is meant
//	end      the dialer's claims, at most 4 KiB
//
// The listener answers:
//
//	0     1  status: 0 welcome, 1 refused
//	1        the listener's claims, or what is wrong
//
// And the dialer agrees, in the same form without claims, or refuses. A proof is
// HMAC-SHA256 with the cluster's key over the step ("dialer greets", "listener
// answers" or "dialer agrees") and the SHA-256 of what was said: the cluster's id and
// the channel binding, each with its length in 4 bytes, the opening, the nonce, and
// each length, body and proof up to here. The channel binding is what TLS exports
// under "EXPORTER-cantus-replication", 32 bytes, and empty without TLS.
//
// The listener hangs up without a word on what is no opening or has no proof, and on
// a dialer that takes longer than five seconds. Only a dialer with a proof hears why
// it is refused.
//
// From then on, in both directions, there are frames, which together carry a
// stream of bytes. A frame is checked before a byte of it is used:
//
//	0     4  length of the payload, 1 to 262,144
//	4     4  checksum of the payload
//	8        payload
//
// For Raft the stream is that of hashicorp/raft's network transport. For a
// fetch it is messages: a byte that says what it is, four bytes of length, at
// most 64 MiB, and so many bytes.
//
//	a  to the server: the first index that is wanted, 8 bytes
//	b  from it: what is to come, in JSON: the first index kept, the marker and
//	   the FSM's metas, voided entries
//	e  from it: an entry: index, term, and time (8 bytes each), type (1),
//	   length of the extensions (unsigned varint), extensions, data
//	z  from it: that was all
//	x  from it: what went wrong, in words
//
// Heartbeats of all groups that are due at about the same time go in one
// message, as do their answers, in any order. A message is their number, 4
// bytes, 1 to 4,096, and then of each, from the leader's node
//
//	0     4  id, which the answer repeats
//	4     4  group
//	8     8  term
//
// and from the follower's
//
//	 0     4  id
//	 4     1  0 the replica is in a newer term, 1 it follows, 2 there is none
//	 5     8  the replica's term
//	13     8  its newest entry
package raftstore
