package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"text/tabwriter"

	"github.com/dustin/go-humanize"

	"github.com/cantuslog/cantus/wal"
)

type verifyCmd struct {
	Dir string `arg:"" name:"DIR" type:"path" help:"Data directory of a node that is stopped."`
}

func (*verifyCmd) Help() string {
	return `Reads all that is stored, checks every checksum, that the txids have no gap, and computes the digest again.
Of each partition it prints the digest at its last txid: replicas at the same txid have the same. It first
completes what a crash interrupted, as a node does when it starts: to keep a damaged directory just as it is,
work on a copy.

Exit status: 0 if all is whole, 1 if anything is damaged, 2 if DIR can't be checked: it is no
data directory, or a node has it open.`
}

// Run checks a data directory and prints a line for each partition.
func (c *verifyCmd) Run(p *program) error {
	if info, err := os.Stat(c.Dir); err != nil {
		return usagef("data directory: %w", err)
	} else if !info.IsDir() {
		return usagef("data directory: %s is a file", c.Dir)
	}
	t := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
	damaged, groups := 0, 0
	err := wal.Verify(c.Dir, func(r wal.PartitionReport) {
		if groups++; groups == 1 {
			fmt.Fprintln(t, "PARTITION\tFIRST TXID\tLAST TXID\tTRANSACTIONS\tENTRIES\tSIZE\tDIGEST\tSTATE")
		}
		state := "whole"
		if r.Err != nil {
			damaged++
			state = "DAMAGED: " + errorText(r.Err)
		}
		fmt.Fprintf(t, "%d\t%d\t%d\t%d\t%d\t%s\t%x\t%s\n", r.Group, r.FirstTxid, r.LastTxid,
			r.Transactions, r.Entries, humanize.IBytes(r.Bytes), r.Digest, state)
	})
	if ferr := t.Flush(); ferr != nil {
		return ferr
	}
	switch {
	case errors.Is(err, wal.ErrInUse):
		return failf(exitUsage, "%w", inUse(c.Dir))
	case errors.Is(err, fs.ErrNotExist):
		return failf(exitUsage, "%w", err)
	case err != nil:
		return err
	case damaged > 0:
		return failf(exitFailed, "%d of %s damaged", damaged, plural(groups, "partition"))
	}
	return nil
}
