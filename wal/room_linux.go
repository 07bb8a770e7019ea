package wal

import (
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
	for {
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, bytes)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		err = &os.PathError{Op: "fallocate", Path: path, Err: err}
	}
	return errors.Join(err, f.Close())
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
	return end
}
