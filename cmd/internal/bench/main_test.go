package bench_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/cmd/internal/bench"
)

// TestMain lets the test binary stand for `cantus`: bench starts its own
// executable as a server, with the arguments of a server.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "serve":
			end(serve(os.Args[2:]))
		case "bench":
			end(run(os.Args[2:]))
		}
	}
	os.Exit(m.Run())
}

func end(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func serve(args []string) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	data := flags.String("data", "", "")
	listen := flags.String("listen", "", "")
	prefix := flags.String("prefix", "", "")
	partitions := flags.Int("partitions", 0, "")
	name, cluster, raft := flags.String("name", "", ""), flags.String("cluster", "", ""), flags.String("raft", "", "")
	var routes, bootstrap []string
	list := func(to *[]string) func(string) error {
		return func(text string) error { *to = strings.Split(text, ","); return nil }
	}
	flags.Func("routes", "", list(&routes))
	flags.Func("bootstrap", "", list(&bootstrap))
	flags.String("http", "", "")
	flags.String("log-level", "", "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	node, err := broker.Open(ctx, *data, broker.Options{
		ClientListen: *listen, Prefix: *prefix, Partitions: *partitions,
		Name: *name, ClusterListen: *cluster, RaftListen: *raft, Routes: routes, Bootstrap: bootstrap,
	})
	if err != nil {
		return err
	}
	fmt.Println("cantus: ready nats=" + node.ClientURL())
	select {
	case <-ctx.Done():
	case <-node.Done():
	}
	return node.Close()
}

func run(args []string) error {
	var c bench.Command
	parser, err := kong.New(&c)
	if err != nil {
		return err
	}
	if _, err := parser.Parse(args); err != nil {
		return err
	}
	return c.Run(context.Background(), os.Stdout, os.Stderr)
}
