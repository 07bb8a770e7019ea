package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

type clusterCmd struct {
	Status   clusterStatusCmd   `cmd:"" help:"Show nodes, and where each partition is."`
	Add      clusterAddCmd      `cmd:"" help:"Add a waiting node to the cluster."`
	Remove   clusterRemoveCmd   `cmd:"" help:"Move everything off a node, and then take it out of the cluster."`
	Drain    clusterDrainCmd    `cmd:"" help:"Move replicas and leadership off a node, as far as others can take them."`
	Undrain  clusterUndrainCmd  `cmd:"" help:"Let a drained node have replicas and leadership again."`
	Promote  clusterPromoteCmd  `cmd:"" help:"Make a standby an ordinary node."`
	Transfer clusterTransferCmd `cmd:"" help:"Give a partition's leadership to another replica, permanently."`
	Move     clusterMoveCmd     `cmd:"" help:"Move a replica from one node to another."`
	Balance  clusterBalanceCmd  `cmd:"" help:"Spread replicas and leaders evenly."`
	Rebuild  clusterRebuildCmd  `cmd:"" help:"Delete a replica and fetch it again from the others."`
}

const clusterHelp = `Operations are decided by the cluster and are carried out in the background, while writes go on; "cantus cluster status" shows how
far they are. A command returns once its operation is decided. With --wait it returns when the operation is done, and asks again
while the cluster can't decide.`

// waitFlag is the flag of operations that take time.
type waitFlag struct {
	Wait duration `placeholder:"TIME" help:"Wait at most this long until it is done."`
}

type clusterStatusCmd struct {
	JSON bool `name:"json" help:"Print one JSON object."`
	connection
}

func (*clusterStatusCmd) Help() string {
	return `Of each node: its state (member, standby, draining, leaving, or waiting to be added), how many partitions it should hold
and lead, and how many it leads now. Of each partition: its leader, where it should be (the first should lead), and each
replica's high-water mark, with a + if it votes. docs/operations.md explains each column.`
}

// Run shows the cluster.
func (c *clusterStatusCmd) Run(ctx context.Context, p *program) error {
	l, err := c.open(ctx, "cluster status")
	if err != nil {
		return err
	}
	defer l.close()
	s, err := l.clusterStatus(ctx)
	switch {
	case err != nil:
		return err
	case c.JSON:
		return printJSON(p.out, s)
	}
	return printCluster(p.out, s)
}

func (l *natsConn) clusterStatus(ctx context.Context) (s subjects.ClusterStatus, err error) {
	err = l.ask(ctx, l.names.Admin("status"), nil, &s)
	if errors.Is(err, nats.ErrNoResponders) {
		info, err := l.cluster(ctx)
		if err == nil {
			err = l.checkWhole(info)
		}
		if err == nil { // the nodes may have started meanwhile
			err = l.ask(ctx, l.names.Admin("status"), nil, &s)
		}
		if errors.Is(err, nats.ErrNoResponders) {
			err = failf(exitUnavailable, "no node answers for operations: does this user see %s?", l.names.Admin(">"))
		}
		return s, l.explain(err)
	}
	return s, l.explain(err)
}

// replicasOf describes how many replicas each partition has at least, and if
// those are too few, how many it should have.
func replicasOf(s subjects.ClusterStatus) string {
	least, nodes := s.Replicas, 0
	for _, p := range s.Partitions {
		least = min(least, len(p.Replicas))
	}
	for _, n := range s.Nodes {
		if n.State == "member" {
			nodes++
		}
	}
	switch {
	case least == s.Replicas:
		return plural(s.Replicas, "replica") + " per partition"
	case nodes < s.Replicas:
		return fmt.Sprintf("%s per partition (%d once %d nodes can hold them)", plural(least, "replica"), s.Replicas, s.Replicas)
	}
	return fmt.Sprintf("%d of %s per partition", least, plural(s.Replicas, "replica"))
}

