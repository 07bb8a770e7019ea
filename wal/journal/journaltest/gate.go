package journaltest

import (
	"os"
	"sync"
	"syscall"

	"github.com/cantuslog/cantus/wal/journal"
)

// Gate is a real file system with a gate in front of each sync: a test holds
// syncs back, lets them through, or makes them fail. It is safe for concurrent
// use.
type Gate struct {
	journal.FS

	mu   sync.Mutex
	gate chan struct{} // not nil: syncs wait until it is closed
	held chan struct{} // receives when a sync waits
	fail error
	full bool
}

type gateFile struct {
	journal.File
	gate *Gate
}

// NewGate returns the operating system's file system, with its gate open.
func NewGate() *Gate { return &Gate{FS: journal.OSFS} }

// OpenFile implements journal.FS.
func (g *Gate) OpenFile(name string, flag int, perm os.FileMode) (journal.File, error) {
	f, err := g.FS.OpenFile(name, flag, perm)
	return gateFile{f, g}, err
}

// Hold makes syncs wait from now on; held receives when the first one waits.
// open lets them continue; if err is not nil they, and all later writes and
// syncs, return err. open may be called more than once.
func (g *Gate) Hold() (held <-chan struct{}, open func(err error)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	gate := make(chan struct{})
	g.gate, g.held = gate, make(chan struct{}, 1)
	var once sync.Once
	return g.held, func(err error) {
		once.Do(func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.gate, g.fail = nil, err
			close(gate)
		})
	}
}

// Fail makes writes and syncs fail with err from now on; nil makes them work
// again.
func (g *Gate) Fail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fail = err
}

// Fill makes the disk full for new files, or not full again.
func (g *Gate) Fill(full bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.full = full
}

func (f gateFile) WriteAt(b []byte, off int64) (int, error) {
	if err := f.gate.failure(); err != nil {
		return 0, err
	}
	return f.File.WriteAt(b, off)
}

func (f gateFile) Sync() error {
	f.gate.wait()
	if err := f.gate.failure(); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f gateFile) Allocate(size int64) error {
	f.gate.mu.Lock()
	full := f.gate.full
	f.gate.mu.Unlock()
	if full {
		return syscall.ENOSPC
	}
	return f.File.Allocate(size)
}

func (g *Gate) wait() {
	g.mu.Lock()
	gate, held := g.gate, g.held
	g.mu.Unlock()
	if gate == nil {
		return
	}
	select {
	case held <- struct{}{}:
	default:
	}
	<-gate
}

func (g *Gate) failure() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.fail
}
