package lockmgr

import "time"

// Options bound what a Manager remembers. Every replica of a partition must use
// the same, or their tables differ. The zero value is the default.
type Options struct {
	// Locks is how many distinct lock names the table knows exactly, the most
	// recently recorded ones; default 1,000,000, at most 1<<30. More takes
	// memory (some 50 to 120 bytes each), fewer raises the floor sooner.
	Locks int

	// IDs is how many message ids are remembered, the newest ones; default
	// 1,000,000, at most 1<<30; some 65 bytes each.
	IDs int

	// Sessions is how many sessions are remembered, those with the newest
	// transactions; default 100,000, at most 1<<30; some 150 bytes each.
	Sessions int

	// IDWindow is how long a message id is remembered, by the log's time;
	// default 2 minutes.
	IDWindow time.Duration

	// IDsInLog has a message id count for as long as the log has its
	// transaction. The table still has only those that IDs and IDWindow leave
	// in it: what it does not have, the caller looks up in the log. See
	// [Manager.UnknownID].
	IDsInLog bool
}

const maxTracked = 1 << 30 // indices are 32 bits wide

func (o Options) withDefaults() Options {
	if o.Locks <= 0 {
		o.Locks = 1_000_000
	}
	if o.IDs <= 0 {
		o.IDs = 1_000_000
	}
	if o.Sessions <= 0 {
		o.Sessions = 100_000
	}
	if o.IDWindow <= 0 {
		o.IDWindow = 2 * time.Minute
	}
	o.Locks = min(o.Locks, maxTracked)
	o.IDs = min(o.IDs, maxTracked)
	o.Sessions = min(o.Sessions, maxTracked)
	return o
}
