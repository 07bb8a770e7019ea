package wal

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
)

// mappedFiles allocates blocks of Badger's new files at the moment in which
// Badger maps them, after it has created them and before it copies into the
// mapping. A file for which there is no space is then an error that Badger
// returns, and not a SIGBUS that ends the process. A table's blocks are all
// allocated. Of a log only the first ones are: room allocates more before each
// write.
//
// Where Badger flushes a memtable or compacts, it repeats what failed. In other
// places it can't go on without the file. For those there is a reserve: the
// space of a file without a name, which is released when a file needs it.
//
// It is safe for concurrent use.
type mappedFiles struct {
	// allocate allocates the blocks for a file's first bytes. The error matches
	// errors.ErrUnsupported if the file system can't.
	allocate func(fd uintptr, bytes int64) error

	// stuck is set when Badger found no space to flush a memtable, until the
	// memtable is flushed.
	stuck atomic.Bool

	mu      sync.Mutex
	reserve *os.File // nil if there is none
	held    int64    // bytes that the reserve has
	// How much of a new value log and of a new memtable log is allocated.
	vlog, mem int64
}

const (
	// firstLogBytes is how much of a new log is allocated, unless more is
	// about to be written to it. The page cache begins a file with small
	// folios.
	firstLogBytes = 64 << 10
	// reserveBytes is the usual size of the reserve: for a value log and a
	// memtable log.
	reserveBytes = 2 * firstLogBytes
)

// newMappedFiles returns the mappedFiles for a Badger in dir, which must exist.
func newMappedFiles(dir string, allocate func(fd uintptr, bytes int64) error) (*mappedFiles, error) {
	m := &mappedFiles{allocate: allocate, vlog: firstLogBytes, mem: firstLogBytes}
	path := filepath.Join(dir, "reserve.tmp")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	if os.Remove(path) != nil { // not while it is open, on this system
		return m, errors.Join(f.Close(), os.Remove(path))
	}
	m.reserve = f
	return m, nil
}

// hold makes the reserve as large as given. The error wraps ErrNoSpace if there
// is no space for it.
func (m *mappedFiles) hold(bytes int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.reserve == nil || bytes == m.held {
		return nil
	}
	err := m.reserve.Truncate(bytes)
	if err == nil {
		err = m.allocate(m.reserve.Fd(), bytes)
	}
	if err == nil {
		m.held = bytes
	} else {
		m.shrink(0)
	}
	if errors.Is(err, errors.ErrUnsupported) {
		return nil // the free space is all there is to go by
	}
	return noSpace(err)
}

// shrink releases the reserve beyond the given size. m.mu is held.
func (m *mappedFiles) shrink(bytes int64) {
	m.held = max(bytes, 0)
	_ = m.reserve.Truncate(m.held)
}

// holdLogs sets how much of a new value log and of a new memtable log is
// allocated, and makes the reserve as large. The error is that of hold.
func (m *mappedFiles) holdLogs(vlog, mem int64) error {
	m.mu.Lock()
	m.vlog, m.mem = firstBytes(vlog), firstBytes(mem)
	bytes := m.vlog + m.mem
	m.mu.Unlock()
	return m.hold(bytes)
}

// firstBytes returns how much of a new log is allocated for a write.
func firstBytes(write int64) int64 {
	if write <= firstLogBytes {
		return firstLogBytes
	}
	return wholeFolios(write)
}

// created is called when Badger is about to map a new file of the given length.
// If there is no space for it, created removes the file: Badger uses another
// name the next time.
func (m *mappedFiles) created(fd uintptr, path string, length int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch name := filepath.Base(path); {
	case filepath.Ext(name) == ".vlog":
		length = min(length, m.vlog)
	case filepath.Ext(name) == ".mem":
		length = min(length, m.mem)
	case name == discardFile:
		length = min(length, discardRoom)
	}
	err := m.allocate(fd, length)
	for err != nil && m.held > 0 && isNoSpace(err) {
		m.shrink(m.held - length)
		err = m.allocate(fd, length)
	}
	if err == nil || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return errors.Join(err, os.Remove(path))
}

func (m *mappedFiles) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.reserve != nil {
		m.reserve.Close()
		m.reserve, m.held = nil, 0
	}
}
