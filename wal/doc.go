// Package wal stores what a node must not lose: batches of transactions, as
// entries of one log for each partition, over one write-ahead log for the whole
// node.
//
// Its main types:
//
//   - [Transaction] and [Batch]: what a log entry carries, encoded once; the
//     same bytes are synced, replicated, kept and read.
//   - [Store]: a node's data directory. It holds the journal (package
//     journal), Badger behind it, and the small state of every log.
//   - [Log]: one group's log of entries on top of the store, found by Raft
//     index or by txid.
//
// When [Log.Append], [Log.TruncateSuffix], [Log.TrimHead] or [Log.SetMeta]
// returns nil, its effect survives power loss. Entries are read back exactly as
// they were appended, or not at all: each carries a checksum over its group,
// its index, its truncation epoch (how often the log had been truncated) and
// its bytes, and a log knows all of these for each entry that it must hold.
// Reading an entry that is damaged or missing, or that was replaced and has
// come back, returns [ErrDamaged].
//
// The package assumes that a synced file stays as it was written, and detects
// it if it does not. It knows nothing of Raft's rules, of NATS or of the
// meaning of locks.
//
// A Store and its Logs may be used by many goroutines at once. The writes of
// one Log are made by one goroutine at a time (Raft's).
//
// # Goroutines and locks
//
// The journal's writer calls Store.synced for each frame. It applies the frame
// to the logs in memory under Store.mu, and puts it into the applier's queue,
// which blocks it while the queue is full. The applier writes frames to Badger.
// A third goroutine takes checkpoints, which wait for the applier, and reclaims
// space. A fourth looks at the free space each second. Trimmed entries are
// deleted in the background, one log at a time.
//
// Writers of the store hold Store.writing for reading, and Close waits for
// them. Readers of Badger hold Store.reading for reading; it is locked while a
// file is removed that they may have mapped. Everything that writes to Badger
// holds Store.badgerWrite.
//
// # Where an entry is
//
//	Append ──► journal: one frame for all waiting calls, one fsync ──► returns
//	                 │ in order, in the background
//	                 └──► Badger, without syncs of its own
//
// The newest entries are also kept in memory, at least until Badger has them. A
// checkpoint syncs Badger's files, writes the small state of all logs to a
// file, and releases the journal's frames up to there. After a crash the frames
// since the checkpoint are written to Badger again.
//
// # Batch, versions 1 and 2
//
// Integers are little-endian; "uv" is an unsigned varint as in
// encoding/binary.
//
//	offset  size
//	     0     1  version: 1, or 2 for one with a term
//	     1     1  kind: 1 transactions, 2 cursor writes, 3 trims, 4 commands,
//	              5 restores
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
//	     1  flags: 1 has a high-water mark, 2 has a message id, 4 is in an
//	        atomic batch, 8 is in a session, 16 moves a cursor
//	    uv  high-water mark                 (if flagged)
//	    uv  length, kind
//	    uv  length, message id              (if flagged)
//	    uv  length, session's name          (if flagged)
//	    uv  number in the session           (if flagged)
//	    uv  length, cursor's name           (if flagged)
//	    uv  txid that the cursor moves to   (if flagged)
//	    uv  index in the atomic batch       (if flagged)
//	    uv  size of the atomic batch        (if flagged)
//	     8  fingerprint of its payloads     (if it is the first of one that has
//	        a message id or a session)
//	    uv  count of locks, then each:
//	           1  mode: 0 read, 1 write, 2 append
//	          uv  length, name
//	    uv  length, application's header lines ("Key: value\r\n"…)
//	        payload, up to the record's end
//
//	cursor record
//	    uv  length of what follows
//	     1  flags: 1 has an expected position, 2 has an owner, 4 has an
//	        expected owner, 8 exists also at position 0
//	    uv  length, name
//	     8  position (txid)
//	     8  expected position, 0 unless flagged
//	    uv  length, owner                   (if flagged)
//	    uv  length, expected owner          (if flagged)
//
//	trim record
//	    uv  64, the length of what follows
//	     8  the last txid that is trimmed (numbers are big-endian)
//	     8  the index of the last entry that is trimmed
//	     8  the time of that transaction, Unix nanoseconds
//	     8  the size of all entries up to there, trimmed before or not
//	    32  the digest at that txid
//	        an older version wrote 8 bytes, the oldest txid to keep, and a
//	        replica then kept what follows its last trim point before it
//
//	command record
//	    uv  length of what follows
//	        opaque to this package
//
//	restore record
//	    uv  length of what follows
//	     1  step: 1 begin, 2 cursor, 3 end, 4 begin a mirror, 5 recovered
//	        begin, of a mirror too:
//	     8  txid before the first transaction of the backup
//	    32  digest there
//	     8  time of that transaction, Unix nanoseconds
//	    uv  length, id of the cluster that the backup was taken from
//	        begin a mirror: then a history, as that of an end
//	        cursor:
//	     8  position (txid)
//	     8  time at which it was set, Unix nanoseconds
//	    uv  length, name
//	        end:
//	     8  last txid of the restored log
//	    32  digest there
//	    uv  count of past clusters, then each:
//	           8  the last txid that was committed there
//	          uv  length, id of the cluster
//	        recovered:
//	     8  last txid that was known to be committed
//	     8  time, Unix nanoseconds
//	    uv  length, id of the cluster that was lost
//	    uv  length, name of the node whose log it was
//
// # Entry, versions 1 and 2, as the value in Badger and in journal frames
//
//	  0     1  version: 1, or 2 if the batch was restored from a backup
//	  1     1  type, opaque to this package (Raft's)
//	  2     8  term
//	 10     8  time at which the leader appended it, Unix nanoseconds, or 0
//	 18    uv  length, extensions (Raft's); "restored" in version 2, and in
//	           no other
//	           data: a batch, or what Raft puts there
//	end     4  CRC-32C over group, index, number of the log's suffix
//	           truncations before it was appended (8 bytes each), and all
//	           before it here
package wal
