package main

import (
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

// The exit statuses. They are documented in doc.go and in the help, and
// scripts rely on them.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitConflict    = 3
	exitUnavailable = 4
	exitUnknown     = 5
)

// failure is an error with the exit status of the program. An error that is not
// a failure means exitFailed.
type failure struct {
	status int
	err    error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func failf(status int, format string, args ...any) error {
	return &failure{status: status, err: fmt.Errorf(format, args...)}
}

func usagef(format string, args ...any) error { return failf(exitUsage, format, args...) }

// packagePrefix matches the beginning of an error's text that means nothing to
// a user: the package's name, and the word for an option.
var packagePrefix = regexp.MustCompile(`(^|: |\n)(?:(?:wal|broker|raftstore): (?:option out of range: )?|cluster: bad command: )`)

// errorText returns an error's text for the user.
func errorText(err error) string { return packagePrefix.ReplaceAllString(err.Error(), "$1") }

// exitStatus returns the status that err ends the program with.
func exitStatus(err error) int {
	var f *failure
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &f):
		return f.status
	}
	return exitFailed
}

// statuses maps the reasons of refusals to exit statuses; a reason that is
// not in it means exitFailed.
var statuses = map[subjects.Reason]int{
	subjects.BadRequest:  exitUsage,
	subjects.TooLarge:    exitUsage,
	subjects.IDReused:    exitUsage,
	subjects.Expired:     exitConflict,
	subjects.Conflict:    exitConflict,
	subjects.WrongLast:   exitConflict,
	subjects.Busy:        exitUnavailable,
	subjects.Unavailable: exitUnavailable,
	subjects.StorageFull: exitUnavailable,
	subjects.Unknown:     exitUnknown,
}

// retryDelay returns how long a refusal asks to wait before the request is sent
// again, 0 if err is none or asks for nothing.
func retryDelay(err error) time.Duration {
	if e, ok := errors.AsType[*subjects.Error](err); ok {
		return e.RetryDelay()
	}
	return 0
}

// refusal returns the failure for a node's refusal.
func refusal(e *subjects.Error) error {
	status, ok := statuses[e.Reason]
	if !ok {
		status = exitFailed
	}
	return &failure{status: status, err: e}
}
