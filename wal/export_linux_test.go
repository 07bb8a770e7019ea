package wal

import "os"

// Allocate allocates the blocks for a file's first bytes.
func Allocate(path string, bytes int64) error { return allocate(path, bytes) }

// WriteOutEnd returns up to where a file of at most most written bytes is
// written out.
func WriteOutEnd(f *os.File, most int64) int64 { return writeOutEnd(f, most) }

// AllocateWhatIsMappedIn has allocate called for the new files in dir, until
// the function that it returns is called.
func AllocateWhatIsMappedIn(dir string, allocate func(fd uintptr, bytes int64) error) (func(), error) {
	m, err := newMappedFiles(dir, allocate, func(error) {})
	if err != nil {
		return nil, err
	}
	of, err := m.attach(dir)
	return func() { of(); m.close() }, err
}
