package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

type upgradeCmd struct {
	Check upgradeCheckCmd `cmd:"" help:"Say whether a node may be restarted now, and which one next."`
}

type upgradeCheckCmd struct {
	Node token    `placeholder:"NODE" help:"Ask about this node only."`
	Wait duration `placeholder:"TIME" help:"Ask again for at most this long, until a node may be restarted."`
	JSON bool     `name:"json" help:"Print one JSON object."`
	connection
}

func (*upgradeCheckCmd) Help() string {
	return `For a rolling restart, before each step. A node may be restarted if every node is there and ready, every replica has caught up, and
each partition has a majority without the node. Restart one node, wait until it is ready, and ask again. A node whose
process was killed counts as there for up to 2.5 seconds; one that is stopped by a signal does not. A node that is down may
always be started: asked about it with --node, the answer is yes.

  for n in n1 n2 n3; do
    cantus upgrade check --node $n --wait 5m && ssh $n systemctl restart cantus || break
  done

Exit status: 0 if a node may be restarted, 1 if a restart stops writes for as long as it takes, whenever it is done, 4 if no node
may be restarted now.`
}

// restart is the output of --json.
type restart struct {
	OK bool `json:"ok"`
	// Nodes may be restarted now, one of them. Next is the one of them that has
	// run for longest.
	Nodes []string `json:"nodes,omitempty"`
	Next  string   `json:"next,omitempty"`
	// Reasons say why nothing may be restarted now. Stops say what the restart
	// of a node would stop, whenever it is done.
	Reasons []string `json:"reasons,omitempty"`
	Stops   []string `json:"stops,omitempty"`

	away string // since when the node that was asked about is away, if it is
}

// Run says whether a node may be restarted.
func (c *upgradeCheckCmd) Run(ctx context.Context, p *program) error {
	l, err := c.open(ctx, "upgrade check")
	if err != nil {
		return err
	}
	defer l.close()
	for began := time.Now(); ; {
		r, err := c.check(ctx, l)
		if exitStatus(err) != exitUnavailable || time.Since(began) > time.Duration(c.Wait) {
			return c.report(p.out, r, err)
		}
		select {
		case <-time.After(pollInterval):
		case <-ctx.Done():
			return l.explain(ctx.Err())
		}
	}
}

func (c *upgradeCheckCmd) check(ctx context.Context, l *natsConn) (restart, error) {
	s, err := l.survey(ctx, moment{})
	if err == nil {
		err = l.checkWhole(s.cluster)
	}
	if err != nil {
		return restart{}, err
	}
	r := mayRestart(s, string(c.Node))
	return r, r.err(s, string(c.Node))
}

// report prints the answer, if there is one, and returns err.
func (c *upgradeCheckCmd) report(w io.Writer, r restart, err error) error {
	answered := r.OK || len(r.Reasons)+len(r.Stops) > 0
	switch {
	case !answered:
	case c.JSON:
		if printed := printJSON(w, r); printed != nil {
			return printed
		}
	case r.OK:
		if _, printed := fmt.Fprintln(w, r.text(string(c.Node))); printed != nil {
			return printed
		}
	}
	return err
}

// text says what may be restarted.
func (r *restart) text(node string) string {
	switch {
	case r.away != "":
		return fmt.Sprintf("Node %s may be started now: it is %s, and starting it stops nothing.", node, r.away)
	case node != "":
		return fmt.Sprintf("Node %s may be restarted now.", node)
	}
	text := fmt.Sprintf("One of the nodes %s may be restarted now; %s has run for longest.", strings.Join(r.Nodes, ", "), r.Next)
	if len(r.Nodes) == 1 {
		text = fmt.Sprintf("Node %s may be restarted now.", r.Next)
	}
	for _, why := range r.Stops {
		text += "\n" + why
	}
	return text
}

// err returns why nothing, or not the node that was asked about, may be
// restarted; nil if it may.
func (r *restart) err(s survey, node string) error {
	what := "no node"
	if node != "" {
		what = "node " + node
		if s.status != nil && !slices.ContainsFunc(s.status.Nodes, func(n subjects.NodeStatus) bool { return n.Name == node && n.State != "waiting" }) {
			return usagef("there is no node %q in this cluster: \"cantus status\" lists them", node)
		}
	}
	may := " may be restarted now: "
	if node != "" {
		may = " may not be restarted now: "
	}
	switch {
	case r.OK:
		return nil
	case len(r.Reasons) > 0:
		return failf(exitUnavailable, "%s%s%s", what, may, strings.Join(r.Reasons, "; "))
	}
	return failf(exitFailed, "%s can be restarted without a pause: %s", what, strings.Join(r.Stops, "; "))
}

