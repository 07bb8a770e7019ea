package bench

import "errors"

var (
	// ErrFlags is returned when flags contradict each other or lie out of
	// their range; the text says which, and what would be right.
	ErrFlags = errors.New("bench: flags")
	// ErrServer is returned when a server that bench started does not get
	// ready, or ends by itself; the text holds the end of what it printed.
	ErrServer = errors.New("bench: server")
	// ErrStalled is returned when requests are in flight and nothing has been
	// answered for a long time.
	ErrStalled = errors.New("bench: no answers")
	// ErrAnswer is returned when a server gives an answer that the workload
	// has no use for: an error other than a conflict or a full queue, or one
	// that cannot be understood.
	ErrAnswer = errors.New("bench: unexpected answer")
)
