package journal

import (
	"errors"
	"os"
	"syscall"
)

// syncDir has nothing to do: a directory cannot be flushed by itself there.
func syncDir(string) error { return nil }

// mustHaveName has nothing to do: an open file can't be deleted there.
func mustHaveName(*os.File) error { return nil }

func isNoSpace(err error) bool {
	const (
		handleDiskFull = syscall.Errno(39)
		diskFull       = syscall.Errno(112)
	)
	return errors.Is(err, handleDiskFull) || errors.Is(err, diskFull) || errors.Is(err, syscall.ENOSPC)
}
