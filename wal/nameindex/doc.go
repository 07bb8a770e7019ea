// Package nameindex finds the transactions of one partition by what they have
// recorded: lock names, subtrees of them, their kind and their message id.
//
//	x, err := nameindex.Open(dir, nameindex.Options{Label: "partition 0"})
//	...
//	x.Add(813, entry, x.Keys().Recorded(nil, "account.42")...)
//	err = x.Publish(stamp)
//	...
//	items := []nameindex.Item{{x.Keys().Overlapping(nil, "account.>")}}
//	for txid, err := range x.Search(items, nameindex.Range{From: 1, To: 813}) {
//
// # Keys
//
// A [Key] is a hash of one thing that a transaction has. A [Hasher] makes the
// keys that a transaction is found by, and those that a search looks for. Two
// things may have one key, so a search returns candidates: every transaction
// that is asked for, and now and then another one. The caller looks at each of
// them in the log. The index holds nothing that is not in the log.
//
// # Runs
//
// The newest transactions are in memory, as entries: a key, and the distance of
// a transaction from the first. When there are enough, their entries become a
// run: a file of entries in the order of their keys, which never changes. Runs
// that follow each other are merged when there are several of about one size,
// as in a log-structured merge tree (O'Neil, Cheng, Gawlick, O'Neil: The
// Log-Structured Merge-Tree, 1996).
//
// The entries of a run are in buckets, by the first bits of their keys, and in
// each bucket there is a list of transactions for each key. A search reads one
// entry of the bucket table and one bucket of each run. A long list is stored
// outside its bucket.
//
// Runs are not synced: after a power cut, one that was written lately may be
// damaged. All that is read has checksums, and a damaged run is removed and
// made again from the log.
//
// # Places
//
// The index also has, for every 64th transaction, the index of the log's entry
// that it is in. [Index.Near] returns from these where a candidate is likely to
// be.
//
// # Completeness
//
// An index has all transactions from its first one up to the last that
// [Index.Covers] returns. Later ones are not in it yet, and the caller looks
// through the log for these. Each run has a stamp of the log at its end. When
// the caller opens an index, it compares the stamps with the log, so that a run
// of another log is not used.
//
// # Concurrency
//
// One goroutine changes an Index: it calls Add, Publish, Flush, Begin, Reset,
// Drop, LevelFilter and Close. Any number of others may call Search, Near,
// Covers, Size and Keys meanwhile.
package nameindex
