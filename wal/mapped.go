package wal

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// mappedFiles allocates blocks of Badger's new files at the moment in which
// Badger maps them, after it has created them and before it copies into the
// mapping. A file for which there is no space is then an error that Badger
// returns, and not a SIGBUS that ends the process. A table's blocks are all
// allocated. Of a log only the first ones are: room allocates more before each
// write.
//
// With a table it allocates blocks for the record that Badger then appends to
// its manifest. Without space for all of it Badger would write a part, and the
// next record behind that: no start could read the manifest.
//
// Where Badger flushes a memtable it repeats what failed. Where it compacts it
// ignores the error: it removes the tables that it has merged, although a new
// one is missing. So a compaction gets no error, but waits for the space. In
// other places Badger can't go on without the file. For those there is a
// reserve: the space of a file without a name, which is released when a file
// needs it.
//
// It is safe for concurrent use.
type mappedFiles struct {
	dir string
	// allocate allocates the blocks for a file's first bytes. The error matches
	// errors.ErrUnsupported if the file system can't.
	allocate func(fd uintptr, bytes int64) error
	// unmappable, if not nil, reports whether a file can't be mapped. It is for
	// tests.
	unmappable func(path string) bool

	// lacking is called again and again while a compaction waits, with the
	// reason.
	lacking func(error)
	// waiting is how many tables of compactions wait for space.
	waiting atomic.Int64

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
	// manifestBytes is how much of Badger's manifest is allocated beyond its
	// end. A record takes some ten bytes for each table that it adds or
	// removes.
	manifestBytes = 64 << 10
	// spareDescriptors is how many files the process must be able to open
	// before a compaction makes one.
	spareDescriptors = 32
)

// newMappedFiles returns the mappedFiles for a Badger in dir, which must exist.
func newMappedFiles(dir string, allocate func(fd uintptr, bytes int64) error, lacking func(error)) (*mappedFiles, error) {
	m := &mappedFiles{dir: dir, allocate: allocate, lacking: lacking, vlog: firstLogBytes, mem: firstLogBytes}
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

// created is called when Badger maps a new file of the given length. It
// allocates the file's blocks and calls mapFile. If either fails, it removes
// the file: Badger uses another name the next time. For a table of a compaction
// it waits until both succeed.
func (m *mappedFiles) created(fd uintptr, path string, length int64, mapFile func() error) error {
	merged := filepath.Ext(path) == ".sst" && !flushes()
	create := func() error {
		if err := m.allocateNew(fd, path, length, merged); err != nil {
			return err
		}
		return mapFile()
	}
	if merged {
		m.await(create)
		return nil
	}
	if err := create(); err != nil {
		// Badger leaves the file open, and fallocate some of the blocks.
		return errors.Join(err, os.Truncate(path, 0), os.Remove(path))
	}
	return nil
}

// awaitFile waits until a file can be made. It is called before a compaction
// makes a table: Badger also ignores that it could not create the file, for
// lack of inodes or descriptors.
func (m *mappedFiles) awaitFile() { m.await(m.makeFile) }

// await calls try until it succeeds. The compaction that called it waits
// meanwhile.
func (m *mappedFiles) await(try func() error) {
	err := try()
	if err == nil {
		return
	}
	m.waiting.Add(1)
	defer m.waiting.Add(-1)
	for err != nil {
		m.lacking(err)
		time.Sleep(roomInterval / 4)
		err = try()
	}
}

// makeFile makes a file and removes it. The error wraps ErrNoSpace if few
// inodes are left.
func (m *mappedFiles) makeFile() error {
	if err := spareFiles(m.dir); err != nil {
		return err
	}
	path := filepath.Join(m.dir, "merge.tmp")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	err = m.allocate(f.Fd(), 1)
	if errors.Is(err, errors.ErrUnsupported) {
		err = nil
	}
	_ = f.Close()
	_ = os.Remove(path) // another compaction may have removed it
	return errors.Join(err, m.spareDescriptors())
}

// spareDescriptors returns an error unless the process can open some files
// more than the one that is to be made: connections may be accepted meanwhile.
func (m *mappedFiles) spareDescriptors() (err error) {
	var files []*os.File
	for err == nil && len(files) < spareDescriptors {
		var f *os.File
		if f, err = os.Open(m.dir); err == nil {
			files = append(files, f)
		}
	}
	for _, f := range files {
		_ = f.Close()
	}
	return err
}

// flushes reports whether it runs where Badger flushes a memtable.
func flushes() bool {
	pcs := make([]uintptr, 32)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	for {
		f, more := frames.Next()
		if strings.HasSuffix(f.Function, ".handleMemTableFlush") {
			return true
		}
		if !more {
			return false
		}
	}
}

// allocateNew allocates the blocks of a new file, from the reserve if there are
// no others. It leaves the logs' part of the reserve to them if the file is a
// compaction's.
func (m *mappedFiles) allocateNew(fd uintptr, path string, length int64, merged bool) error {
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
	allocate := func() error {
		err := m.allocate(fd, length)
		if err == nil && filepath.Ext(path) == ".sst" {
			err = m.allocateManifest(filepath.Dir(path))
		}
		if errors.Is(err, errors.ErrUnsupported) {
			return nil
		}
		return err
	}
	keep := int64(0)
	if merged {
		keep = m.vlog + m.mem
	}
	err := allocate()
	for err != nil && m.held > keep && isNoSpace(err) {
		m.shrink(max(m.held-length, keep))
		err = allocate()
	}
	return err
}

// allocateManifest allocates blocks for what Badger appends to its manifest.
func (m *mappedFiles) allocateManifest(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, badger.ManifestFilename), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // Badger reports that
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return m.allocate(f.Fd(), info.Size()+manifestBytes)
}

func (m *mappedFiles) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.reserve != nil {
		m.reserve.Close()
		m.reserve, m.held = nil, 0
	}
}
