package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

type retentionCmd struct {
	Show   retentionShowCmd   `cmd:"" help:"Show by which policy each partition is trimmed, and what holds it."`
	Set    retentionSetCmd    `cmd:"" help:"Set the policy of a partition, or of all that have none of their own."`
	Remove retentionRemoveCmd `cmd:"" help:"Remove a policy that was set."`
	DryRun retentionDryRunCmd `cmd:"" help:"Show what a policy would trim now, without setting it."`
}

// target is a partition, or -1 for all.
type target int

func (a *target) UnmarshalText(text []byte) error {
	if string(text) == "all" {
		*a = -1
		return nil
	}
	var p partition
	if err := p.UnmarshalText(text); err != nil {
		return fmt.Errorf("%w; or all", err)
	}
	*a = target(p)
	return nil
}

func (a target) partition() *int {
	if a < 0 {
		return nil
	}
	p := int(a)
	return &p
}

// policyFlags are the flags that make a policy.
type policyFlags struct {
	Age        duration `placeholder:"TIME" help:"What is older may go, in hours, minutes and seconds: 720h for 30 days."`
	Size       byteSize `placeholder:"SIZE" help:"All but about this many bytes of the newest may go, such as 10GiB."`
	Count      count    `placeholder:"N" help:"All but this many of the newest transactions may go."`
	Cursor     []token  `placeholder:"NAME" help:"Nothing goes that this cursor has not passed; repeatable."`
	Archive    token    `placeholder:"NAME" help:"Nothing goes that is not archived: the cursor that \"cantus backup --cursor NAME\" moves."`
	ArchiveLag duration `placeholder:"TIME" help:"Say that the archive is behind once a transaction has waited this long for it. [default: 24h]"`
}

const policyHelp = `A transaction may go once every cursor has passed it and, if there is an age, a size or a count, once one of them says so.
A cursor that does not exist holds everything. Whole batches go, and transactions whose message ids are still remembered
stay.`

// policy returns the policy, nil if there are no flags.
func (f *policyFlags) policy() *subjects.RetentionPolicy {
	p := subjects.RetentionPolicy{Bytes: uint64(f.Size), Count: uint64(f.Count), Archive: string(f.Archive)}
	if f.Age > 0 {
		p.Age = time.Duration(f.Age).String()
	}
	if f.ArchiveLag > 0 {
		p.ArchiveLag = time.Duration(f.ArchiveLag).String()
	}
	for _, name := range f.Cursor {
		p.Cursors = append(p.Cursors, string(name))
	}
	if p.Age == "" && p.ArchiveLag == "" && p.Bytes == 0 && p.Count == 0 && p.Archive == "" && len(p.Cursors) == 0 {
		return nil
	}
	return &p
}

type retentionSetCmd struct {
	Partition target `arg:"" name:"P|all" help:"The partition, or all for those that have no policy of their own."`
	policyFlags
	connection
}

func (*retentionSetCmd) Help() string {
	return policyHelp + `

The policy replaces the one before. The partition's leader trims by it, at most once a minute. Prints what would go now,
and on standard error what is worth a second look; "cantus retention dry-run" prints that without setting it.

Examples:

  cantus retention set all --age 720h --archive archive
  cantus retention set 0 --size 50GiB --cursor billing`
}

// Run sets a policy.
func (c *retentionSetCmd) Run(ctx context.Context, p *program) error {
	policy := c.policy()
	if policy == nil {
		return usagef("say what may go: --age TIME, --size SIZE, --count N, --cursor NAME or --archive NAME, such as \"cantus retention set all --age 720h\"")
	}
	l, err := c.open(ctx, "retention set")
	if err != nil {
		return err
	}
	defer l.close()
	if err := l.changeRetention(ctx, p, subjects.RetentionRequest{Partition: c.Partition.partition(), Policy: policy}); err != nil {
		return err
	}
	return retentionView{of: c.Partition, query: subjects.RetentionQuery{Policy: policy}, set: true}.show(ctx, p, l)
}

type retentionRemoveCmd struct {
	Partition target `arg:"" name:"P|all" help:"The partition, or all for the policy of those that have none of their own."`
	connection
}

func (*retentionRemoveCmd) Help() string {
	return `A partition without a policy of its own has that of all. One without any is trimmed only by "cantus trim".`
}

// Run removes a policy.
func (c *retentionRemoveCmd) Run(ctx context.Context, p *program) error {
	l, err := c.open(ctx, "retention remove")
	if err != nil {
		return err
	}
	defer l.close()
	return l.changeRetention(ctx, p, subjects.RetentionRequest{Partition: c.Partition.partition()})
}

// changeRetention sets or removes a policy, and prints what was done.
func (l *natsConn) changeRetention(ctx context.Context, p *program, r subjects.RetentionRequest) error {
	var reply subjects.AdminReply
	err := l.ask(ctx, l.names.Admin("cluster", "retention"), r, &reply)
	if errors.Is(err, nats.ErrNoResponders) {
		if _, err = l.clusterStatus(ctx); err == nil {
			err = failf(exitUnavailable, "the cluster can't decide now: no node leads its facts, or they are of a version without retention")
		}
		return err
	}
	if err != nil {
		return l.explain(err)
	}
	return p.decided(reply)
}

type retentionShowCmd struct {
	Partition target `arg:"" optional:"" default:"all" name:"P|all" help:"The partition."`
	JSON      bool   `name:"json" help:"Print a JSON object for each partition."`
	connection
}

func (*retentionShowCmd) Help() string {
	return `Of each partition: its policy (with a + if it is its own), what is kept, what goes at the next trim, and what holds the rest.

` + policyHelp
}

