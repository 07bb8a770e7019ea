package journal

import (
	"io"
	"os"
)

// FS is the file system that a journal reads and writes. Package journaltest
// has one that crashes. An FS must be safe for concurrent use.
type FS interface {
	// OpenFile opens a file as os.OpenFile does. A created file is durable
	// under its name only after SyncDir.
	OpenFile(name string, flag int, perm os.FileMode) (File, error)
	// Remove removes a file. The removal is durable after SyncDir.
	Remove(name string) error
	// Rename renames a file and replaces a file of the new name. It is atomic,
	// also across a crash, and durable after SyncDir.
	Rename(oldName, newName string) error
	// ReadDir returns the names in a directory, in any order.
	ReadDir(dir string) ([]string, error)
	// MkdirAll makes a directory and its parents where they are missing.
	MkdirAll(dir string, perm os.FileMode) error
	// SyncDir makes the names in a directory durable.
	SyncDir(dir string) error
}

// File is an open file. The journal calls WriteAt only within the size that
// Allocate or Truncate has set, except for files that it writes whole.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Sync makes the file's content and size durable.
	Sync() error
	// Allocate makes the file at least size bytes long and reserves the space
	// on the disk. Bytes that were never written read as zeros.
	Allocate(size int64) error
	// Truncate sets the size.
	Truncate(size int64) error
	// Size returns the size.
	Size() (int64, error)
}

// OSFS is the operating system's file system. On Linux its files use fdatasync
// and fallocate. Where a file system has no fallocate, and on other systems,
// Allocate only sets the size: a full disk then shows in a write, which fails
// the journal.
var OSFS FS = osFS{}

type osFS struct{}

func (osFS) OpenFile(name string, flag int, perm os.FileMode) (File, error) {
	f, err := os.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osFS) Remove(name string) error                    { return os.Remove(name) }
func (osFS) Rename(oldName, newName string) error        { return os.Rename(oldName, newName) }
func (osFS) MkdirAll(dir string, perm os.FileMode) error { return os.MkdirAll(dir, perm) }
func (osFS) SyncDir(dir string) error                    { return syncDir(dir) }

func (osFS) ReadDir(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

type osFile struct{ *os.File }

// Sync fails for a file that was deleted: what is synced into it is lost when
// the process ends.
func (f osFile) Sync() error {
	if err := dataSync(f.File); err != nil {
		return err
	}
	return mustHaveName(f.File)
}

func (f osFile) Allocate(size int64) error { return allocate(f.File, size) }

func (f osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// extend sets the size where space cannot be reserved.
func extend(f *os.File, size int64) error {
	info, err := f.Stat()
	if err != nil || info.Size() >= size {
		return err
	}
	return f.Truncate(size)
}
