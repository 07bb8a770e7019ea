package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/wal"
)

type recoverCmd struct {
	Dir     string `arg:"" name:"DIR" type:"path" help:"Data directory of the surviving node, which is stopped."`
	NewName token  `name:"new-name" placeholder:"NAME" help:"Recover, to a cluster of this name. [default: only say what would be done]"`
	Empty   bool   `help:"Partitions of which there is no replica here begin empty."`
	Fenced  bool   `help:"Accept replicas that were fenced, because their logs differ from those of the lost nodes."`
	Confirm string `placeholder:"OLD-NAME" help:"The name of the cluster that is given up, for scripts. [default: asked for]"`
	JSON    bool   `name:"json" help:"Print one JSON object: what the directory has."`
}

func (*recoverCmd) Help() string {
	return `For a cluster that has lost the majority of its nodes for good. It makes the node of DIR the only member of a new cluster,
which has what DIR has. What the lost nodes had beyond that is lost: without --new-name the command only says what that may be,
in transaction ids of each partition. If several directories are left, ask each, and take the one with the most.

If the other nodes can be started again, even one of them, don't recover: start them. Nodes of the old cluster that come back
later are refused. Stop them for good before you recover, and start them with an empty directory afterwards.

If another cluster mirrors this one and has as much, don't recover either: "cantus mirror promote" makes the mirror take its
place. It has a majority of its own, and only what was committed. The directory of a standby, a node without a vote, may lack
what was acknowledged: ask the directories of the other nodes first.

The node is then started with --cluster-name NAME; others are added to it as to any cluster. Transactions keep their ids, and
new ones follow on them. Consumers that have applied more are told so, and stop.

A recovery that is interrupted is completed by the same command. docs/recover.md has the whole procedure.

Examples:

  cantus recover /var/lib/cantus
  cantus recover /var/lib/cantus --new-name bank-2
  cantus recover /var/lib/cantus --new-name bank-2 --empty --confirm bank

Exit status: 0 if it is done, or could be done as asked, 1 if it failed and has to be run again, 2 if it can't be done or was
not confirmed, and nothing was changed.`
}

// recovery is the output of --json.
type recovery struct {
	Cluster    string             `json:"cluster"`
	ID         string             `json:"id"`
	Node       string             `json:"node"`
	Members    []string           `json:"members"`
	Partitions []broker.Surviving `json:"partitions"`
	// Refused is why it can't be done as asked.
	Refused string `json:"refused,omitempty"`
	// Recovered is the new cluster, once it is done.
	Recovered *recoveredCluster `json:"recovered,omitempty"`
}

type recoveredCluster struct {
	Cluster string `json:"cluster"`
	ID      string `json:"id"`
}

// Run says what a directory has, and recovers it if that is asked for.
func (c *recoverCmd) Run(p *program) (err error) {
	if info, err := os.Stat(c.Dir); err != nil {
		return usagef("data directory: %w", err)
	} else if !info.IsDir() {
		return usagef("data directory: %s is a file", c.Dir)
	}
	r, err := broker.OpenRecovery(c.Dir, slog.New(slog.DiscardHandler))
	switch {
	case errors.Is(err, wal.ErrInUse):
		return failf(exitUsage, "%w", inUse(c.Dir))
	case errors.Is(err, wal.ErrDamaged):
		return failf(exitUsage, "%w; %s", err, leftIn(c.Dir))
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, broker.ErrNotLost):
		return failf(exitUsage, "%w", err)
	case err != nil:
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	return c.run(p, r)
}

func (c *recoverCmd) run(p *program, r *broker.Recovery) error {
	was := r.Identity.Cluster
	if n := len(r.Identity.Past); r.Unfinished() {
		was = r.Identity.Past[n-1].Cluster
	}
	name, how := string(c.NewName), wal.Recovering{Empty: c.Empty, Fenced: c.Fenced}
	asked := name
	if name == "" {
		name = c.suggest(r)
	}
	refused := r.Check(name, how)
	report := recovery{Cluster: was, ID: r.Identity.ID, Node: r.Identity.Node, Members: r.Members, Partitions: r.Partitions}
	if refused != nil {
		report.Refused = errorText(refused)
	}
	if !c.JSON {
		c.describe(p, r, was)
	}
	switch {
	case refused != nil && c.JSON && asked == "":
		return printJSON(p.out, report)
	case refused != nil:
		return failf(exitUsage, "%w; nothing was changed", refused)
	case asked == "" && c.JSON:
		return printJSON(p.out, report)
	case asked == "":
		c.next(p, name, was)
		return nil
	}
	if err := c.confirm(p, was); err != nil {
		return err
	}
	if err := r.Run(name, how); err != nil {
		return failf(exitFailed, "%w; the recovery is not complete: run it again", err)
	}
	report.Recovered = &recoveredCluster{Cluster: r.Identity.Cluster, ID: r.Identity.ID}
	if c.JSON {
		return printJSON(p.out, report)
	}
	fmt.Fprintf(p.out, "\nDone: %s is the only member of cluster %s (id %s).\nStart it as before, with --cluster-name %s, and add other nodes with empty directories:\n"+
		"docs/recover.md says how. The nodes of %s that are lost must not be started on their old directories.\n",
		r.Identity.Node, r.Identity.Cluster, r.Identity.ID, r.Identity.Cluster, was)
	return nil
}

// numbered matches a name that ends in a number.
var numbered = regexp.MustCompile(`^(.*)-([0-9]{1,9})$`)

// suggest returns a name for the new cluster.
func (*recoverCmd) suggest(r *broker.Recovery) string {
	if r.Unfinished() {
		return r.Identity.Cluster
	}
	base, n := r.Identity.Cluster, 1
	if m := numbered.FindStringSubmatch(base); m != nil {
		base = m[1]
		n, _ = strconv.Atoi(m[2]) // nine digits at most
	}
	for {
		n++
		if name := fmt.Sprintf("%s-%d", base, n); !r.HasBeen(name) {
			return name
		}
	}
}

