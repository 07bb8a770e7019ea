package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/nats-io/nats.go"
)

const usage = `usage:
bank [--nats URL] [--db FILE|postgres://…] COMMAND
  open NAME AMOUNT        an account
  transfer FROM TO AMOUNT [REQUEST]
  close NAME              an empty account
  show                    the accounts
  watch                   the accounts, live
  rebuild                 the database, from the log's start
  load [--name N] [--accounts N] [--each N] [--transfers N] [--workers N]`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "bank:", err)
		if errors.Is(err, errUsage) {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

var errUsage = errors.New(usage)

// run executes the command line.
func run(ctx context.Context, args []string, w io.Writer) error {
	flags := flag.NewFlagSet("bank", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	url := flags.String("nats", "nats://127.0.0.1:4222", "URL of the log")
	location := flags.String("db", "bank.db", "a SQLite file, or a PostgreSQL URL")
	if err := flags.Parse(args); err != nil || flags.NArg() == 0 {
		return errUsage
	}
	nc, err := nats.Connect(*url, nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true))
	if err != nil {
		return err
	}
	defer nc.Close()
	if !nc.IsConnected() {
		fmt.Fprintf(os.Stderr, "bank: no node at %s yet: waiting for one\n", *url)
	}
	b, err := openBank(ctx, nc, *location)
	if err != nil {
		return err
	}
	if err := errors.Join(command(ctx, b, flags.Arg(0), flags.Args()[1:], w), b.close()); err != nil {
		return err
	}
	if name := flags.Arg(0); name == "open" || name == "transfer" || name == "close" {
		_, err = fmt.Fprintln(w, "done:", strings.Join(flags.Args(), " "))
	}
	return err
}

// command executes one command.
func command(ctx context.Context, b *bank, name string, args []string, w io.Writer) error {
	if name == "load" {
		return loadCommand(ctx, b, args, w)
	}
	amount := int64(0)
	if (name == "open" && len(args) == 2) || (name == "transfer" && len(args) >= 3) {
		at := map[string]int{"open": 1, "transfer": 2}[name]
		var err error
		if amount, err = strconv.ParseInt(args[at], 10, 64); err != nil {
			return errUsage
		}
	}
	switch fmt.Sprint(name, len(args)) {
	case "open2":
		return b.open(ctx, opened{args[0], amount})
	case "transfer3": // the generated request makes it unsafe to repeat
		return b.transfer(ctx, transferred{nats.NewInbox()[len("_INBOX."):], args[0], args[1], amount})
	case "transfer4":
		return b.transfer(ctx, transferred{args[3], args[0], args[1], amount})
	case "close1":
		return b.closeAccount(ctx, closed{args[0]})
	case "show0":
		if err := b.catchUp(ctx); err != nil {
			return err
		}
		return b.show(ctx, w)
	case "watch0":
		return b.watch(ctx, w)
	case "rebuild0":
		if err := b.view.Reset(ctx, nil, b.store.empty); err != nil {
			return err
		}
		return b.catchUp(ctx)
	}
	return fmt.Errorf("%q is not a command, or has wrong arguments; %w", strings.Join(append([]string{name}, args...), " "), errUsage)
}

func loadCommand(ctx context.Context, b *bank, args []string, w io.Writer) error {
	l := load{}
	flags := flag.NewFlagSet("load", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&l.name, "name", "load", "prefix of the names of requests")
	flags.IntVar(&l.accounts, "accounts", 50, "number of accounts")
	flags.Int64Var(&l.each, "each", 100, "initial balance of each account")
	flags.IntVar(&l.transfers, "transfers", 1000, "number of transfers")
	flags.IntVar(&l.workers, "workers", 8, "number of concurrent transfers")
	if err := flags.Parse(args); err != nil || flags.NArg() > 0 || l.accounts < 2 || l.each < 1 || l.workers < 1 {
		return errUsage
	}
	return l.run(ctx, b, w)
}
