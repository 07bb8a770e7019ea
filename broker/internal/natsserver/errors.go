package natsserver

import "errors"

var (
	// ErrNotReady is returned if the server does not accept clients, for
	// example because its port is taken, or because the context ended first.
	ErrNotReady = errors.New("broker: NATS server not ready")
	// ErrOptions is returned for an invalid option.
	ErrOptions = errors.New("broker: option out of range")
)
