package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
)

// causes are errors of the system that do not show damage, with their meaning
// and what to do about them.
var causes = []struct {
	errno syscall.Errno
	kind  error // this package's error for it, or nil
	cure  string
}{
	{syscall.ENOSPC, ErrNoSpace, "free some space, or some files if there is space, on this file system"},
	{syscall.EDQUOT, ErrNoSpace, "the quota of this user or directory is used up: raise it, or free some space"},
	{syscall.EROFS, ErrReadOnly, "mount the file system for writing, and find out why it is not"},
	{syscall.EACCES, ErrReadOnly, "give the directory and all files in it to the user that runs the node"},
	{syscall.EPERM, ErrReadOnly, "give the directory and all files in it to the user that runs the node"},
	{syscall.EMFILE, nil, "the process may not open more files: raise its limit (ulimit -n, LimitNOFILE=)"},
	{syscall.ENFILE, nil, "the machine may not open more files: raise its limit (fs.file-max)"},
	{syscall.ENOMEM, nil, "the machine has no memory left, or the process may not map more (vm.max_map_count)"},
	{syscall.EIO, nil, "the disk did not read or write: the system's log (dmesg) says more"},
	{syscall.ESTALE, nil, "the file system is not there any more: mount it again"},
}

// explain adds the meaning to an error of the system, and wraps it in this
// package's error for it. environmental reports whether err is such an error:
// what is stored is then not damaged.
func explain(err error) (explained error, environmental bool) {
	if err == nil || errors.Is(err, errExplained) {
		return err, err != nil
	}
	for _, c := range causes {
		// Badger keeps only the text of some errors.
		if !errors.Is(err, c.errno) && !strings.Contains(err.Error(), c.errno.Error()) {
			continue
		}
		if c.kind != nil && !errors.Is(err, c.kind) {
			err = fmt.Errorf("%w: %w", c.kind, err)
		}
		return explainedError{err, c.cure}, true
	}
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: %w", ErrReadOnly, err), true
	}
	return err, errors.Is(err, ErrNoSpace)
}

// errExplained is matched by every error that explain has returned.
var errExplained = errors.New("explained")

type explainedError struct {
	err  error
	cure string
}

func (e explainedError) Error() string        { return e.err.Error() + ": " + e.cure }
func (e explainedError) Unwrap() error        { return e.err }
func (e explainedError) Is(target error) bool { return target == errExplained }

// isNoSpace reports whether err says that the file system or a quota is full.
func isNoSpace(err error) bool {
	e, _ := explain(err)
	return errors.Is(e, ErrNoSpace)
}
