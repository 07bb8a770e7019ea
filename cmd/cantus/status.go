package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

type statusCmd struct {
	At   moment `placeholder:"TIME" help:"Also show each partition's last transaction at or before a time, such as 2026-11-01, 2026-11-01T08:30 or 90m (ago)."`
	JSON bool   `name:"json" help:"Print one JSON object: health, the first line and what it is made of; cluster, as the node's info; and partitions, a list of theirs."`

	connection
}

func (*statusCmd) Help() string {
	return `The first line says whether writes are safe, and what stops if one more node fails: a partition goes on while a majority of
its voters is there, has caught up and has room. What is not known counts as not safe. It
is computed from what the partitions' leaders say, and from the view of the node that is named below it.

Of each node: whether it is ready, or since when it is away, by the clock of the node that answered.

Of each partition: its leader (none, or ? if it did not answer) and term, the high-water mark (its last txid), the first txid that is kept, how many
locks its table tracks and the txid up to which it has forgotten some (floor), and the first digits of the digest, which
replicas at the same txid have in common. With --at also its last transaction at or before that time (as of), 0 for none.

Exit status: 0 if every partition has a leader, 4 if one has none or does not answer. "cantus upgrade check" says
whether a node may be restarted.`
}

// status is the output of --json.
type status struct {
	Health     health                   `json:"health"`
	Cluster    subjects.ClusterInfo     `json:"cluster"`
	Partitions []subjects.PartitionInfo `json:"partitions"`

	nodes   *subjects.ClusterStatus // nil if it is not known
	answers []partitionAnswer       // of the partitions
	asOf    time.Time               // of AS OF; zero for none
}

// Run shows the cluster.
func (c *statusCmd) Run(ctx context.Context, p *program) error {
	l, err := c.open(ctx, "status")
	if err != nil {
		return err
	}
	defer l.close()
	found, err := l.survey(ctx, c.At)
	if err != nil {
		return err
	}
	s := status{Health: assess(found).health, Cluster: found.cluster, nodes: found.status, answers: found.partitions, asOf: time.Time(c.At)}
	var leaderless, silent, refused []int
	for i, answer := range found.partitions {
		info := subjects.PartitionInfo{Partition: i}
		switch {
		case answer.info != nil:
			info = *answer.info
		case answer.silent != "":
			silent = append(silent, i)
		case answer.refused != "":
			refused = append(refused, i)
		default:
			leaderless = append(leaderless, i)
		}
		s.Partitions = append(s.Partitions, info)
	}
	if c.JSON {
		err = printJSON(p.out, s)
	} else {
		err = s.print(p.out)
	}
	switch {
	case err != nil:
		return err
	case len(leaderless) > 0:
		return failf(exitUnavailable, "without a leader: %s; if that stays so, see docs/recover.md", listPartitions(leaderless, 0))
	case len(silent) > 0:
		return failf(exitUnavailable, "without an answer: %s", listPartitions(silent, 0))
	case len(refused) > 0:
		return failf(exitUnavailable, "unavailable at the moment: %s", listPartitions(refused, 0))
	}
	return nil
}

