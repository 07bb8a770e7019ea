package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

// health says whether writes are safe, and what stops if one more node fails.
// What is not known counts as not safe.
type health struct {
	Text string `json:"text"`
	// Safe is true if every partition is known to have a leader and a majority
	// of voters that have caught up, and to refuse no writes, unless it is a
	// mirror.
	Safe bool `json:"safe"`
	// MayFail is how many nodes, whichever they are, may fail before writes
	// stop. It is nil unless Safe is true.
	MayFail *int `json:"may_fail,omitempty"`
	// AnsweredBy is the node whose view it is, beside that of the partitions'
	// leaders.
	AnsweredBy string     `json:"answered_by,omitempty"`
	Away       []awayNode `json:"away,omitempty"`
	// Losses has an element for each node that is up and whose failure would
	// stop something.
	Losses     []loss `json:"losses,omitempty"`
	Leaderless []int  `json:"leaderless,omitempty"`
	// Since is when the node that answered last heard of a leader of the first
	// partition that lost its leader, if it hears of none.
	Since time.Time `json:"leaderless_since,omitzero"`
}

// awayNode is a member that the node that answered does not hear.
type awayNode struct {
	Node  string    `json:"node"`
	Since time.Time `json:"since,omitzero"`
}

// loss is what stops if a node fails now.
type loss struct {
	Node       string `json:"node"`
	Partitions []int  `json:"partitions,omitempty"`
	// Operations is true if the cluster could then decide no operation.
	Operations bool `json:"operations,omitempty"`
}

// assessment is the health of a cluster and what it is made from.
type assessment struct {
	health
	trouble []string // why writes to some partitions fail, or may
	unknown []string // what is not known
	notes   []string // what else the text has to say
	groups  []group  // the partitions that take writes
	meta    *group
	mirrors []int
	up      []string // members that are heard
	total   int      // partitions
	now     time.Time
}

// group is a Raft group that has a leader. Its voters that have caught up can
// go on if they are a majority.
type group struct {
	partition int
	voters    int
	caughtUp  []string
}

// spare returns how many of the voters that have caught up may fail.
func (g group) spare() int { return len(g.caughtUp) - (g.voters/2 + 1) }

// without reports whether the group could not go on without a node.
func (g group) without(node string) bool { return g.spare() < 1 && slices.Contains(g.caughtUp, node) }

// assess computes the health of a cluster.
func assess(s survey) assessment {
	v := assessment{total: len(s.partitions)}
	if s.status != nil {
		v.lookAtNodes(s.status)
	} else {
		v.unknown = append(v.unknown, s.unknown)
	}
	v.lookForLeaders(s)
	v.lookAtAnswers(s)
	v.lookAtReplicas(s)
	v.lookAtLosses()
	if v.Safe = len(v.trouble) == 0 && len(v.unknown) == 0; v.Safe {
		most := len(v.up)
		for _, g := range v.groups {
			most = min(most, g.spare())
		}
		v.MayFail = &most
	}
	v.Text = v.text()
	return v
}

// lookAtNodes records which members are away or damaged, and the group of the
// facts.
func (v *assessment) lookAtNodes(s *subjects.ClusterStatus) {
	v.AnsweredBy, v.now = s.AnsweredBy, s.Time
	for _, n := range s.Nodes {
		switch {
		case n.State == "waiting":
		case !n.Alive:
			v.Away = append(v.Away, awayNode{n.Name, n.Away})
		default:
			v.up = append(v.up, n.Name)
			if n.Damaged != "" {
				v.notes = append(v.notes, fmt.Sprintf("node %s has damage on its disk", n.Name))
			}
		}
	}
	g := v.groupOf(-1, s.MetaReplicas)
	switch {
	case s.MetaLeader == "":
		v.notes = append(v.notes, "the cluster's facts have no leader: no operation can be decided")
	case len(g.caughtUp) == 0:
		v.notes = append(v.notes, "it is not known whether operations can be decided")
	case g.spare() < 0:
		v.notes = append(v.notes, "too few replicas of the cluster's facts have caught up: operations may wait")
	default:
		v.meta = &g
	}
}

// groupOf returns the group of some replicas. A voter counts only if the node
// that answered hears it too.
func (v *assessment) groupOf(partition int, replicas []subjects.ReplicaStatus) group {
	g := group{partition: partition}
	for _, r := range replicas {
		if !r.Voter {
			continue
		}
		g.voters++
		if r.CaughtUp && r.Fenced == "" && r.State != "away" && slices.Contains(v.up, r.Name) {
			g.caughtUp = append(g.caughtUp, r.Name)
		}
	}
	return g
}

