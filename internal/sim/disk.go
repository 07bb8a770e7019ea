package sim

import (
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/cantuslog/cantus/wal/journal"
	"github.com/cantuslog/cantus/wal/journal/journaltest"
)

// Disk is a simulated disk with the journal of one node. It is safe for
// concurrent use.
type Disk struct {
	*journaltest.FS

	mu    sync.Mutex // guards the fields below
	rng   *rand.Rand
	extra time.Duration
	held  time.Time     // no sync ends before
	dead  chan struct{} // closed when the disk is cut off
	after *journaltest.FS
}

var _ journal.FS = (*Disk)(nil)

func newDisk(fs *journaltest.FS, rng *rand.Rand) *Disk {
	return &Disk{FS: fs, rng: rng, dead: make(chan struct{})}
}

// maxSync is how long a sync takes at most on a disk that is not slow.
const maxSync = 4 * time.Millisecond

// slow sets by how much longer syncs take from now on.
func (d *Disk) slow(extra time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.extra = extra
}

// hold lets no sync that begins from now on end before a time.
func (d *Disk) hold(until time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held = until
}

// cut ends every use of the disk. What the next process finds is what a power
// cut leaves, or, without one, all that was written.
func (d *Disk) cut(power bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.after != nil {
		return
	}
	if power {
		d.after = d.PowerCut()
	} else {
		d.after = d.Kill()
	}
	close(d.dead)
}

// isCut reports whether the disk was cut off.
func (d *Disk) isCut() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.after != nil
}

// next returns the disk as the next process finds it.
func (d *Disk) next() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	return newDisk(d.after, d.rng)
}

// OpenFile opens a file whose syncs take time.
func (d *Disk) OpenFile(name string, flag int, perm os.FileMode) (journal.File, error) {
	f, err := d.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &diskFile{File: f, disk: d}, nil
}

type diskFile struct {
	journal.File
	disk   *Disk
	mu     sync.Mutex
	synced bool
}

// Sync takes some milliseconds. The first sync of an open file takes no time:
// it is that of a new segment, during which the journal holds a mutex.
func (f *diskFile) Sync() error {
	f.mu.Lock()
	first := !f.synced
	f.synced = true
	f.mu.Unlock()
	if !first {
		f.disk.pause()
	}
	return f.File.Sync()
}

// pause waits for as long as a sync takes, or until the disk is cut off.
func (d *Disk) pause() {
	d.mu.Lock()
	wait := max(d.extra+time.Duration(d.rng.Int64N(int64(maxSync))), time.Until(d.held))
	d.mu.Unlock()
	select {
	case <-d.dead:
	case <-time.After(wait):
	}
}
