package wal

import (
	"bytes"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// allocate allocates the blocks for a file's first bytes and keeps its length.
// The error matches errors.ErrUnsupported if the file system can't.
func allocate(path string, bytes int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err = allocateBlocks(f.Fd(), bytes); err != nil {
		err = &os.PathError{Op: "fallocate", Path: path, Err: err}
	}
	return errors.Join(err, f.Close())
}

// deallocate gives back the blocks of a file from one byte to another, in which
// nothing was written.
func deallocate(path string, from, to int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, to-from)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return &os.PathError{Op: "fallocate", Path: path, Err: err}
	}
	return nil
}

// writtenBytes returns how much was written to a file that is written in order,
// at most a block too much; -1 if that is unknown.
func writtenBytes(path string) int64 {
	f, err := os.Open(path)
	if err != nil {
		return -1
	}
	defer f.Close()
	end, err := f.Seek(0, unix.SEEK_HOLE) // allocated blocks without data are a hole
	if err != nil {
		return -1
	}
	// Unless they were read, by the system's read-ahead for instance.
	block := make([]byte, 64<<10)
	for end > 0 {
		start := (end - 1) / int64(len(block)) * int64(len(block))
		n, err := f.ReadAt(block[:end-start], start)
		if err != nil {
			return end
		}
		if written := len(bytes.TrimRight(block[:n], "\x00")); written > 0 {
			const page = 4 << 10
			return min(end, start+int64(written+page-1)/page*page)
		}
		end = start
	}
	return 0
}