// lookForLeaders finds the partitions that have no leader, or whose leader does
// not answer.
func (v *assessment) lookForLeaders(s survey) {
	var silent, refused reasons
	for p, answer := range s.partitions {
		switch {
		case answer.info != nil:
		case answer.silent != "":
			silent.add(answer.silent, p)
		case answer.refused != "":
			refused.add(string(answer.refused), p)
		default:
			v.Leaderless = append(v.Leaderless, p)
			if s.status == nil || p >= len(s.status.Partitions) {
				continue
			}
			if since := s.status.Partitions[p].LeaderlessSince; !since.IsZero() && (v.Since.IsZero() || since.Before(v.Since)) {
				v.Since = since
			}
		}
	}
	if n := len(v.Leaderless); n > 0 {
		text := fmt.Sprintf("%s %s no leader: writes to %s fail", v.list(v.Leaderless), either(n, "has", "have"), either(n, "it", "them"))
		if n == v.total && n > 1 {
			text = "no partition has a leader: all writes fail"
		}
		if !v.Since.IsZero() {
			text += " since " + clock(v.Since, v.now)
		}
		v.trouble = append(v.trouble, text)
	}
	for _, why := range silent.all {
		v.trouble = append(v.trouble, fmt.Sprintf("%s did not answer, so it is not known whether writes succeed there (%s)", v.list(silent.of[why]), why))
	}
	for _, why := range refused.all {
		v.trouble = append(v.trouble, fmt.Sprintf("%s answered %q, so it is not known whether writes succeed there", v.list(refused.of[why]), why))
	}
}

// reasons are why something is so, in order, and in which partitions.
type reasons struct {
	all []string
	of  map[string][]int
}

func (r *reasons) add(why string, partition int) {
	if r.of == nil {
		r.of = map[string][]int{}
	}
	if r.of[why] == nil {
		r.all = append(r.all, why)
	}
	r.of[why] = append(r.of[why], partition)
}

// lookAtAnswers records which partitions refuse writes although they have a
// leader.
func (v *assessment) lookAtAnswers(s survey) {
	var full reasons
	var restoring []int
	for p, answer := range s.partitions {
		switch i := answer.info; {
		case i == nil:
		case i.StorageFull != "":
			full.add(i.StorageFull, p)
		case i.MirrorOf != "":
			v.mirrors = append(v.mirrors, p)
		case i.Restoring:
			restoring = append(restoring, p)
		}
	}
	for _, why := range full.all {
		v.trouble = append(v.trouble, fmt.Sprintf("%s %s writes: %s", v.list(full.of[why]), either(len(full.of[why]), "refuses", "refuse"), why))
	}
	if n := len(restoring); n > 0 {
		v.trouble = append(v.trouble, fmt.Sprintf("%s %s no writes until a restore or an import is complete", v.list(restoring), either(n, "takes", "take")))
	}
}

// lookAtReplicas records which replicas have caught up, of the partitions that
// have a leader.
func (v *assessment) lookAtReplicas(s survey) {
	if s.status == nil {
		return
	}
	var slow, unknown []int
	for p, answer := range s.partitions {
		if answer.info == nil {
			continue
		}
		if p >= len(s.status.Partitions) || !agree(*answer.info, s.status.Partitions[p]) {
			unknown = append(unknown, p)
			continue
		}
		replicas := s.status.Partitions[p].Replicas
		for _, r := range replicas {
			if r.Fenced != "" {
				v.note(fmt.Sprintf("node %s has a replica that is fenced", r.Name))
			}
		}
		switch g := v.groupOf(p, replicas); {
		case g.spare() < 0 && answer.info.StorageFull != "": // that is why, and is said already
		case len(g.caughtUp) == 0:
			unknown = append(unknown, p)
		case g.spare() < 0:
			slow = append(slow, p)
		default:
			v.groups = append(v.groups, g)
		}
	}
	if len(slow) > 0 {
		v.trouble = append(v.trouble, fmt.Sprintf("too few replicas of %s are known to have caught up: writes may wait for the others", v.list(slow)))
	}
	if len(unknown) > 0 {
		v.unknown = append(v.unknown, fmt.Sprintf("node %s does not know yet which replicas of %s have caught up: ask again", v.AnsweredBy, v.list(unknown)))
	}
}

// note adds to what the text has to say, once.
func (v *assessment) note(text string) {
	if !slices.Contains(v.notes, text) {
		v.notes = append(v.notes, text)
	}
}

// agree reports whether a leader and the node that answered for the cluster see
// the same leader, in the same term, and the same voters.
func agree(i subjects.PartitionInfo, s subjects.PartitionStatus) bool {
	var here, there []string
	for _, r := range i.Replicas {
		if r.Voter {
			here = append(here, r.Name)
		}
	}
	for _, r := range s.Replicas {
		if r.Voter {
			there = append(there, r.Name)
		}
	}
	slices.Sort(here)
	slices.Sort(there)
	return i.Partition == s.Partition && i.Leader == s.Leader && i.Term == s.Term && slices.Equal(here, there)
}

// lookAtLosses records what stops if one more node fails.
func (v *assessment) lookAtLosses() {
	for _, node := range v.up {
		l := loss{Node: node, Operations: v.meta != nil && v.meta.without(node)}
		for _, g := range v.groups {
			if g.without(node) {
				l.Partitions = append(l.Partitions, g.partition)
			}
		}
		if len(l.Partitions) > 0 || l.Operations {
			v.Losses = append(v.Losses, l)
		}
	}
}

