package wal

import "os"

// Allocate allocates the blocks for a file's first bytes.
func Allocate(path string, bytes int64) error { return allocate(path, bytes) }

// WriteOutEnd returns up to where a file of at most most written bytes is
// written out.
func WriteOutEnd(f *os.File, most int64) int64 { return writeOutEnd(f, most) }
