package bench

import "errors"

var (
	// ErrFlags is returned when flags contradict each other or are out of
	// range. The message says which, and what would be right.
	ErrFlags = errors.New("bench: flags")
	// ErrServer is returned when a server that bench started does not become
	// ready, or ends by itself. The message has the end of its output.
	ErrServer = errors.New("bench: server")
	// ErrStalled is returned when requests are in flight and none was answered
	// for a long time.
	ErrStalled = errors.New("bench: no answers")
	// ErrAnswer is returned when a server sends an unexpected answer: an error
	// other than a conflict or a full queue, or one that cannot be decoded.
	ErrAnswer = errors.New("bench: unexpected answer")
)