// mayRestart determines which nodes may be restarted, or whether the named one
// may.
func mayRestart(s survey, node string) (r restart) {
	if away := down(s, node); away != "" {
		return restart{OK: true, Nodes: []string{node}, Next: node, away: away}
	}
	v := assess(s)
	r.Reasons = slices.Concat(v.trouble, v.unknown)
	if s.status == nil {
		return r
	}
	for _, why := range slices.Concat(unfit(s.status), lagging(s.status)) {
		said := func(before string) bool { return strings.Contains(before, why) }
		if !slices.ContainsFunc(r.Reasons, said) {
			r.Reasons = append(r.Reasons, why)
		}
	}
	var since time.Time
	for _, n := range s.status.Nodes {
		if n.State == "waiting" || node != "" && n.Name != node {
			continue
		}
		i := slices.IndexFunc(v.Losses, func(l loss) bool { return l.Node == n.Name && len(l.Partitions) > 0 })
		if i >= 0 {
			r.Stops = append(r.Stops, v.stopped(v.Losses[i]))
			continue
		}
		r.Nodes = append(r.Nodes, n.Name)
		if r.Next == "" || n.Since.Before(since) {
			r.Next, since = n.Name, n.Since
		}
	}
	if r.OK = len(r.Reasons) == 0 && len(r.Nodes) > 0; !r.OK {
		r.Nodes, r.Next = nil, ""
	}
	return r
}

// down says since when a node is away, "" if it is not, or if a leader that has
// answered hears it.
func down(s survey, node string) string {
	if s.status == nil {
		return ""
	}
	n, is := nodeOf(*s.status, node)
	if !is || n.Alive || n.State == "waiting" {
		return ""
	}
	for _, p := range s.partitions {
		heard := func(r subjects.ReplicaInfo) bool { return r.Name == node && r.State != "away" }
		if p.info != nil && slices.ContainsFunc(p.info.Replicas, heard) {
			return ""
		}
	}
	since := away(n.Away, s.status.Time)
	return since
}

// stopped says what the restart of a node stops.
func (v *assessment) stopped(l loss) string {
	why := "the others are no majority"
	if slices.ContainsFunc(v.groups, func(g group) bool { return g.voters == 1 && slices.Contains(l.Partitions, g.partition) }) {
		why = "there is no other replica"
	}
	return fmt.Sprintf("a restart of node %s stops writes to %s for as long as it takes: %s", l.Node, v.list(l.Partitions), why)
}

// unfit says which members are not as they should be before a restart.
func unfit(s *subjects.ClusterStatus) (why []string) {
	for _, n := range s.Nodes {
		switch {
		case n.State == "waiting":
		case !n.Alive:
			why = append(why, fmt.Sprintf("node %s is %s", n.Name, away(n.Away, s.Time)))
		case !n.Ready:
			why = append(why, fmt.Sprintf("node %s is not ready: %s", n.Name, n.Unready))
		case n.StorageFull:
			why = append(why, fmt.Sprintf("node %s may not start again, since its disk is full", n.Name))
		case n.Damaged != "":
			why = append(why, fmt.Sprintf("node %s has damage on its disk: %s", n.Name, n.Damaged))
		}
	}
	if s.MetaLeader == "" {
		why = append(why, "the cluster's facts have no leader")
	}
	return why
}

// lagging says which replicas have not caught up, of the nodes that are there
// and have room on their disks: without room they can't.
func lagging(s *subjects.ClusterStatus) (why []string) {
	alive := map[string]bool{}
	for _, n := range s.Nodes {
		alive[n.Name] = n.Alive && !n.StorageFull
	}
	behind := map[string][]int{} // partitions by node
	for _, p := range s.Partitions {
		for _, name := range p.Placement {
			i := slices.IndexFunc(p.Replicas, func(r subjects.ReplicaStatus) bool { return r.Name == name })
			if p.Leader != "" && alive[name] && (i < 0 || !p.Replicas[i].CaughtUp) {
				behind[name] = append(behind[name], p.Partition)
			}
		}
	}
	var places []string
	late := map[string][]string{} // nodes by where they have not caught up
	note := func(where, node string) {
		if late[where] == nil {
			places = append(places, where)
		}
		late[where] = append(late[where], node)
	}
	for _, n := range s.Nodes {
		if of := behind[n.Name]; len(of) > 0 {
			where := listPartitions(of, len(s.Partitions))
			if len(of) == len(s.Partitions) && len(of) > 1 {
				where = "any partition"
			}
			note(where, n.Name)
		}
	}
	for _, r := range s.MetaReplicas {
		if r.Voter && alive[r.Name] && !r.CaughtUp && s.MetaLeader != "" {
			note("the cluster's facts", r.Name)
		}
	}
	for _, where := range places {
		names := late[where]
		why = append(why, fmt.Sprintf("%s %s not caught up in %s", nodes(names, "and"), either(len(names), "has", "have"), where))
	}
	return why
}
