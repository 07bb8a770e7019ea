package sqlview

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net"
)

// Errors of opening and running a view.
var (
	// ErrOptions is returned for an option that is out of its range.
	ErrOptions = errors.New("sqlview: option out of range")
	// ErrOtherLog is returned when the transaction at the database's mark is
	// another one in the log: the database belongs to another log, or this log
	// lost data.
	ErrOtherLog = errors.New("sqlview: the database has applied another log")
	// ErrNoPosition is returned when the row of a partition is missing in
	// cantus_marks.
	ErrNoPosition = errors.New("sqlview: the partition's mark is missing")
	// ErrNotParked is returned for a transaction that is not parked, or not any
	// more.
	ErrNotParked = errors.New("sqlview: not parked")
)

// databaseError is an error of the database, not of what was applied. It is
// retried whatever OnError decides.
type databaseError struct{ err error }

func (e *databaseError) Error() string { return "database: " + e.err.Error() }
func (e *databaseError) Unwrap() error { return e.err }

// transient reports whether an error is due to the state of the database and
// not to the statement. Errors of drivers are recognized by their methods.
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

// codeOf returns the SQLite result code of an error, or the class of its
// SQLSTATE.
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

// commitError classifies the error of a commit. If the database gives a reason
// that lies in the data, such as a deferred constraint, it is an error of
// Apply.
func commitError(err error) error {
	if code, class := codeOf(err); (code != 0 || class != "") && !transient(err) {
		return err
	}
	return &databaseError{err}
}
