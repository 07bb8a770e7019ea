package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

type statusCmd struct {
	JSON bool `name:"json" help:"Print one JSON object: cluster, as the node's info, and partitions, a list of theirs."`

	connection
}

func (*statusCmd) Help() string {
	return `Of each partition: its leader and term, the high-water mark (its last txid), the first txid that is kept, how many
locks its table tracks and the txid up to which it has forgotten some (floor), and the first digits of the digest, which
replicas at the same txid have in common.

Exit status: 4 if a partition has no leader.`
}

// status is the output of --json.
type status struct {
	Cluster    subjects.ClusterInfo     `json:"cluster"`
	Partitions []subjects.PartitionInfo `json:"partitions"`
}

// Run shows the cluster.
func (c *statusCmd) Run(ctx context.Context, p *program) error {
	l, err := c.open(ctx, "status")
	if err != nil {
		return err
	}
	defer l.close()
	var s status
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
		err = failf(exitUnavailable, "without a leader: partition %s", strings.Join(leaderless, ", "))
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
				errs[i] = l.ask(ctx, l.names.PartitionInfo(i), nil, &infos[i])
			}
		})
	}
	asking.Wait()
	return infos, errs
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
	fmt.Fprintln(t, "PARTITION\tLEADER\tTERM\tHIGH-WATER MARK\tFIRST TXID\tLOCKS\tFLOOR\tDIGEST")
	for _, p := range s.Partitions {
		if p.Leader == "" {
			fmt.Fprintf(t, "%d\tnone\t-\t-\t-\t-\t-\t-\n", p.Partition)
			continue
		}
		fmt.Fprintf(t, "%d\t%s\t%d\t%d\t%d\t%d of %d\t%d\t%.12s\n", p.Partition, p.Leader, p.Term, p.HighWaterMark,
			p.FirstTxid, p.Locks.Tracked, p.Locks.Capacity, p.Locks.Floor, p.Digest)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, p := range s.Partitions {
		printFull(w, p.Partition, p.StorageFull)
	}
	return nil
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