// describe says what the directory has.
func (c *recoverCmd) describe(p *program, r *broker.Recovery, was string) {
	if r.Unfinished() {
		fmt.Fprintf(p.out, "A recovery of this directory from cluster %s to %s was begun, and is not complete.\n", was, r.Identity.Cluster)
	}
	fmt.Fprintf(p.out, "%s is the directory of node %s of cluster %s, whose members are %s, as far as it knows.\n\n",
		c.Dir, r.Identity.Node, was, strings.Join(r.Members, ", "))
	for _, s := range r.Partitions {
		fmt.Fprintf(p.out, "partition %d: %s\n", s.Partition, c.surviving(r, s))
	}
	c.describeFollowers(p, r)
	fmt.Fprint(p.out, "\nTransactions that are not known to be committed stay, and count from then on. The lost nodes may have acknowledged others\n"+
		"under the same txids: consumers that have applied more than what is known to be committed are told so, and stop.\n")
}

// describeFollowers says so if the directory is a mirror's or a standby's,
// which are rarely to be recovered from.
func (*recoverCmd) describeFollowers(p *program, r *broker.Recovery) {
	sources, standby := []string(nil), false
	for _, s := range r.Partitions {
		if s.MirrorOf != "" && !slices.Contains(sources, s.MirrorOf) {
			sources = append(sources, s.MirrorOf)
		}
		standby = standby || s.Standby
	}
	if len(sources) > 0 {
		fmt.Fprintf(p.out, "\nThis is a mirror of cluster %s. If that cluster is the lost one, don't recover: promote the mirror (\"cantus mirror promote\").\n"+
			"If that cluster serves, don't recover either: begin another mirror of it. Recover only if a majority of the mirror's own nodes is\n"+
			"lost too. What is recovered is still a mirror, to be promoted then.\n", strings.Join(sources, ", "))
	}
	if standby {
		fmt.Fprintf(p.out, "\nNode %s is a standby: nothing that was acknowledged has waited for it, so it may lack much. Ask the directories of the other\n"+
			"nodes first, and take this one only if none of them has as much. A recovery makes it an ordinary node; without one, it can't be\n"+
			"promoted while the majority is away.\n", r.Identity.Node)
	}
}

// surviving says what the directory has of a partition, and what may be lost.
func (c *recoverCmd) surviving(r *broker.Recovery, s broker.Surviving) string {
	on := "it is on " + strings.Join(s.Nodes, ", ")
	switch {
	case s.Incomplete != "":
		return fmt.Sprintf("the replica here is not whole: %s (%s); \"cantus salvage %s --to FILE\" saves what there is; with --empty the partition begins empty, "+
			"and can be restored from a backup", s.Incomplete, on, c.Dir)
	case !s.Replica:
		return fmt.Sprintf("has no replica here (%s): everything is lost unless another directory has it; with --empty it begins empty, and can be restored from a backup", on)
	}
	text := "has no transaction; what was acknowledged is lost"
	if s.LastTxid > 0 {
		known := fmt.Sprintf("up to %d are", s.Committed)
		if s.Committed == 0 {
			known = "none is"
		}
		text = fmt.Sprintf("has transactions up to %d; %s known to be committed here; what was acknowledged after %d is lost", s.LastTxid, known, s.LastTxid)
	}
	if !s.Time.IsZero() {
		text += fmt.Sprintf(" (%d is of %s; digest %.12s)", s.LastTxid, s.Time.Format(time.RFC3339), s.Digest)
	}
	switch {
	case s.Fenced != "":
		text += "; FENCED: " + s.Fenced
	case s.MirrorOf != "":
		text += "; it is a mirror of cluster " + s.MirrorOf
	case s.Restoring:
		text += "; it is being restored, and \"cantus restore\" goes on with that"
	}
	switch {
	case r.Unfinished() || slices.Contains(s.Nodes, r.Identity.Node):
	case s.Standby:
		text += fmt.Sprintf("; this node has no vote on it (%s), and may lack much", on)
	default:
		text += fmt.Sprintf("; this node is not to have it any more (%s), and may lack much", on)
	}
	return text
}

// next says how to go on after a dry run.
func (c *recoverCmd) next(p *program, name, was string) {
	flags := ""
	if c.Empty {
		flags += " --empty"
	}
	if c.Fenced {
		flags += " --fenced"
	}
	fmt.Fprintf(p.out, "\nNothing was changed. If another node of %s can be started with its data, don't go on: start it.\n"+
		"If a mirror of it is left that has as many transactions (\"cantus status\" says so), don't go on: promote it (\"cantus mirror promote\").\n"+
		"If other directories are left, ask each of them the same, and take the one with the highest txids.\n"+
		"Keep a copy of this directory. Then make sure that the other nodes stay stopped, and recover:\n\n"+
		"  cantus recover %s --new-name %s%s\n", was, c.Dir, name, flags)
}

// confirm asks for the name of the cluster that is given up, unless it was
// given.
func (c *recoverCmd) confirm(p *program, was string) error {
	typed := c.Confirm
	if typed == "" {
		fmt.Fprintf(p.errOut, "\nThis gives up cluster %s and all that is not in this directory. Type its name to go on: ", was)
		line, err := bufio.NewReader(p.in).ReadString('\n')
		if typed = strings.TrimSpace(line); typed == "" && err != nil {
			fmt.Fprintln(p.errOut)
		}
	}
	if typed != was {
		return usagef("%q is not the name of the cluster, %s: not confirmed, nothing was changed", typed, was)
	}
	return nil
}
