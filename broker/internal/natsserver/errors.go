package natsserver

import "errors"

var (
	// ErrNotReady is returned when the server does not accept clients: its port
	// is taken, or the context ended first.
	ErrNotReady = errors.New("broker: NATS server not ready")
	// ErrOptions is returned for an option that must not be as it is.
	ErrOptions = errors.New("broker: option out of range")
)
