package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// options is the command line.
type options struct {
	Members         int
	Conns, InFlight int
	Size            int
	Locks, Keys     int
	Duration        time.Duration
	WarmUp          time.Duration
	Rounds          int
	Dir             string
	Cantus          string
	JSON            bool
}

// errFlags is returned for an invalid command line. The message says what would
// be right.
var errFlags = errors.New("flags")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	fmt.Fprintln(os.Stderr, "bench:", err)
	if errors.Is(err, errFlags) {
		os.Exit(2)
	}
	os.Exit(1)
}

// run executes the command line. Cancelling ctx ends it early.
func run(ctx context.Context, args []string, out, errOut io.Writer) error {
	if len(args) > 0 && args[0] == memberVerb {
		return serveMember(ctx, args[1:], out)
	}
	o, err := parse(args, errOut)
	if err != nil {
		return err
	}
	return measureAll(ctx, o, out, errOut)
}

func parse(args []string, errOut io.Writer) (*options, error) {
	o := &options{}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(errOut)
	f.IntVar(&o.Members, "members", 1, "etcd members, 1, 3 or 5, and Cantus nodes")
	f.IntVar(&o.Conns, "conns", 8, "connections, spread over the members")
	f.IntVar(&o.InFlight, "in-flight", 256, "transactions in flight on each connection")
	f.IntVar(&o.Size, "size", 256, "payload of a transaction in `bytes`")
	f.IntVar(&o.Locks, "locks", 2, "keys that a transaction compares and puts")
	f.IntVar(&o.Keys, "keys", 1_000_000, "keys that they are taken from, at random")
	f.DurationVar(&o.Duration, "duration", 10*time.Second, "how long a round is measured")
	f.DurationVar(&o.WarmUp, "warm-up", 2*time.Second, "how long a round runs before it is measured")
	f.IntVar(&o.Rounds, "rounds", 3, "rounds")
	f.StringVar(&o.Dir, "dir", "", "where temporary data `directories` are made (default the system's)")
	f.StringVar(&o.Cantus, "cantus", "", "a cantus `executable` to measure in turns with etcd")
	f.BoolVar(&o.JSON, "json", false, "print the report as JSON")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %w", errFlags, err)
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("%w: %q: there are no arguments, only flags", errFlags, f.Arg(0))
	}
	return o, o.check()
}

// maxLocks is what Cantus allows in a transaction; etcd's own limit is 128
// operations.
const maxLocks = 64

func (o *options) check() error {
	for _, r := range []struct {
		flag               string
		value, least, most int
	}{
		{"--conns", o.Conns, 1, 10_000},
		{"--in-flight", o.InFlight, 1, 100_000},
		{"--size", o.Size, 0, 500_000},
		{"--locks", o.Locks, 1, maxLocks},
		{"--keys", o.Keys, 1, 100_000_000},
		{"--rounds", o.Rounds, 1, 1000},
	} {
		if r.value < r.least || r.value > r.most {
			return fmt.Errorf("%w: %s %d: it must be from %d to %d", errFlags, r.flag, r.value, r.least, r.most)
		}
	}
	switch {
	case o.Members != 1 && o.Members != 3 && o.Members != 5:
		return fmt.Errorf("%w: --members %d: it must be 1, 3 or 5", errFlags, o.Members)
	case o.Locks > o.Keys:
		return fmt.Errorf("%w: --locks %d out of --keys %d: there are not so many different ones", errFlags, o.Locks, o.Keys)
	case o.Duration <= 0 || o.WarmUp < 0:
		return fmt.Errorf("%w: --duration %v and --warm-up %v: they must be above 0, and not negative", errFlags, o.Duration, o.WarmUp)
	}
	return nil
}
