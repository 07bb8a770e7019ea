package main

import (
	"context"
	"errors"

	"github.com/cantuslog/cantus/cmd/internal/bench"
)

type benchCmd struct {
	bench.Command
}

func (*benchCmd) Help() string {
	return `Starts the nodes that it measures, each a process of its own on loopback, unless --server names running ones. A line
for each second goes to standard error, a table or JSON to standard output.

Examples:

  cantus bench append --nodes 3 --locks 2 --vs jetstream
  cantus bench append --nodes 3 --rate 5000 --conns 16
  cantus bench append --vs jetstream --sweep-in-flight 1,4,16,64,256 --svg append.svg
  cantus bench read --client go --vs jetstream
  cantus bench failover --nodes 3 --kills 30 --signal KILL`
}

// Run measures.
func (c *benchCmd) Run(ctx context.Context, p *program) error {
	err := c.Command.Run(ctx, p.out, p.errOut)
	if errors.Is(err, bench.ErrFlags) {
		return &failure{status: exitUsage, err: err}
	}
	return err
}
