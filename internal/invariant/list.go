package invariant

// Of a replica's Raft group, in package raftstore.
var (
	TermRises       = declare(always, "term-rises", "a stored term is never replaced by a lower one")
	VoteTermRises   = declare(always, "vote-term-rises", "the term of a stored vote is never replaced by a lower one")
	CommittedKept   = declare(ifReached, "committed-kept", "a replica never removes entries that it knows to be committed")
	AppliedInOrder  = declare(always, "applied-in-order", "entries are applied in the order of their indexes, each once")
	AppliedIsSynced = declare(always, "applied-is-synced", "a replica applies no entry that it has not synced")
	SnapshotRises   = declare(always, "snapshot-rises", "a snapshot never replaces one of a later entry")
	FetchComplete   = declare(ifReached, "fetch-complete", "a fetched log ends at its snapshot's entry, or where it ended before")
)

// Of a node's store, in package wal.
var (
	FramesInOrder   = declare(always, "frames-in-order", "the journal's frames are applied in order, each once")
	EntriesDense    = declare(always, "entries-dense", "a log's indexes have no gaps")
	ReleasedApplied = declare(always, "released-applied", "the journal releases only what Badger has")
)

// Of a partition, in package broker.
var (
	TxidsDense            = declare(always, "txids-dense", "the high-water mark rises to the last txid of each batch that is applied")
	TimesRise             = declare(always, "times-rise", "a batch that a tenure commits is later than the one before")
	TenureTerm            = declare(always, "tenure-term", "an acknowledged entry has the term of the tenure that certified it")
	AcknowledgedApplied   = declare(always, "acknowledged-applied", "a transaction that is acknowledged is applied")
	CursorMoves           = declare(ifReached, "cursor-moves", "a cursor that moves with a transaction is its session's when that is applied")
	DependencyCommitted   = declare(always, "dependency-committed", "a refusal is sent only after the transaction that it depends on is committed")
	ConflictCommitted     = declare(always, "conflict-committed", "a conflict names a committed transaction")
	DuplicateCommitted    = declare(always, "duplicate-committed", "a duplicate is answered with a committed transaction")
	TenureBeginsEmpty     = declare(always, "tenure-begins-empty", "nothing is in flight when a tenure begins")
	DigestsEqual          = declare(always, "digests-equal", "replicas have equal digests at equal txids")
	FirstTxidRises        = declare(ifReached, "first-txid-rises", "a trim never lowers the first txid")
	TrimWithinLog         = declare(ifReached, "trim-within-log", "a trim removes nothing behind the high-water mark")
	FeedInOrder           = declare(always, "feed-in-order", "a tenure publishes batches in the order of their txids")
	ReadWithinLog         = declare(always, "read-within-log", "a read returns nothing behind the high-water mark")
	FactsVersionRises     = declare(always, "facts-version-rises", "the version of the facts never goes back")
	BatchVoided           = declare(sometimes, "batch-voided", "a batch is void: it was certified in another term, or out of turn")
	DependencyLost        = declare(sometimes, "dependency-lost", "a refusal is withdrawn because the transaction that it depended on did not commit")
	LeadershipUnconfirmed = declare(sometimes, "leadership-unconfirmed", "a leader that no majority confirms withholds a refusal")
)

// Events in package raftstore.
var (
	LogFetched  = declare(sometimes, "log-fetched", "a replica fetches a log that was trimmed")
	TermPending = declare(sometimes, "term-pending", "a term can't be stored at once, because the disk is full or has failed")
)
