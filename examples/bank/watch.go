package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"
)

const (
	clearScreen = "\x1b[H\x1b[2J"
	// frameTime is the minimum time between two frames.
	frameTime = 100 * time.Millisecond
	barWidth  = 40
)

// show prints the accounts once.
func (b *bank) show(ctx context.Context, w io.Writer) error {
	all, err := b.store.accounts(ctx)
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, frame(all, b.view.Applied(partition), b.view.Progress(partition).Lag()))
	return err
}

// watch prints the accounts whenever the view changes, until ctx ends.
func (b *bank) watch(ctx context.Context, w io.Writer) error {
	for {
		drawn := b.view.Applied(partition)
		if _, err := io.WriteString(w, clearScreen); err != nil {
			return err
		}
		if err := b.show(ctx, w); err != nil {
			return err
		}
		if err := b.view.Wait(ctx, partition, drawn+1); err != nil {
			return err
		}
		select {
		case <-time.After(frameTime):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// frame formats the accounts as a table with bars.
func frame(all []account, mark, lag uint64) string {
	var most, sum int64
	width := len("account")
	for _, a := range all {
		most, sum, width = max(most, a.Balance), sum+a.Balance, max(width, len(a.Name))
	}
	var out strings.Builder
	fmt.Fprintf(&out, "%-*s %12s\n", width, "account", "balance")
	for _, a := range all {
		bar := strings.Repeat("█", int(a.Balance*barWidth/max(most, 1)))
		if !a.Active {
			bar = "closed"
		}
		fmt.Fprintf(&out, "%-*s %12d %s\n", width, a.Name, a.Balance, bar)
	}
	fmt.Fprintf(&out, "%-*s %12d at txid %d, %d behind\n", width, "all", sum, mark, lag)
	return out.String()
}