func (s *status) print(w io.Writer) error {
	fmt.Fprintf(w, "%s\n\n", s.Health.Text)
	fmt.Fprintf(w, "cluster %s, version %s, %s, %s\n", s.Cluster.Cluster, s.Cluster.Version,
		plural(s.Cluster.Partitions, "partition"), plural(len(s.Cluster.Nodes), "node"))
	s.printNodes(w)
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(cells ...string) {
		if s.asOf.IsZero() {
			cells = slices.Delete(cells, 4, 5)
		}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	row("PARTITION", "LEADER", "TERM", "HIGH-WATER MARK", "AS OF", "FIRST TXID", "LOCKS", "FLOOR", "DIGEST")
	for i, p := range s.Partitions {
		if p.Leader == "" {
			leader := "none"
			if i < len(s.answers) && !s.answers[i].leaderless() {
				leader = "?" // there may be one
			}
			row(fmt.Sprint(p.Partition), leader, "-", "-", "-", "-", "-", "-", "-")
			continue
		}
		last := "trimmed"
		if p.AsOf != nil {
			last = fmt.Sprint(*p.AsOf)
		}
		row(fmt.Sprint(p.Partition), p.Leader, fmt.Sprint(p.Term), fmt.Sprint(p.HighWaterMark), last, fmt.Sprint(p.FirstTxid),
			fmt.Sprintf("%d of %d", p.Locks.Tracked, p.Locks.Capacity), fmt.Sprint(p.Locks.Floor), fmt.Sprintf("%.12s", p.Digest))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if !s.asOf.IsZero() {
		fmt.Fprintf(w, "AS OF is the last transaction at or before %s\n", s.asOf.Format(time.RFC3339Nano))
	}
	for _, p := range s.Partitions {
		printFull(w, p.Partition, p.StorageFull)
		if p.Namespace != "" {
			fmt.Fprintf(w, "partition %d is partition %d of the namespace %s%s\n", p.Partition, p.Number, p.Namespace, limitsText(p.Limits))
		}
		switch {
		case p.MirrorOf != "":
			fmt.Fprintf(w, "partition %d is a mirror of cluster %s\n", p.Partition, p.MirrorOf)
		case p.Restoring:
			fmt.Fprintf(w, "partition %d is being restored: a restore or an import (--keep) into it is not complete; if it was interrupted, run it again\n", p.Partition)
		}
		printArchive(w, p)
	}
	s.printRetention(w)
	return nil
}

// printNodes prints a line for each node, and one for each whose failure would
// stop something.
func (s *status) printNodes(w io.Writer) {
	if s.nodes == nil {
		for _, n := range s.Cluster.Nodes {
			state := "ready"
			if !n.Ready {
				state = "not ready"
			}
			fmt.Fprintf(w, "node %s, %s\n", n.Name, state)
		}
		return
	}
	for _, n := range s.nodes.Nodes {
		fmt.Fprintf(w, "node %s, %s\n", n.Name, nodeState(n, s.nodes.Time))
	}
	if len(s.nodes.Nodes) > 1 {
		fmt.Fprintf(w, "as node %s sees it, at %s\n", s.nodes.AnsweredBy, clock(s.nodes.Time, time.Time{}))
	}
	for _, l := range s.Health.Losses {
		fmt.Fprintf(w, "if node %s fails: %s\n", l.Node, l.text(len(s.Partitions)))
	}
}

// nodeState says whether a node is ready. now is the time of the one that says
// so.
func nodeState(n subjects.NodeStatus, now time.Time) (state string) {
	state = "ready"
	switch {
	case n.State == "waiting":
		state = "waits to be added"
	case !n.Alive:
		state = away(n.Away, now)
	case !n.Ready:
		state = "not ready: " + n.Unready
	}
	return state
}

// away says since when a node is away, by the clock of the one that says so.
func away(since, now time.Time) string {
	if since.IsZero() {
		return "away"
	}
	return fmt.Sprintf("away since %s, for %v", clock(since, now), now.Sub(since).Round(time.Second))
}

// printArchive prints how far back a partition is read.
func printArchive(w io.Writer, p subjects.PartitionInfo) {
	if p.ArchivedFrom > 0 {
		fmt.Fprintf(w, "partition %d: reads go on in the archive, down to txid %d\n", p.Partition, p.ArchivedFrom)
	}
	switch {
	case p.NotArchived != "" && p.ArchivedFrom > 0:
		fmt.Fprintf(w, "partition %d: the archive is not read before that: %s\n", p.Partition, p.NotArchived)
	case p.NotArchived != "":
		fmt.Fprintf(w, "partition %d: the archive is not read: %s\n", p.Partition, p.NotArchived)
	}
}

// printRetention prints a line for each policy, and one for each cursor that a
// policy waits for.
func (s *status) printRetention(w io.Writer) {
	var policies []string
	of := map[string][]string{} // partitions by policy
	for _, p := range s.Partitions {
		if p.Retention == nil {
			continue
		}
		text := policyText(p.Retention.Policy)
		if of[text] == nil {
			policies = append(policies, text)
		}
		of[text] = append(of[text], fmt.Sprint(p.Partition))
	}
	for _, text := range policies {
		which := "partition " + strings.Join(of[text], ", ")
		if len(of[text]) == len(s.Partitions) && len(s.Partitions) > 1 {
			which = "all partitions"
		}
		fmt.Fprintf(w, "retention of %s: %s\n", which, text)
	}
	for _, p := range s.Partitions {
		if p.Retention == nil {
			continue
		}
		for _, c := range p.Retention.Waits {
			fmt.Fprintf(w, "partition %d: retention waits for %s\n", p.Partition, waitText(c, p))
		}
	}
}

// waitText describes a cursor that a policy waits for.
func waitText(c subjects.RetentionCursor, p subjects.PartitionInfo) string {
	text := fmt.Sprintf("the cursor %s, which is at %d", c.Name, c.Txid)
	if c.Txid == 0 {
		text = fmt.Sprintf("the cursor %s, which is at 0 or does not exist", c.Name)
	}
	kept := p.HighWaterMark - min(p.HighWaterMark, max(c.Txid, p.FirstTxid-1))
	text += fmt.Sprintf(": it keeps %s, the oldest for %v", plural(int(kept), "transaction"), time.Duration(c.LagSeconds*float64(time.Second)).Round(time.Second))
	if c.Name == p.Retention.Policy.Archive && p.Retention.ArchiveBehind {
		text += "; the archive is behind"
	}
	return text
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
