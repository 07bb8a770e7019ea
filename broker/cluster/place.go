package cluster

import (
	"fmt"
	"maps"
	"slices"
)

// Add returns the command that makes a node a member. The node gets replicas
// only of partitions that have fewer than they should.
func (f Facts) Add(node string, m Member) (Command, error) {
	if have, known := f.Nodes[node]; known {
		if have.ID == m.ID {
			return Command{}, fmt.Errorf("%w: node %q is a member already", ErrCommand, node)
		}
		return Command{}, fmt.Errorf("%w: a node %q with another data directory is a member already: remove it first, or choose another name", ErrCommand, node)
	}
	g := f.Clone()
	g.Nodes[node] = m
	return f.command(AddNode, node, m, g.placementChanges()), nil
}

// Drain returns the command that moves replicas and leadership from a node to
// others, as far as these can take them.
func (f Facts) Drain(node string) (Command, error) {
	return f.set(node, func(m *Member) error { m.Draining = true; return nil })
}

// Undrain returns the command that lets a drained node have replicas again.
// Balance then moves some to it.
func (f Facts) Undrain(node string) (Command, error) {
	return f.set(node, func(m *Member) error { m.Draining = false; return nil })
}

// Promote returns the command that makes a standby an ordinary node.
func (f Facts) Promote(node string) (Command, error) {
	return f.set(node, func(m *Member) error {
		if !m.Standby {
			return fmt.Errorf("%w: node %q is not a standby", ErrCommand, node)
		}
		m.Standby = false
		return nil
	})
}

// Leave returns the command that moves everything from a node that is to be
// removed. Partitions have fewer replicas then if there are not enough other
// nodes.
func (f Facts) Leave(node string) (Command, error) {
	c, err := f.set(node, func(m *Member) error { m.Leaving = true; return nil })
	if err != nil {
		return c, err
	}
	if f.Hosting(node) > 0 {
		return c, nil
	}
	return c, fmt.Errorf("%w: %q is the last node that can hold partitions", ErrCommand, node)
}

// Hosting returns how many nodes can hold partitions, not counting one of them.
func (f Facts) Hosting(without string) (count int) {
	for name, m := range f.Nodes {
		if name != without && !m.Standby && !m.Leaving {
			count++
		}
	}
	return count
}

// Remove returns the command that removes a node that has no replicas any more.
func (f Facts) Remove(node string) Command { return f.command(RemoveNode, node, Member{}, nil) }

func (f Facts) set(node string, change func(*Member) error) (Command, error) {
	m, known := f.Nodes[node]
	if !known {
		return Command{}, fmt.Errorf("%w: node %q is not a member; members are %v", ErrCommand, node, f.Names())
	}
	if err := change(&m); err != nil {
		return Command{}, err
	}
	g := f.Clone()
	g.Nodes[node] = m
	return f.command(SetNode, node, m, g.placementChanges()), nil
}

// Lead returns the command that makes a node the leader of a partition of which
// it has a replica.
func (f Facts) Lead(partition int, node string) (Command, error) {
	names, err := f.placed(partition)
	if err != nil {
		return Command{}, err
	}
	i := slices.Index(names, node)
	if i < 0 {
		return Command{}, fmt.Errorf("%w: partition %d has no voting replica on %q: it is on %v", ErrCommand, partition, node, names)
	}
	names = slices.Insert(slices.Delete(slices.Clone(names), i, i+1), 0, node)
	return f.command(Place, "", Member{}, map[int][]string{partition: names}), nil
}

// Move returns the command that moves a replica from one node to another.
func (f Facts) Move(partition int, from, to string) (Command, error) {
	names, err := f.placed(partition)
	if err != nil {
		return Command{}, err
	}
	i, m := slices.Index(names, from), f.Nodes[to]
	switch _, known := f.Nodes[to]; {
	case i < 0:
		return Command{}, fmt.Errorf("%w: partition %d has no voting replica on %q: it is on %v", ErrCommand, partition, from, names)
	case !known:
		return Command{}, fmt.Errorf("%w: node %q is not a member; members are %v", ErrCommand, to, f.Names())
	case m.Standby || m.Leaving || m.Draining:
		return Command{}, fmt.Errorf("%w: node %q is a standby, draining or leaving: it takes no replicas", ErrCommand, to)
	case slices.Contains(names, to):
		return Command{}, fmt.Errorf("%w: partition %d is on %q already", ErrCommand, partition, to)
	}
	names = slices.Clone(names)
	names[i] = to
	return f.command(Place, "", Member{}, map[int][]string{partition: names}), nil
}

func (f Facts) placed(partition int) ([]string, error) {
	if partition < 0 || partition >= len(f.Placement) {
		return nil, fmt.Errorf("%w: there is no partition %d: they are 0 to %d", ErrCommand, partition, len(f.Placement)-1)
	}
	return f.Placement[partition], nil
}

// Balance returns the command that spreads replicas and leaders evenly, with
// few moves; false if they are spread evenly already.
func (f Facts) Balance() (Command, bool) {
	g := f.Clone()
	g.fill()
	g.spread()
	g.spreadLeaders()
	changed := f.changes(g)
	return f.command(Place, "", Member{}, changed), len(changed) > 0
}

