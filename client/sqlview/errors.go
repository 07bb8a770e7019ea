package sqlview

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net"
)

// Met when opening or running.
var (
	// ErrOptions is returned for an option that is out of its range.
	ErrOptions = errors.New("sqlview: option out of range")
	// ErrOtherLog is returned when the transaction at the database's mark is
	// another one in the log: the database belongs to another log, or this one lost
	// data.
	ErrOtherLog = errors.New("sqlview: the database has applied another log")
	// ErrNoPosition is returned when a partition's row is gone from cantus_marks.
	ErrNoPosition = errors.New("sqlview: the partition's mark is missing")
	// ErrNotParked is returned for a transaction that is not parked (any more).
	ErrNotParked = errors.New("sqlview: not parked")
)

// away is an error of the database, not of what was to be applied: it is tried
// again whatever OnError says.
type databaseError struct{ err error }

func (e *databaseError) Error() string { return "database: " + e.err.Error() }
func (e *databaseError) Unwrap() error { return e.err }

// transient reports whether an error comes of the database's state and not of
// what it was asked. Drivers are known by the methods of their errors.
func transient(err error) bool {
	for _, known := range []error{driver.ErrBadConn, sql.ErrConnDone, context.Canceled, context.DeadlineExceeded, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed} {
		if errors.Is(err, known) {
			return true
		}
	}
	var network net.Error
	if errors.As(err, &network) {
		return true
	}
	code, class := codeOf(err)
	switch class {
	case "08", "40", "53", "55", "57", "58": // connection, rollback, resources, object state, operator, system
		return true
	}
	switch code & 0xff {
	case 5, 6, 10, 13, 14: // BUSY, LOCKED, IOERR, FULL, CANTOPEN
		return true
	}
	return false
}

// codeOf returns an error's SQLite result code, or the class of its SQLSTATE.
func codeOf(err error) (code int, class string) {
	var sqlite interface {
		error
		Code() int
	}
	if errors.As(err, &sqlite) {
		return sqlite.Code(), ""
	}
	var state interface {
		error
		SQLState() string
	}
	if errors.As(err, &state) && len(state.SQLState()) == 5 {
		return 0, state.SQLState()[:2]
	}
	return 0, ""
}

// ofCommit sorts an error of a commit: one that the database gives a reason
// for which is in the data, such as a deferred constraint, is Apply's.
func commitError(err error) error {
	if code, class := codeOf(err); (code != 0 || class != "") && !transient(err) {
		return err
	}
	return &databaseError{err}
}