// text returns the health as one line.
func (v *assessment) text() string {
	var text string
	switch {
	case len(v.trouble) > 0:
		text = strings.Join(v.trouble, "; ")
	case len(v.unknown) > 0:
		text = "every partition has a leader, but what stops if one more node fails is not known: " + strings.Join(v.unknown, "; ")
	case *v.MayFail > 0:
		text = v.safe() + "; " + may(*v.MayFail, len(v.Away) > 0)
	default:
		text = v.safe() + ", but " + v.stops()
	}
	if len(v.trouble) > 0 || len(v.unknown) > 0 {
		var away []string
		for _, a := range v.Away {
			away = append(away, a.Node)
		}
		if n := len(away); n > 0 {
			text += fmt.Sprintf("; %s %s away", nodes(away, "and"), either(n, "is", "are"))
		}
	} else if v.MayFail != nil && *v.MayFail > 0 && v.meta != nil && v.meta.spare() < 1 {
		text += "; if " + nodes(v.meta.caughtUp, "or") + " fails, no operation can be decided"
	}
	for _, note := range v.notes {
		text += "; " + note
	}
	return strings.ToUpper(text[:1]) + text[1:] + "."
}

// safe says that writes are safe.
func (v *assessment) safe() string {
	switch {
	case len(v.mirrors) == v.total:
		return "all partitions are mirrors and take no writes of others"
	case slices.ContainsFunc(v.groups, func(g group) bool { return g.voters == 1 }):
		return "writes succeed"
	case len(v.mirrors) > 0:
		return fmt.Sprintf("writes are safe (%s %s)", v.list(v.mirrors), either(len(v.mirrors), "is a mirror", "are mirrors"))
	}
	return "writes are safe"
}

// stops says what stops when one more node fails.
func (v *assessment) stops() string {
	var sets [][]int
	by := map[string][]string{} // nodes by what stops
	for _, l := range v.Losses {
		if len(l.Partitions) == 0 {
			continue
		}
		key := fmt.Sprint(l.Partitions)
		if by[key] == nil {
			sets = append(sets, l.Partitions)
		}
		by[key] = append(by[key], l.Node)
	}
	too := ""
	if len(v.Away) > 0 {
		too = " too"
	}
	if len(sets) > 3 {
		return fmt.Sprintf("if %s fails%s, partitions stop, as listed below", nodes(nodesOf(v.Losses), "or"), too)
	}
	var all []string
	for _, set := range sets {
		text := fmt.Sprintf("if %s fails%s, %s %s", nodes(by[fmt.Sprint(set)], "or"), too, v.list(set), either(len(set), "stops", "stop"))
		if slices.ContainsFunc(v.groups, func(g group) bool { return g.voters == 1 && slices.Contains(set, g.partition) }) {
			text += ", and there is no other replica"
		}
		all = append(all, text)
	}
	return strings.Join(all, "; ")
}

// text says what stops. total is the number of all partitions.
func (l loss) text(total int) string {
	var words []string
	if n := len(l.Partitions); n > 0 {
		words = append(words, listPartitions(l.Partitions, total)+" "+either(n, "stops", "stop"))
	}
	if l.Operations {
		words = append(words, "no operation can be decided")
	}
	return strings.Join(words, ", and ")
}

// nodesOf returns the nodes whose failure would stop partitions.
func nodesOf(losses []loss) (names []string) {
	for _, l := range losses {
		if len(l.Partitions) > 0 {
			names = append(names, l.Node)
		}
	}
	return names
}

// maxListed bounds the partitions in one list.
const maxListed = 12

// list names partitions.
func (v *assessment) list(partitions []int) string { return listPartitions(partitions, v.total) }

func listPartitions(partitions []int, total int) string {
	if len(partitions) == total && total > 1 {
		return "all partitions"
	}
	var words []string
	for _, p := range partitions[:min(len(partitions), maxListed)] {
		words = append(words, fmt.Sprint(p))
	}
	text := either(len(partitions), "partition ", "partitions ") + strings.Join(words, ", ")
	if more := len(partitions) - maxListed; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// nodes names nodes, with a conjunction before the last one.
func nodes(names []string, conjunction string) string {
	last := len(names) - 1
	if last < 1 {
		return "node " + strings.Join(names, "")
	}
	noun := "node "
	if conjunction == "and" {
		noun = "nodes "
	}
	return noun + strings.Join(names[:last], ", ") + " " + conjunction + " " + names[last]
}

// either returns one of two forms of a word, depending on a number.
func either(n int, singular, plural string) string {
	if n == 1 {
		return singular
	}
	return plural
}

// may says how many nodes may fail.
func may(n int, away bool) string {
	more := ""
	if away {
		more = " more"
	}
	if n == 1 {
		return "one" + more + " node may fail"
	}
	return fmt.Sprintf("any %d%s nodes may fail", n, more)
}

// clock returns a time as a node has it: with the date if that is not the same
// as now.
func clock(at, now time.Time) string {
	at, now = at.UTC(), now.UTC()
	if at.Format(time.DateOnly) == now.Format(time.DateOnly) {
		return at.Format("15:04:05 UTC")
	}
	return at.Format("2006-01-02 15:04:05 UTC")
}
