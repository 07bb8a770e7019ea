package journal

import (
	"errors"
	"fmt"
)

// Errors of a journal in use.
var (
	// ErrClosed is returned when the journal has been closed.
	ErrClosed = errors.New("journal: closed")

	// ErrFailed is returned when an operation on the disk has failed. It is not
	// known whether the frame that met the failure will be there after the next
	// Open. The journal accepts nothing more until it is opened again.
	ErrFailed = errors.New("journal: failed, to be opened again")

	// ErrNoSpace is returned when the disk is full. Unless the error also
	// matches ErrFailed nothing was written, and the journal works again as
	// soon as there is space.
	ErrNoSpace = errors.New("journal: no space left")

	// ErrTooLarge is returned when the operations of one Commit do not fit
	// into one segment. Nothing was written.
	ErrTooLarge = errors.New("journal: operations larger than a segment")

	// ErrNotSynced is returned when Release is asked for a frame that has not
	// been synced.
	ErrNotSynced = errors.New("journal: release past the last synced frame")
)

// Errors of opening a journal.
var (
	// ErrDamaged is returned when files are not what the journal wrote: bytes
	// changed, a file cut short or missing. The message names file and offset.
	ErrDamaged = errors.New("journal: damaged")

	// ErrVersion is returned when a file was written by a version whose format
	// this one does not know.
	ErrVersion = errors.New("journal: unknown format version")

	// ErrOtherStore is returned when the journal belongs to a store other than
	// the one that Options.StoreID names.
	ErrOtherStore = errors.New("journal: belongs to another store")

	// ErrOptions is returned when an option is out of range.
	ErrOptions = errors.New("journal: bad option")
)

// damaged returns an error that matches ErrDamaged, for an offset of a file.
func damaged(file string, off int64, format string, args ...any) error {
	return fmt.Errorf("%s at offset %d: %s: %w", file, off, fmt.Sprintf(format, args...), ErrDamaged)
}

// noSpace wraps the system's error for a full disk in ErrNoSpace, and returns
// other errors unchanged.
func noSpace(err error) error {
	if err == nil || errors.Is(err, ErrNoSpace) || !isNoSpace(err) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrNoSpace, err)
}
