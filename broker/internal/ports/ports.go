package ports

import (
	"errors"
	"fmt"
	"net"
	"syscall"
)

// Port is an address to listen on, and the option that chose it.
type Port struct{ Address, ChosenBy string }

// Error is the error for a port that can't be opened. It wraps kind, if that is
// not nil, and err.
type Error struct {
	Port
	kind, err error
}

func (e *Error) Error() string {
	if !errors.Is(e.err, syscall.EADDRINUSE) {
		return fmt.Sprintf("can't listen on %s (%s): %v", e.Address, e.ChosenBy, e.err)
	}
	off := ""
	if e.ChosenBy == "--http" {
		off = ", or off"
	}
	return fmt.Sprintf("%s is taken: stop what listens there, or give %s another port%s", e.Address, e.ChosenBy, off)
}

func (e *Error) Unwrap() []error {
	if e.kind == nil {
		return []error{e.err}
	}
	return []error{e.kind, e.err}
}

// Listen opens a port. The error is an *Error.
func (p Port) Listen() (net.Listener, error) {
	l, err := net.Listen("tcp", p.Address)
	if err != nil {
		return nil, &Error{Port: p, err: err}
	}
	return l, nil
}

// Try checks whether ports can be opened: it opens and closes them. Its error
// also wraps kind.
func Try(all []Port, kind error) error {
	for _, p := range all {
		l, err := p.Listen()
		var failed *Error
		if errors.As(err, &failed) {
			failed.kind = kind
		}
		if err == nil {
			err = l.Close()
		}
		if err != nil {
			return err
		}
	}
	return nil
}