func (f Facts) command(kind, node string, m Member, placement map[int][]string) Command {
	return Command{Kind: kind, Version: f.Version, Node: node, Member: m, Placement: placement}
}

// placementChanges returns the changes of placement that the current members
// require.
func (f Facts) placementChanges() map[int][]string {
	g := f.Clone()
	g.fill()
	g.spreadLeaders()
	return f.changes(g)
}

func (f Facts) changes(to Facts) map[int][]string {
	changed := map[int][]string{}
	for p := range f.Placement {
		if !slices.Equal(f.Placement[p], to.Placement[p]) {
			changed[p] = to.Placement[p]
		}
	}
	return changed
}

// able returns the nodes that may take replicas, in order.
func (f *Facts) able() []string {
	return slices.DeleteFunc(f.Names(), func(n string) bool {
		m := f.Nodes[n]
		return m.Standby || m.Leaving || m.Draining
	})
}

// fill gives each partition as many replicas as it should have, on nodes that
// may have them. A replica on a draining node stays there if no other node can
// take it. One on a leaving node stays only if it is the partition's last.
func (f *Facts) fill() {
	able := f.able()
	load := f.loads()
	for p, names := range f.Placement {
		keep := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !slices.Contains(able, n) })
		for _, n := range names {
			if !slices.Contains(keep, n) {
				load[n]--
			}
		}
		for len(keep) < f.Replicas {
			to := least(able, load, keep)
			if to == "" {
				break
			}
			keep = append(keep, to)
			load[to]++
		}
		for _, n := range names { // draining ones that are still needed
			if m := f.Nodes[n]; m.Draining && !m.Leaving && !m.Standby && len(keep) < min(f.Replicas, len(names)) {
				keep = append(keep, n)
				load[n]++
			}
		}
		if len(keep) > 0 {
			f.Placement[p] = keep
		}
	}
}

// loads returns the number of replicas on each node.
func (f *Facts) loads() map[string]int {
	load := map[string]int{}
	for _, names := range f.Placement {
		for _, n := range names {
			load[n]++
		}
	}
	return load
}

// least returns the node with the least load that is not in taken, "" if there
// is none.
func least(nodes []string, load map[string]int, taken []string) string {
	best := ""
	for _, n := range nodes {
		if !slices.Contains(taken, n) && (best == "" || load[n] < load[best]) {
			best = n
		}
	}
	return best
}

// spread moves replicas from the nodes that have most to those that have least,
// until no node has two more than another.
func (f *Facts) spread() {
	able := f.able()
	for {
		load := f.loads()
		p, i, to := f.move(able, load)
		if p < 0 {
			return
		}
		f.Placement[p][i] = to
	}
}

// move finds a replica that makes the load more even elsewhere.
func (f *Facts) move(able []string, load map[string]int) (partition, replica int, to string) {
	byLoad := slices.SortedStableFunc(slices.Values(able), func(a, b string) int { return load[b] - load[a] })
	for _, from := range byLoad {
		for _, to := range slices.Backward(byLoad) {
			if load[from]-load[to] < 2 {
				break
			}
			for p, names := range f.Placement {
				if i := slices.Index(names, from); i >= 0 && !slices.Contains(names, to) {
					return p, i, to
				}
			}
		}
	}
	return -1, 0, ""
}

// spreadLeaders makes every node that may lead the first of about as many
// partitions, with few changes: while one node leads two more than another,
// leadership shifts along the shortest path between them.
func (f *Facts) spreadLeaders() {
	able := f.able()
	for p, names := range f.Placement { // no draining node leads where another can
		if i := slices.IndexFunc(names, func(n string) bool { return slices.Contains(able, n) }); i > 0 {
			f.setLeader(p, names[i])
		}
	}
	for f.shiftLeader(able) {
	}
}

func (f *Facts) setLeader(p int, node string) {
	names := f.Placement[p]
	i := slices.Index(names, node)
	names[0], names[i] = names[i], names[0]
}

// shiftLeader makes leadership more even by one, and reports whether it could.
// It searches breadth first from the node that leads most: an edge goes from a
// partition's leader to each of its other replicas.
func (f *Facts) shiftLeader(able []string) bool {
	count := map[string]int{}
	for _, names := range f.Placement {
		count[names[0]]++
	}
	byCount := slices.SortedStableFunc(slices.Values(able), func(a, b string) int { return count[b] - count[a] })
	type step struct {
		from      string
		partition int
	}
	for _, start := range byCount {
		came := map[string]step{start: {}}
		for queue := []string{start}; len(queue) > 0; queue = queue[1:] {
			at := queue[0]
			if count[start]-count[at] >= 2 {
				for at != start {
					s := came[at]
					f.setLeader(s.partition, at)
					at = s.from
				}
				return true
			}
			for p, names := range f.Placement {
				if names[0] != at {
					continue
				}
				for _, to := range names[1:] {
					if _, seen := came[to]; !seen && slices.Contains(able, to) {
						came[to] = step{at, p}
						queue = append(queue, to)
					}
				}
			}
		}
	}
	return false
}

// Sizes returns the numbers of replicas and of leaderships that each node is to
// have.
func (f Facts) Sizes() (replicas, leads map[string]int) {
	replicas, leads = maps.Clone(f.loads()), map[string]int{}
	for _, names := range f.Placement {
		leads[names[0]]++
	}
	return replicas, leads
}
