package wal

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// allocate gives a file the blocks for its first so many bytes and leaves its
// length. errors.ErrUnsupported says that the file system can't.
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

// writtenBytes is how much of a file that is written from its beginning on was
// written, up to a block more; -1 if that is not known.
func writtenBytes(path string) int64 {
	f, err := os.Open(path)
	if err != nil {
		return -1
	}
	defer f.Close()
	end, err := f.Seek(0, unix.SEEK_HOLE) // what is allocated ahead counts as a hole
	if err != nil {
		return -1
	}
	return end
}
