// Package wal keeps what a node must not lose: batches of transactions,
// as entries of one log for each partition, over one write-ahead log for
// the whole node.
//
// Its nouns:
//
//   - [Transaction] and [Batch]: what a log entry carries, encoded once; the
//     same bytes are synced, replicated, kept and read.
//   - [Store]: a node's data directory. It holds the journal (package
//     journal), Badger behind it, and the small state of every log.
//   - [Log]: one group's log of entries on top of the store, found by Raft
//     index or by txid.
//
// When [Log.Append], [Log.TruncateSuffix], [Log.TrimHead] or [Log.SetMeta]
// returns nil, what it did survives power loss. Entries are read back exactly
// as they were appended or not at all: each carries a checksum over its group,
// its index, how often the log had been truncated, and its bytes, and a log
// knows all of these for each entry that it must hold. One that is damaged or
// missing, or that was replaced and has come back, gives [ErrDamaged].
//
// The package assumes that a synced file stays as it was written, and finds
// out if it does not. It knows nothing of Raft's rules, of NATS or of what
// locks mean.
//
// A Store and its Logs may be used from many goroutines; the writes of one
// Log are made by one goroutine at a time (Raft's).
//
// # Where an entry is
//
//	Append ──► journal: one frame for all that waits, one fsync ──► returns
//	                 │ in order, in the background
//	                 └──► Badger, without syncs of its own
//
// The newest entries are also kept in memory, at least until Badger has
// them. A checkpoint syncs Badger's files, writes the small state of all logs
// into a journal frame, and lets go of the frames before it. After a crash the
// frames since the checkpoint are played into Badger again.
//
// # Batch, versions 1 and 2
//
// Integers are little-endian; "uv" is an unsigned varint as in
// encoding/binary.
//
//	offset  size
//	     0     1  version: 1, or 2 for one with a term
//	     1     1  kind: 1 transactions, 2 cursor writes, 3 trims, 4 commands
//	     2     2  zero
//	     4     4  count of records
//	     8     8  txid of the first record (kind 1; else the last txid before it)
//	    16     8  time of the first record, Unix nanoseconds
//	    24     8  Raft's term in which the transactions were certified (version 2, kind 1)
//	              records
//	   end     4  CRC-32C of all before it
//
// The i-th transaction of a batch has the txid first+i and the time time+i.
//
//	transaction record
//	    uv  length of what follows
//	     1  flags: 1 has a high-water mark, 2 has a message id
//	    uv  high-water mark                 (if flagged)
//	    uv  length, kind
//	    uv  length, message id              (if flagged)
//	    uv  count of locks, then each:
//	           1  mode: 0 read, 1 write, 2 append
//	          uv  length, name
//	    uv  length, application's header lines ("Key: value\r\n"…)
//	        payload, up to the record's end
//
//	cursor record
//	    uv  length of what follows
//	     1  flags: 1 has an expected position
//	    uv  length, name
//	     8  position (txid)
//	     8  expected position, 0 unless flagged
//
//	trim record
//	    uv  8, the length of what follows
//	     8  the oldest txid that is still asked for (big-endian)
//
//	command record
//	    uv  length of what follows
//	        opaque to this package
//
// # Entry, version 1, as the value in Badger and in journal frames
//
//	  0     1  version, 1
//	  1     1  type, opaque to this package (Raft's)
//	  2     8  term
//	 10     8  time at which the leader appended it, Unix nanoseconds, or 0
//	 18    uv  length, extensions (Raft's)
//	           data: a batch, or what Raft puts there
//	end     4  CRC-32C over group, index, number of the log's suffix
//	           truncations before it was appended (8 bytes each), and all
//	           before it here
package wal
