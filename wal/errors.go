package wal

import "errors"

// Errors of opening a data directory.
var (
	// ErrInUse is returned when another process has the directory open.
	ErrInUse = errors.New("wal: data directory is in use by another process")
	// ErrIdentity is returned when the directory was founded for another
	// cluster, node or number of partitions.
	ErrIdentity = errors.New("wal: data directory does not match")
	// ErrFormat is returned when the directory was written by a newer version.
	ErrFormat = errors.New("wal: data directory has a newer format")
	// ErrReadOnly is returned when the directory cannot be written to.
	ErrReadOnly = errors.New("wal: data directory is not writable")
)

// Errors of an open store.
var (
	// ErrDamaged is returned when stored bytes are not what was written. The
	// message says what is wrong and where.
	ErrDamaged = errors.New("wal: damaged")
	// ErrFailed is returned by every write after one has failed, until the
	// store is opened again.
	ErrFailed = errors.New("wal: store has failed and takes no more writes")
	// ErrNoSpace is returned when the disk is full. Nothing was written.
	ErrNoSpace = errors.New("wal: no space left")
	// ErrNotFound is returned for an index or txid that the log does not hold.
	ErrNotFound = errors.New("wal: not found")
	// ErrTrimmed is returned for a txid that was trimmed.
	ErrTrimmed = errors.New("wal: trimmed")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("wal: closed")
)

// ErrBatch is returned when bytes are not a batch, or one of its records is
// malformed.
var ErrBatch = errors.New("wal: malformed batch")
