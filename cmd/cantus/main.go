package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the linker, as in `make build`; see versionOf for the rest.
var version string

func main() {
	// The first signal requests a clean stop. After that signals have their
	// default effect, so that a second one ends the program at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)

	p := &program{in: os.Stdin, out: os.Stdout, errOut: os.Stderr}
	os.Exit(p.run(ctx, os.Args[1:]))
}