// Run shows how partitions are trimmed.
func (c *retentionShowCmd) Run(ctx context.Context, p *program) error {
	l, err := c.open(ctx, "retention show")
	if err != nil {
		return err
	}
	defer l.close()
	return retentionView{of: c.Partition, json: c.JSON}.show(ctx, p, l)
}

type retentionDryRunCmd struct {
	Partition target `arg:"" optional:"" default:"all" name:"P|all" help:"The partition."`
	policyFlags
	JSON bool `name:"json" help:"Print a JSON object for each partition."`
	connection
}

func (*retentionDryRunCmd) Help() string {
	return policyHelp + `

Without a flag of a policy it is the one that is set.

Examples:

  cantus retention dry-run
  cantus retention dry-run 0 --age 720h`
}

// Run shows what would go.
func (c *retentionDryRunCmd) Run(ctx context.Context, p *program) error {
	l, err := c.open(ctx, "retention dry-run")
	if err != nil {
		return err
	}
	defer l.close()
	return retentionView{of: c.Partition, query: subjects.RetentionQuery{Policy: c.policy()}, json: c.JSON}.show(ctx, p, l)
}

// retentionView is what to show of partitions.
type retentionView struct {
	of    target
	query subjects.RetentionQuery
	set   bool // the policy was just set: partitions with one of their own are left out
	json  bool
}

// partitions returns the partitions to show.
func (v retentionView) partitions(ctx context.Context, l *natsConn) (all []int, err error) {
	if v.of >= 0 {
		return []int{int(v.of)}, nil
	}
	info, err := l.cluster(ctx)
	for p := range info.Partitions {
		all = append(all, p)
	}
	return all, err
}

// show prints what a policy means for the partitions now.
func (v retentionView) show(ctx context.Context, p *program, l *natsConn) error {
	partitions, err := v.partitions(ctx, l)
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
	if !v.json {
		fmt.Fprintln(t, "PARTITION\tPOLICY\tKEPT FROM\tKEPT TO\tKEPT SIZE\tTRIMS TO\tTRIMS UNTIL\tTRANSACTIONS\tTRIMS SIZE")
	}
	var notes []string
	var of reasons
	for _, id := range partitions {
		r, err := l.retentionOf(ctx, id, v.query)
		switch {
		case err != nil:
			return errors.Join(t.Flush(), err)
		case v.set && v.of < 0 && r.Own:
			notes = append(notes, fmt.Sprintf("partition %d keeps the policy of its own", id))
			continue
		case v.json:
			if err := json.NewEncoder(p.out).Encode(r); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintln(t, retentionRow(r, v.query.Policy == nil || v.set))
		for _, text := range slices.Concat(r.Holds, archiveNote(r)) {
			of.add(text, id)
		}
		for _, text := range r.Warnings {
			if text = "warning: " + text; v.query.Policy != nil && !v.set && !slices.Contains(notes, text) {
				notes = append(notes, text)
			}
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, text := range of.all {
		p.note("%s: %s", listPartitions(of.of[text], 0), text)
	}
	for _, n := range notes {
		p.note("%s", n)
	}
	return nil
}

// retentionOf asks a partition's leader.
func (l *natsConn) retentionOf(ctx context.Context, partition int, q subjects.RetentionQuery) (r subjects.RetentionReply, err error) {
	err = l.ask(ctx, l.names.Admin("retention", strconv.Itoa(partition)), q, &r)
	if errors.Is(err, nats.ErrNoResponders) {
		return r, l.noOperator(ctx, partition)
	}
	return r, l.explain(err)
}

func archiveNote(r subjects.RetentionReply) []string {
	if !r.ArchiveBehind {
		return nil
	}
	for _, c := range r.Cursors {
		if c.Name == r.Policy.Archive {
			return []string{fmt.Sprintf("the archive is behind: %d transactions wait for it, the oldest for %v",
				c.LagTransactions, time.Duration(c.LagSeconds*float64(time.Second)).Round(time.Second))}
		}
	}
	return nil
}

// retentionRow returns the row of a partition. marked says that a policy which
// is its own gets a mark.
func retentionRow(r subjects.RetentionReply, marked bool) string {
	policy := "none"
	if r.Policy != nil {
		policy = policyText(*r.Policy)
	}
	if r.Own && marked {
		policy += " +"
	}
	row := fmt.Sprintf("%d\t%s\t%d\t%d\t%s\t", r.Partition, policy, r.FirstTxid, r.HighWaterMark, humanize.IBytes(r.Bytes))
	if r.Goes == nil {
		return row + "-\t-\t-\t-"
	}
	return row + fmt.Sprintf("%d\t%s\t%d\t%s", r.Goes.LastTxid, r.Goes.LastTime.Format(time.RFC3339), r.Goes.Transactions, humanize.IBytes(r.Goes.Bytes))
}

// policyText describes a policy as the flags that set it.
func policyText(p subjects.RetentionPolicy) string {
	var parts []string
	if p.Age != "" {
		parts = append(parts, "age "+p.Age)
	}
	if p.Bytes > 0 {
		parts = append(parts, "size "+humanize.IBytes(p.Bytes))
	}
	if p.Count > 0 {
		parts = append(parts, fmt.Sprintf("count %d", p.Count))
	}
	for _, c := range p.Cursors {
		parts = append(parts, "cursor "+c)
	}
	if p.Archive != "" {
		parts = append(parts, "archive "+p.Archive)
	}
	return strings.Join(parts, ", ")
}
