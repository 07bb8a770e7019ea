// Package lockmgr decides whether a transaction may commit. It is the
// certification machine of one partition: optimistic concurrency control over
// lock names, with nothing ever held.
//
//	m := lockmgr.New(lockmgr.Options{})
//	v := m.Certify(second, 2) // beside one in flight that wrote the same lock
//	fmt.Println(v.Outcome, v.Conflicts[0].Name, "with", v.Conflicts[0].Txid, "once", v.DependsOn, "is committed")
//	fmt.Println(m.Commit(), "is committed") // the log says so
//	second.HighWaterMark = 1
//	fmt.Println(m.Certify(second, 3).Outcome)
//
// A [Transaction] names the locks it depends on and the high-water mark up to
// which its writer had applied the partition. A [Manager] returns a [Verdict]:
// the transaction passes if and only if, for each of its write and read locks,
// the newest transaction that recorded an overlapping [Lock] (as a write or
// append lock) has a txid at or below that mark. Message ids and an expected
// last txid are checked by the same call.
//
// # Committed and in flight
//
// The committed state is a function of the log: Record is called for every
// committed transaction, in log order, on followers and while recovering.
// Reset, RecordOlder and Rebuilt make the same state from the log's tail, read
// backwards.
//
// Transactions are in flight on a leader only. One that passes Certify counts
// as committed for those after it, until Commit makes that true or Rollback
// takes it back. The DependsOn of a refusal is the transaction in flight that
// it depends on: the refusal is final only once that one commits.
//
// # Guarantee
//
// The table knows exactly the C most recently recorded distinct names, and
// keeps a floor, the highest txid it has forgotten. A lock that it does not
// know counts as recorded at the floor, unless the caller says what the log has
// of it up to there. Hence no conflict is ever missed, and a transaction whose
// mark is at or past the floor never meets a false one. For a session a lock
// counts as recorded lower than that if its own transactions, which were
// certified, say so.
//
// # Layout
//
// Names are kept as a trie of tokens, found through hash tables that compare
// the tokens themselves. Each lock carries two txids: its newest recorder,
// which may be in flight, and its newest committed one, by which an intrusive
// list orders the locks. Each prefix carries the same two of all locks below,
// which is what a subtree lock asks for. The committed one never has to be
// lowered: locks leave oldest first, so while anything is left below a prefix,
// its newest recorder is. So a lock is looked up once on a leader: to commit a
// transaction in flight, the list of the locks that it recorded is enough, and
// to roll back, the committed txids are. Message ids are added and dropped in
// the order of their txids, and kept in a queue.
//
// No record in the tables holds a Go pointer, so the garbage collector does not
// scan them. Hash seeds are random, as those of Go's maps are, and no result
// depends on them.
//
// # Limits
//
// Names must follow the grammar of subjects.md, which the caller checks.
// The package does no I/O, starts no goroutine and reads no clock: every time
// is an argument. A Manager is not safe for concurrent use, not even its
// methods that only read.
package lockmgr
