package journal

import (
	"errors"
	"os"
	"syscall"
)

// syncDir does nothing: Windows cannot flush a directory by itself.
func syncDir(string) error { return nil }

// mustHaveName does nothing: Windows does not delete open files.
func mustHaveName(*os.File) error { return nil }

func isNoSpace(err error) bool {
	const (
		handleDiskFull = syscall.Errno(39)
		diskFull       = syscall.Errno(112)
	)
	return errors.Is(err, handleDiskFull) || errors.Is(err, diskFull) || errors.Is(err, syscall.ENOSPC)
}
