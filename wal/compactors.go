package wal

import (
	"sync"
	"sync/atomic"
	"time"
	_ "unsafe" // for go:linkname

	"github.com/dgraph-io/badger/v4"
)

// Each of Badger's compactors checks 20 times a second whether there is
// anything to compact, which would be most of an idle node's cost. There is
// only after memtables have become tables, so the compactors are stopped while
// almost nothing is written and every level is within its limits.

const (
	// Badger's compactors are stopped after compactorRest in which less than
	// 1/restShare of a memtable was written.
	compactorRest = 10 * time.Second
	restShare     = 16
	// They run again once 1/wakeShare of a memtable was written. Badger accepts
	// 15 tables that are not compacted.
	wakeShare = 2
	// A compaction for which there was no space is tried again after shortRest.
	shortRest = 10 * time.Second
)

// Badger stops and starts its compactors around a Flatten, and exports no other
// way to do it. A version without these functions does not link; a version
// whose functions take other parameters does: see docs/adr/0025.

//go:linkname stopCompactions github.com/dgraph-io/badger/v4.(*DB).stopCompactions
func stopCompactions(db *badger.DB)

//go:linkname startCompactions github.com/dgraph-io/badger/v4.(*DB).startCompactions
func startCompactions(db *badger.DB)

// compactors stops and starts Badger's compactors. They run when the store
// opens.
type compactors struct {
	db *badger.DB

	mu      sync.Mutex
	resting bool
	needed  int       // how many callers of need have not called done
	written int64     // bytes since they were stopped, or since the time below
	since   time.Time // zero at first
	resume  time.Time // when they run again after a lack of space; zero if they may

	// short is set when a compaction found no space.
	short atomic.Bool
}

// wrote counts n bytes that are about to go into Badger's memtable.
func (c *compactors) wrote(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.written += n
	if c.resting && c.resume.IsZero() && c.written >= c.db.Opts().MemTableSize/wakeShare {
		c.run()
	}
}

// need keeps the compactors running until done is called.
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

// run starts the compactors if they are stopped. mu is held.
func (c *compactors) run() {
	if c.resting {
		startCompactions(c.db)
		c.resting = false
	}
	c.written, c.since = 0, time.Time{}
}

// look stops the compactors if they have nothing to do.
func (c *compactors) look(now time.Time, rest time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.short.Swap(false) {
		c.resume = now.Add(shortRest)
	}
	switch {
	case !c.resume.IsZero():
		c.waitForSpace(now)
	case c.resting || c.needed > 0:
	case c.since.IsZero() || c.written > c.db.Opts().MemTableSize/restShare || !inOrder(c.db):
		c.written, c.since = 0, now
	case now.Sub(c.since) >= rest:
		stopCompactions(c.db)
		c.resting, c.written = true, 0
	}
}

// waitForSpace keeps the compactors stopped until resume: they would build
// tables all the time that they can't write. mu is held.
func (c *compactors) waitForSpace(now time.Time) {
	switch {
	case now.Before(c.resume) && !c.resting && c.needed == 0:
		stopCompactions(c.db)
		c.resting, c.written = true, 0
	case !now.Before(c.resume):
		c.resume = time.Time{}
		c.run()
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
