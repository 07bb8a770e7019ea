package wal

import (
	"sync"
	"time"
	_ "unsafe" // for go:linkname

	"github.com/dgraph-io/badger/v4"
)

// Badger's compactors each look 20 times a second whether there is anything to do,
// which is most of what an idle node would cost. There is something to do only when
// memtables have become tables, so the compactors are stopped while hardly anything
// is written and every level is in order.

const (
	// compactorRest is for how long hardly anything is written, not restShare of a
	// memtable, before Badger's compactors are stopped.
	compactorRest = 10 * time.Second
	restShare     = 16
	// wakeShare of a memtable is written before they run again. A table that is
	// written without them is one of the 15 that Badger lets gather.
	wakeShare = 2
)

// Badger stops and starts its compactors around a Flatten, and exports no way to do
// it alone. A version without these functions does not link; one whose functions take
// other parameters does: see docs/adr/0025.

//go:linkname stopCompactions github.com/dgraph-io/badger/v4.(*DB).stopCompactions
func stopCompactions(db *badger.DB)

//go:linkname startCompactions github.com/dgraph-io/badger/v4.(*DB).startCompactions
func startCompactions(db *badger.DB)

// compactors are Badger's. They run from when the store is opened.
type compactors struct {
	db *badger.DB

	mu      sync.Mutex
	resting bool
	needed  int       // how many callers of need have not called done
	written int64     // bytes since they were stopped, or since the time below
	since   time.Time // zero at first
}

// wrote takes note of bytes that are about to go into Badger's memtable.
func (c *compactors) wrote(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.written += n
	if c.resting && c.written >= c.db.Opts().MemTableSize/wakeShare {
		c.run()
	}
}

// need has the compactors run until done is called.
func (c *compactors) need() (done func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.needed++
	c.run()
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.needed--
	}
}

// run starts the compactors unless they run. mu is held.
func (c *compactors) run() {
	if c.resting {
		startCompactions(c.db)
		c.resting = false
	}
	c.written, c.since = 0, time.Time{}
}

// look stops the compactors if there is nothing for them to do.
func (c *compactors) look(now time.Time, rest time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.resting || c.needed > 0:
	case c.since.IsZero() || c.written > c.db.Opts().MemTableSize/restShare || !inOrder(c.db):
		c.written, c.since = 0, now
	case now.Sub(c.since) >= rest:
		stopCompactions(c.db)
		c.resting, c.written = true, 0
	}
}

// inOrder reports whether Badger has nothing to compact.
func inOrder(db *badger.DB) bool {
	for _, l := range db.Levels() {
		if l.Score >= 1 {
			return false
		}
	}
	return true
}
