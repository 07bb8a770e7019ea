// Package hangup receives SIGHUP from the earliest moment that a Go program
// can.
//
// A SIGHUP that nobody receives ends the process. A program with many packages
// spends tens of milliseconds on initializing them before main begins. This
// package depends on nothing but the standard library, and its import path
// comes early in the order of initialization, so a node that is told to reload
// soon after it was started goes on. Before that, while Go's own runtime
// starts, the signal still ends the process.
package hangup

import (
	"os"
	"os/signal"
	"syscall"
)

var signals = make(chan os.Signal, 1)

// Commands other than serve end on SIGHUP, as programs do.
func init() {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		Signals()
	}
}

// Signals returns the channel of received SIGHUPs. It holds one that is not yet
// read. From the first call on, SIGHUP does not end the process. Windows has no
// SIGHUP.
func Signals() <-chan os.Signal {
	signal.Notify(signals, syscall.SIGHUP)
	return signals
}