func printCluster(w io.Writer, s subjects.ClusterStatus) error {
	leader := s.MetaLeader
	if leader == "" {
		leader = "nobody (docs/recover.md, if a majority of the nodes is lost for good)"
	}
	fmt.Fprintf(w, "cluster %s, id %s, %s; operations are decided by %s\n\n", s.Cluster, s.ID, replicasOf(s), leader)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tSTATE\tREADY\tHOLDS\tLEADS\tLEADS NOW\tREPLICATION\tVERSION")
	for _, n := range s.Nodes {
		ready := "yes"
		switch {
		case !n.Alive:
			ready = "away"
			if !n.Away.IsZero() {
				ready += " since " + n.Away.Format(time.RFC3339)
			}
		case !n.Ready:
			ready = "no: " + cmp.Or(n.Unready, "waits to be added")
		}
		if n.Alive && n.StorageFull {
			ready += ", disk full"
		}
		if n.Damaged != "" {
			ready += ", damaged"
		}
		state := n.State
		if n.Key != "" {
			state += ", key " + n.Key
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%d\t%s\t%s\n", n.Name, state, ready, n.Replicas, n.Leads, n.Leading, n.Raft, n.Version)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	fmt.Fprintln(t, "PARTITION\tLEADER\tTERM\tPLACED ON\tREPLICAS")
	for _, p := range s.Partitions {
		leader := p.Leader
		if leader == "" {
			leader = "none"
		}
		fmt.Fprintf(t, "%d\t%s\t%d\t%s\t%s\n", p.Partition, leader, p.Term, strings.Join(p.Placement, ","), replicaList(p.Replicas))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, p := range s.Partitions {
		printFull(w, p.Partition, p.StorageFull)
	}
	for _, n := range s.Nodes {
		if n.Damaged != "" {
			fmt.Fprintf(w, "node %s has damage on its disk: %s\n", n.Name, n.Damaged)
		}
	}
	return nil
}

// printFull prints why a partition accepts no appends.
func printFull(w io.Writer, partition int, why string) {
	if why != "" {
		fmt.Fprintf(w, "partition %d refuses appends: %s\n", partition, why)
	}
}

func replicaList(replicas []subjects.ReplicaStatus) string {
	var words []string
	for _, r := range replicas {
		word := fmt.Sprintf("%s:%d", r.Name, r.HighWaterMark)
		if r.State == "away" {
			word = r.Name // its position is unknown
		}
		if r.Voter {
			word += "+"
		}
		switch {
		case r.Fenced != "":
			word += " (fenced)"
		case r.State == "away":
			word += " (away)"
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

// operate requests an operation, prints what was decided and, with --wait,
// waits until done returns true for the status. Within that time it also asks
// again while there is no leader to decide.
func (c *connection) operate(ctx context.Context, p *program, subject []string, body subjects.AdminRequest, wait duration, done func(subjects.ClusterStatus) bool) error {
	l, err := c.open(ctx, "cluster "+subject[len(subject)-1])
	if err != nil {
		return err
	}
	defer l.close()
	var reply subjects.AdminReply
	began, said := time.Now(), ""
	for {
		err = l.ask(ctx, l.names.Admin(subject...), body, &reply)
		if !undecided(err, subject) || time.Since(began) > time.Duration(wait) {
			break
		}
		if err.Error() != said && wait > 0 {
			said = err.Error()
			fmt.Fprintf(p.errOut, "cantus: not decided yet, asking again: %s\n", said)
		}
		select {
		case <-time.After(pollInterval):
		case <-ctx.Done():
			return l.explain(ctx.Err())
		}
	}
	if errors.Is(err, nats.ErrNoResponders) {
		if _, err := l.clusterStatus(ctx); err != nil {
			return err
		}
		if subject[0] == "node" {
			return failf(exitUnavailable, "node %s is not there", subject[1])
		}
		return failf(exitUnavailable, "the cluster's facts have no leader at the moment: try again")
	}
	if err != nil {
		return l.explain(err)
	}
	if err := p.decided(reply); err != nil || wait == 0 {
		return err
	}
	err = l.await(ctx, began, time.Duration(wait), func(s subjects.ClusterStatus) bool {
		switch {
		case s.Facts < reply.Facts: // of a node that has not heard of it yet
			return false
		case reply.Rebuilds > 0 && !rebuilt(s, *body.Partition, subject[1], reply.Rebuilds):
			return false
		}
		return done(s)
	})
	if what := subject[len(subject)-1]; err != nil || what == "remove" || what == "drain" { // which say more
		return err
	}
	_, err = fmt.Fprintf(p.out, "done after %v\n", time.Since(began).Round(100*time.Millisecond))
	return err
}

// decided prints what was decided, and on standard error what to know about it.
func (p *program) decided(r subjects.AdminReply) error {
	for _, w := range r.Warnings {
		p.note("warning: %s", w)
	}
	_, err := fmt.Fprintln(p.out, r.Done)
	return err
}

// undecided reports whether an operation was refused, or met nobody, because
// there is no leader at the moment.
func undecided(err error, subject []string) bool {
	e, refused := errors.AsType[*subjects.Error](err)
	return refused && e.Reason == subjects.Unavailable || errors.Is(err, nats.ErrNoResponders) && subject[0] != "node"
}

// rebuilt reports whether a node's replica of a partition was rebuilt at least
// often times since the node started, and takes part again.
func rebuilt(s subjects.ClusterStatus, partition int, node string, often uint64) bool {
	return partition < len(s.Partitions) && slices.ContainsFunc(s.Partitions[partition].Replicas, func(r subjects.ReplicaStatus) bool {
		return r.Name == node && r.Voter && r.Fenced == "" && r.Rebuilds >= often
	})
}

// pollInterval is the time between two requests of a command that waits.
const pollInterval = 200 * time.Millisecond

// await requests the status until done returns true for it, at most until a
// time after began.
func (l *natsConn) await(ctx context.Context, began time.Time, most time.Duration, done func(subjects.ClusterStatus) bool) error {
	deadline := time.NewTimer(time.Until(began.Add(most)))
	defer deadline.Stop()
	for {
		if s, err := l.clusterStatus(ctx); err == nil && done(s) {
			return nil
		}
		select {
		case <-time.After(pollInterval):
		case <-ctx.Done():
			return l.explain(ctx.Err())
		case <-deadline.C:
			return failf(exitUnavailable, "not done after %v; it continues in the background: see \"cantus cluster status\"", most)
		}
	}
}

// placed reports whether the replicas of every partition are on the nodes of
// its placement, and the preferred node leads it. A preferred node that is away
// can't lead: then it is enough that another one does.
func placed(s subjects.ClusterStatus) bool {
	for _, p := range s.Partitions {
		voters := 0
		for _, r := range p.Replicas {
			if r.Voter {
				voters++
			}
			if r.Voter && !slices.Contains(p.Placement, r.Name) {
				return false
			}
		}
		if voters != len(p.Placement) || p.Leader == "" {
			return false
		}
		if preferred, _ := nodeOf(s, p.Placement[0]); preferred.Alive && p.Leader != preferred.Name {
			return false
		}
	}
	return true
}

func nodeOf(s subjects.ClusterStatus, name string) (subjects.NodeStatus, bool) {
	for _, n := range s.Nodes {
		if n.Name == name {
			return n, true
		}
	}
	return subjects.NodeStatus{}, false
}

type clusterAddCmd struct {
	Node    token  `arg:"" name:"NODE" help:"The node's name, as it was started with --name."`
	Standby bool   `help:"It follows every partition and has no vote, until it is promoted."`
	Key     string `placeholder:"FINGERPRINT" help:"Add it only if it shows this key, as its log and \"cantus cluster status\" have it."`
	waitFlag
	connection
}

func (*clusterAddCmd) Help() string {
	return `Start the node first, on an empty data directory, with a name of its own, --cluster, --routes to one of the nodes, and
without --bootstrap; it then waits. Where the nodes share a token, it needs --cluster-secret-file too. Otherwise it shows
a key, for which the cluster encrypts its secret: check the key with --key. The node takes replicas where partitions have
too few; "cantus cluster balance" or "move" gives it more.

` + clusterHelp
}

// Run adds a node.
func (c *clusterAddCmd) Run(ctx context.Context, p *program) error {
	return c.operate(ctx, p, []string{"cluster", "add"}, subjects.AdminRequest{Node: string(c.Node), Standby: c.Standby, Key: c.Key}, c.Wait,
		func(s subjects.ClusterStatus) bool {
			n, ok := nodeOf(s, string(c.Node))
			return ok && n.Ready && placed(s)
		})
}

type clusterRemoveCmd struct {
	Node token `arg:"" name:"NODE" help:"The node."`
	waitFlag
	connection
}

func (*clusterRemoveCmd) Help() string {
	return `Its replicas go to other nodes; where there are not enough of them, partitions have fewer replicas from then on. It may be
away already. A removal that would cost a partition its majority is refused. Once removed, the node stops
within some seconds; then its directory can be deleted.

` + clusterHelp
}

// Run removes a node.
func (c *clusterRemoveCmd) Run(ctx context.Context, p *program) error {
	err := c.operate(ctx, p, []string{"cluster", "remove"}, subjects.AdminRequest{Node: string(c.Node)}, c.Wait,
		func(s subjects.ClusterStatus) bool {
			n, ok := nodeOf(s, string(c.Node))
			return (!ok || n.State == "waiting") && placed(s)
		})
	if err == nil && c.Wait > 0 {
		_, err = fmt.Fprintf(p.out, "node %s was removed\n", c.Node)
	}
	return err
}

type clusterDrainCmd struct {
	Node token `arg:"" name:"NODE" help:"The node."`
	waitFlag
	connection
}

func (*clusterDrainCmd) Help() string {
	return `Where there are not enough other nodes, the node keeps its replicas, and leads none that another node can lead.

` + clusterHelp + `

Exit status: 1 if --wait ends with replicas that no other node can take, 4 if some are still to be moved.`
}

// Run drains a node.
func (c *clusterDrainCmd) Run(ctx context.Context, p *program) error {
	here, stay := 0, 0
	err := c.operate(ctx, p, []string{"cluster", "drain"}, subjects.AdminRequest{Node: string(c.Node)}, c.Wait,
		func(s subjects.ClusterStatus) bool {
			here, stay = held(s, string(c.Node))
			return here == stay && placed(s)
		})
	if err != nil && here > stay {
		return failf(exitStatus(err), "%w; node %s still has %s to move", err, c.Node, plural(here-stay, "replica"))
	}
	if err != nil || c.Wait == 0 {
		return err
	}
	if stay > 0 {
		return failf(exitFailed, "node %s is not empty: it keeps %s that no other node can take; add a node, or end the drain with \"cantus cluster undrain %s\"",
			c.Node, plural(stay, "replica"), c.Node)
	}
	_, err = fmt.Fprintf(p.out, "node %s is drained: it holds no voting replicas\n", c.Node)
	return err
}

// held returns how many voting replicas a node has, and how many it should
// have.
func held(s subjects.ClusterStatus, node string) (has, wanted int) {
	for _, p := range s.Partitions {
		if slices.ContainsFunc(p.Replicas, func(r subjects.ReplicaStatus) bool { return r.Voter && r.Name == node }) {
			has++
		}
		if slices.Contains(p.Placement, node) {
			wanted++
		}
	}
	return has, wanted
}

type clusterUndrainCmd struct {
	Node token `arg:"" name:"NODE" help:"The node."`
	waitFlag
	connection
}

func (*clusterUndrainCmd) Help() string { return clusterHelp }

// Run ends a drain.
func (c *clusterUndrainCmd) Run(ctx context.Context, p *program) error {
	return c.operate(ctx, p, []string{"cluster", "undrain"}, subjects.AdminRequest{Node: string(c.Node)}, c.Wait,
		func(s subjects.ClusterStatus) bool {
			n, _ := nodeOf(s, string(c.Node))
			return n.Alive && placed(s)
		})
}

type clusterPromoteCmd struct {
	Node token `arg:"" name:"NODE" help:"The standby."`
	waitFlag
	connection
}

func (*clusterPromoteCmd) Help() string { return clusterHelp }

// Run promotes a standby.
func (c *clusterPromoteCmd) Run(ctx context.Context, p *program) error {
	return c.operate(ctx, p, []string{"cluster", "promote"}, subjects.AdminRequest{Node: string(c.Node)}, c.Wait,
		func(s subjects.ClusterStatus) bool {
			n, _ := nodeOf(s, string(c.Node))
			return n.Alive && placed(s)
		})
}

type clusterTransferCmd struct {
	Partition partition `arg:"" name:"P" help:"The partition."`
	To        token     `required:"" placeholder:"NODE" help:"The node that is to lead it."`
	waitFlag
	connection
}

func (*clusterTransferCmd) Help() string { return clusterHelp }

// Run transfers leadership.
func (c *clusterTransferCmd) Run(ctx context.Context, p *program) error {
	id := int(c.Partition)
	return c.operate(ctx, p, []string{"cluster", "transfer"}, subjects.AdminRequest{Partition: &id, To: string(c.To)}, c.Wait,
		func(s subjects.ClusterStatus) bool {
			return id < len(s.Partitions) && s.Partitions[id].Leader == string(c.To) && placed(s)
		})
}

type clusterMoveCmd struct {
	Partition partition `arg:"" name:"P" help:"The partition."`
	From      token     `required:"" placeholder:"NODE" help:"The node that its replica leaves."`
	To        token     `required:"" placeholder:"NODE" help:"The node that it goes to."`
	waitFlag
	connection
}

func (*clusterMoveCmd) Help() string { return clusterHelp }

// Run moves a replica.
func (c *clusterMoveCmd) Run(ctx context.Context, p *program) error {
	id := int(c.Partition)
	return c.operate(ctx, p, []string{"cluster", "move"},
		subjects.AdminRequest{Partition: &id, Node: string(c.From), To: string(c.To)}, c.Wait, placed)
}

type clusterBalanceCmd struct {
	waitFlag
	connection
}

func (*clusterBalanceCmd) Help() string { return clusterHelp }

// Run balances the cluster.
func (c *clusterBalanceCmd) Run(ctx context.Context, p *program) error {
	return c.operate(ctx, p, []string{"cluster", "balance"}, subjects.AdminRequest{}, c.Wait, placed)
}

type clusterRebuildCmd struct {
	Partition partition `arg:"" name:"P" help:"The partition."`
	Node      token     `required:"" placeholder:"NODE" help:"The node whose replica is rebuilt."`
	waitFlag
	connection
}

func (*clusterRebuildCmd) Help() string {
	return `For a replica that was fenced because its log differs from the others'. It loses its vote, is deleted and fetched from
the leader, and votes again when it has everything. A replica that leads is not rebuilt: transfer its leadership first.

` + clusterHelp
}

// Run rebuilds a replica.
func (c *clusterRebuildCmd) Run(ctx context.Context, p *program) error {
	id := int(c.Partition)
	return c.operate(ctx, p, []string{"node", string(c.Node), "rebuild"}, subjects.AdminRequest{Partition: &id}, c.Wait, placed)
}

type trimCmd struct {
	Partition partition `arg:"" name:"P" help:"The partition."`
	Before    txid      `placeholder:"TXID" xor:"what" help:"Trim what is older than this transaction."`
	Age       duration  `placeholder:"TIME" xor:"what" help:"Trim what is older than this, in hours, minutes and seconds: 720h for 30 days."`
	Size      byteSize  `placeholder:"SIZE" xor:"what" help:"Keep about this many bytes of the newest, such as 10GiB."`
	JSON      bool      `name:"json" help:"Print one JSON object."`
	connection
}

func (*trimCmd) Help() string {
	return `The oldest transactions of the partition are deleted, the same ones on every replica. A trim removes whole batches,
which are what was replicated at once. Prints from which transaction on the partition is kept, and on standard error why
more is kept than was asked for: transactions whose message ids are still remembered stay. Readers that ask for an older one are
refused as "trimmed". The space on the disk comes back in the background, file by file.

Examples:

  cantus trim 0 --age 720h
  cantus trim 0 --size 50GiB
  cantus trim 0 --before 1000000`
}

// Run trims a partition.
func (c *trimCmd) Run(ctx context.Context, p *program) error {
	if c.Before == 0 && c.Age == 0 && c.Size == 0 {
		return usagef("say what to trim: --before TXID, --age TIME or --size SIZE, such as \"cantus trim %d --age 720h\"", c.Partition)
	}
	l, err := c.open(ctx, "trim")
	if err != nil {
		return err
	}
	defer l.close()
	body := subjects.TrimRequest{Before: uint64(c.Before), Bytes: uint64(c.Size)}
	if c.Age > 0 {
		body.Age = time.Duration(c.Age).String()
	}
	var reply subjects.TrimReply
	err = l.ask(ctx, l.names.Admin("trim", fmt.Sprint(int(c.Partition))), body, &reply)
	if errors.Is(err, nats.ErrNoResponders) {
		return l.noOperator(ctx, int(c.Partition))
	}
	if err != nil {
		return l.explain(err)
	}
	if reply.Because != "" {
		p.note("more is kept than was asked for: %s", reply.Because)
	}
	if c.JSON {
		return printJSON(p.out, reply)
	}
	_, err = fmt.Fprintf(p.out, "partition %d is kept from transaction %d on\n", reply.Partition, reply.FirstTxid)
	return err
}
