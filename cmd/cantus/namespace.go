package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

type namespaceCmd struct {
	Show   namespaceShowCmd   `cmd:"" help:"Show the namespaces, with their partitions and limits."`
	Set    namespaceSetCmd    `cmd:"" help:"Make a namespace, or set the limits of one."`
	Remove namespaceRemoveCmd `cmd:"" help:"Remove a namespace. Its partitions stay."`
}

type namespaceSetCmd struct {
	Name       token       `arg:"" name:"NAME" help:"The namespace."`
	Partitions []partition `placeholder:"P" help:"Its partitions, by the cluster's numbers, such as 2,3: the first is its partition 0. They can't change later."`
	Rate       count       `placeholder:"N" help:"How many transactions each of its partitions takes in a second. [default: no limit]"`
	ByteRate   byteSize    `placeholder:"SIZE" help:"How many bytes of them, such as 1MiB. [default: no limit]"`
	Keep       byteSize    `placeholder:"SIZE" help:"The size of the log of each of its partitions, from which on it takes nothing more. [default: no limit]"`
	connection
}

func (*namespaceSetCmd) Help() string {
	return `Clients use a namespace as if it were a cluster: with a prefix of its own (cantus.ns.NAME), or behind the import of a NATS
account. Its partitions are numbered from 0. They are appended to, and followed by their feed, in the namespace only.
Operators read and administer them by the cluster's numbers.

The limits replace those that were set. What is past a rate is refused as busy, with the time after which to try again.
A partition whose log is full by --keep refuses appends as storage_full until it is trimmed.

A partition that gets into a namespace is not served for a moment.

Examples:

  cantus namespace set orders --partitions 2,3 --rate 5000 --byte-rate 4MiB --keep 50GiB
  cantus append 0 --prefix cantus.ns.orders`
}

// Run sets a namespace.
func (c *namespaceSetCmd) Run(ctx context.Context, p *program) error {
	r := subjects.NamespaceRequest{Name: string(c.Name), Limits: subjects.NamespaceLimits{Transactions: uint64(c.Rate), Bytes: uint64(c.ByteRate), Kept: uint64(c.Keep)}}
	for _, one := range c.Partitions {
		r.Partitions = append(r.Partitions, int(one))
	}
	return c.changeNamespace(ctx, p, r)
}

type namespaceRemoveCmd struct {
	Name token `arg:"" name:"NAME" help:"The namespace."`
	connection
}

func (*namespaceRemoveCmd) Help() string {
	return `The partitions stay, with all that is in them. From then on they are served under the cluster's names only.`
}

// Run removes a namespace.
func (c *namespaceRemoveCmd) Run(ctx context.Context, p *program) error {
	return c.changeNamespace(ctx, p, subjects.NamespaceRequest{Name: string(c.Name), Remove: true})
}

// changeNamespace makes, changes or removes a namespace, and prints what was
// done.
func (c *connection) changeNamespace(ctx context.Context, p *program, r subjects.NamespaceRequest) error {
	l, err := c.open(ctx, "namespace")
	if err != nil {
		return err
	}
	defer l.close()
	var reply subjects.AdminReply
	err = l.ask(ctx, l.names.Admin("cluster", "namespace"), r, &reply)
	if errors.Is(err, nats.ErrNoResponders) {
		if _, err = l.clusterStatus(ctx); err == nil {
			err = failf(exitUnavailable, "the cluster can't decide now: no node leads its facts, or they are of a version without namespaces")
		}
		return err
	}
	if err != nil {
		return l.explain(err)
	}
	return p.decided(reply)
}

type namespaceShowCmd struct {
	JSON bool `name:"json" help:"Print a JSON object for each namespace."`
	connection
}

func (*namespaceShowCmd) Help() string {
	return `Of each namespace: its partitions, by the cluster's numbers, and the limits that hold for each of them.`
}

// Run shows the namespaces.
func (c *namespaceShowCmd) Run(ctx context.Context, p *program) error {
	l, err := c.open(ctx, "namespace show")
	if err != nil {
		return err
	}
	defer l.close()
	s, err := l.clusterStatus(ctx)
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
	if !c.JSON {
		fmt.Fprintln(t, "NAMESPACE\tPARTITIONS\tTRANSACTIONS A SECOND\tBYTES A SECOND\tBYTES KEPT")
	}
	for _, n := range s.Namespaces {
		if c.JSON {
			if err := json.NewEncoder(p.out).Encode(n); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", n.Name, partitionList(n.Partitions),
			orDash(n.Limits.Transactions, fmt.Sprint(n.Limits.Transactions)), orDash(n.Limits.Bytes, humanize.IBytes(n.Limits.Bytes)),
			orDash(n.Limits.Kept, humanize.IBytes(n.Limits.Kept)))
	}
	return t.Flush()
}

func orDash(value uint64, text string) string {
	if value == 0 {
		return "-"
	}
	return text
}

// limitsText describes the limits of a partition, "" for none.
func limitsText(l *subjects.LimitInfo) string {
	if l == nil {
		return ""
	}
	var parts []string
	if l.Transactions > 0 {
		parts = append(parts, fmt.Sprintf("%d transactions a second", l.Transactions))
	}
	if l.Bytes > 0 {
		parts = append(parts, humanize.IBytes(l.Bytes)+" a second")
	}
	if l.Kept > 0 {
		parts = append(parts, fmt.Sprintf("%s kept, of which it has %s", humanize.IBytes(l.Kept), humanize.IBytes(l.Size)))
	}
	text := ", limited to " + strings.Join(parts, ", ")
	if l.Refusing != "" {
		text += "; it refuses appends: " + l.Refusing
	}
	return text
}
