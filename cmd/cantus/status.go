package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

type statusCmd struct {
	At   moment `placeholder:"TIME" help:"Also show each partition's last transaction at or before a time, such as 2026-11-01, 2026-11-01T08:30 or 90m (ago)."`
	JSON bool   `name:"json" help:"Print one JSON object: cluster, as the node's info, and partitions, a list of theirs."`

	connection
}

func (*statusCmd) Help() string {
	return `Of each partition: its leader and term, the high-water mark (its last txid), the first txid that is kept, how many
locks its table tracks and the txid up to which it has forgotten some (floor), and the first digits of the digest, which
replicas at the same txid have in common. With --at also its last transaction at or before that time (as of), 0 for none.

Exit status: 4 if a partition has no leader.`
}

// status is the output of --json.
type status struct {
	Cluster    subjects.ClusterInfo     `json:"cluster"`
	Partitions []subjects.PartitionInfo `json:"partitions"`

	asOf bool // show AS OF
}

// Run shows the cluster.
func (c *statusCmd) Run(ctx context.Context, p *program) error {
	l, err := c.open(ctx, "status")
	if err != nil {
		return err
	}
	defer l.close()
	s := status{asOf: c.At != (moment{})}
	if s.Cluster, err = l.cluster(ctx); err != nil {
		return err
	}
	var leaderless []string
	var errs []error
	s.Partitions, errs = c.partitions(ctx, l, s.Cluster.Partitions)
	for i, err := range errs {
		switch {
		case errors.Is(err, nats.ErrNoResponders):
			leaderless = append(leaderless, fmt.Sprint(i))
		case err != nil:
			return l.explain(err)
		}
	}
	if c.JSON {
		err = printJSON(p.out, s)
	} else {
		err = s.print(p.out)
	}
	if err == nil && len(leaderless) > 0 {
		err = failf(exitUnavailable, "without a leader: partition %s; if that stays so, see docs/recover.md", strings.Join(leaderless, ", "))
	}
	return err
}

// askAtOnce is how many partitions are asked concurrently.
const askAtOnce = 64

// partitions asks the leader of each partition, and returns its answer or an
// error.
func (c *statusCmd) partitions(ctx context.Context, l *natsConn, n int) ([]subjects.PartitionInfo, []error) {
	infos, errs := make([]subjects.PartitionInfo, n), make([]error, n)
	var next atomic.Int64
	var asking sync.WaitGroup
	for range min(askAtOnce, n) {
		asking.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				infos[i].Partition = i
				errs[i] = c.ask(ctx, l, &infos[i])
			}
		})
	}
	asking.Wait()
	return infos, errs
}

// ask asks the leader of a partition. If the last transaction at or before --at
// is not known any more, the answer has none.
func (c *statusCmd) ask(ctx context.Context, l *natsConn, info *subjects.PartitionInfo) error {
	var request any
	if c.At != (moment{}) {
		request = subjects.InfoRequest{At: time.Time(c.At)}
	}
	err := l.ask(ctx, l.names.PartitionInfo(info.Partition), request, info)
	if e, ok := errors.AsType[*subjects.Error](err); ok && e.Reason == subjects.Trimmed {
		err = l.ask(ctx, l.names.PartitionInfo(info.Partition), nil, info)
	}
	return err
}

func (s *status) print(w io.Writer) error {
	fmt.Fprintf(w, "cluster %s, version %s, %s, %s\n", s.Cluster.Cluster, s.Cluster.Version,
		plural(s.Cluster.Partitions, "partition"), plural(len(s.Cluster.Nodes), "node"))
	because := false
	for _, n := range s.Cluster.Nodes {
		state := "ready"
		if !n.Ready {
			state = "not ready"
			because = true
		}
		fmt.Fprintf(w, "node %s, %s\n", n.Name, state)
	}
	if because {
		fmt.Fprintln(w, "\"cantus cluster status\" says why a node is not ready")
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(cells ...string) {
		if !s.asOf {
			cells = slices.Delete(cells, 4, 5)
		}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	row("PARTITION", "LEADER", "TERM", "HIGH-WATER MARK", "AS OF", "FIRST TXID", "LOCKS", "FLOOR", "DIGEST")
	for _, p := range s.Partitions {
		if p.Leader == "" {
			row(fmt.Sprint(p.Partition), "none", "-", "-", "-", "-", "-", "-", "-")
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
	for _, p := range s.Partitions {
		printFull(w, p.Partition, p.StorageFull)
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
		text = fmt.Sprintf("the cursor %s, which does not exist", c.Name)
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
