package main

import (
	"context"
	"errors"

	"github.com/cantuslog/cantus/cmd/internal/bench"
)

type benchCmd struct {
	bench.Command
}

// Run measures.
func (c *benchCmd) Run(ctx context.Context, p *program) error {
	err := c.Command.Run(ctx, p.out, p.errOut)
	if errors.Is(err, bench.ErrFlags) {
		return &failure{status: exitUsage, err: err}
	}
	return err
}
