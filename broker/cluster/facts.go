package cluster

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Facts are what the nodes of a cluster agree on.
type Facts struct {
	// Version counts the commands that took effect.
	Version uint64 `json:"version"`
	// Replicas is how many voters a partition is to have, if there are as
	// many nodes.
	Replicas int `json:"replicas"`
	// Nodes are the members, by name.
	Nodes map[string]Member `json:"nodes"`
	// Placement lists each partition's voters. The first is to lead.
	Placement [][]string `json:"placement"`
	// Starts are the last starts of the members' data directories, by their ids.
	Starts map[string]Start `json:"starts,omitempty"`
}

// Start is a start of a node on its data directory. An older copy of the
// directory comes to the same number again, with another nonce.
type Start struct {
	Number uint64 `json:"number"`
	Nonce  string `json:"nonce"`
}

// Member is a node of the cluster.
type Member struct {
	// ID is the one that the node's data directory was given: a node that has
	// lost its directory is another one.
	ID string `json:"id"`
	// Key is the fingerprint of the key that the node showed when it was added,
	// for which the cluster's secret is sealed when it joins. Empty for a founder
	// and for a node that has the secret by a token.
	Key string `json:"key,omitempty"`
	// Standby says that the node follows every partition without a vote.
	Standby bool `json:"standby,omitempty"`
	// Draining says that the node is to hold and lead as little as possible.
	Draining bool `json:"draining,omitempty"`
	// Leaving says that the node is removed once it holds nothing.
	Leaving bool `json:"leaving,omitempty"`
}

// Found returns the facts of a new cluster. Founders are names and the ids of
// their data directories.
func Found(founders map[string]string, partitions, replicas int) Facts {
	f := Facts{Replicas: replicas, Nodes: map[string]Member{}, Placement: make([][]string, partitions)}
	for name, id := range founders {
		f.Nodes[name] = Member{ID: id}
	}
	names := slices.Sorted(maps.Keys(founders))
	n := min(replicas, len(names))
	for p := range f.Placement {
		for i := range n {
			f.Placement[p] = append(f.Placement[p], names[(p+i)%len(names)])
		}
	}
	return f
}

// Clone returns a copy that shares nothing.
func (f Facts) Clone() Facts {
	f.Nodes = maps.Clone(f.Nodes)
	f.Starts = maps.Clone(f.Starts)
	f.Placement = slices.Clone(f.Placement)
	for p := range f.Placement {
		f.Placement[p] = slices.Clone(f.Placement[p])
	}
	return f
}

// Voters are the replicas with a vote that a partition is to have; the first
// is to lead. Not to be changed.
func (f Facts) Voters(partition int) []string { return f.Placement[partition] }

// Followers are the replicas without a vote that a partition is to have, in
// order.
func (f Facts) Followers(partition int) []string {
	var names []string
	for name, m := range f.Nodes {
		if m.Standby && !m.Leaving && !slices.Contains(f.Placement[partition], name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Hosts reports whether a node is to have a replica of a partition.
func (f Facts) Hosts(node string, partition int) bool {
	m, known := f.Nodes[node]
	return known && (m.Standby && !m.Leaving || slices.Contains(f.Placement[partition], node))
}

// MetaVoters are the members that vote on the facts themselves: all, up to
// five. The first five names in order do, those that may hold replicas first.
func (f Facts) MetaVoters() []string {
	const most = 5
	var able, other []string
	for _, name := range f.Names() {
		switch m := f.Nodes[name]; {
		case m.Leaving:
		case m.Standby:
			other = append(other, name)
		default:
			able = append(able, name)
		}
	}
	if len(able) == 0 { // never without any
		able = other
	}
	n := min(most, len(able))
	if n%2 == 0 && n == most-1 { // four vote no safer than three, and slower
		n--
	}
	return able[:n]
}

// Names are the members' names, in order.
func (f Facts) Names() []string { return slices.Sorted(maps.Keys(f.Nodes)) }

// The kinds of commands.
const (
	AddNode    = "add"
	RemoveNode = "remove"
	SetNode    = "set"
	Place      = "place"
	NoteStart  = "start"
)

// Command is a change to the facts.
type Command struct {
	Kind string `json:"kind"`
	// Version is that of the facts which the command was computed from. It
	// takes effect only on those.
	Version uint64 `json:"version"`
	// Node and Member are what is added, removed or set.
	Node   string `json:"node,omitempty"`
	Member Member `json:"member,omitzero"`
	// Start is what is noted of the member with the id Member.ID.
	Start Start `json:"start,omitzero"`
	// Placement is set with any kind: the partitions whose replicas change.
	Placement map[int][]string `json:"placement,omitempty"`
}

// ErrStale is returned for a command that was computed from other facts than
// the present ones: compute it anew.
var ErrStale = errors.New("cluster: the facts have changed")

// ErrCommand is returned for a command that makes no sense of these facts.
var ErrCommand = errors.New("cluster: bad command")

// Apply changes the facts by a command, or gives the error and changes
// nothing.
func (f *Facts) Apply(c Command) error {
	if c.Kind == NoteStart {
		return f.noteStart(c)
	}
	if c.Version != f.Version {
		return fmt.Errorf("%w: at version %d, the command is for %d", ErrStale, f.Version, c.Version)
	}
	next := f.Clone()
	if err := next.apply(c); err != nil {
		return err
	}
	if err := next.check(); err != nil {
		return err
	}
	next.Version++
	*f = next
	return nil
}

// noteStart notes a newer start of a member. It changes nothing that another
// command could have been computed from, and leaves the version.
func (f *Facts) noteStart(c Command) error {
	have, known := f.Nodes[c.Node]
	switch {
	case !known || have.ID != c.Member.ID:
		return fmt.Errorf("%w: node %q with the id %s is not a member", ErrCommand, c.Node, c.Member.ID)
	case c.Start.Number <= f.Starts[have.ID].Number:
		return fmt.Errorf("%w: start %d of node %q is not newer than %d", ErrCommand, c.Start.Number, c.Node, f.Starts[have.ID].Number)
	}
	next := f.Clone()
	if next.Starts == nil {
		next.Starts = map[string]Start{}
	}
	next.Starts[have.ID] = c.Start
	*f = next
	return nil
}

func (f *Facts) apply(c Command) error {
	_, known := f.Nodes[c.Node]
	switch c.Kind {
	case AddNode:
		if known {
			return fmt.Errorf("%w: node %q is a member already", ErrCommand, c.Node)
		}
		f.Nodes[c.Node] = c.Member
	case SetNode:
		if !known {
			return fmt.Errorf("%w: node %q is not a member", ErrCommand, c.Node)
		}
		f.Nodes[c.Node] = c.Member
	case RemoveNode:
		if !known {
			return fmt.Errorf("%w: node %q is not a member", ErrCommand, c.Node)
		}
		delete(f.Starts, f.Nodes[c.Node].ID)
		delete(f.Nodes, c.Node)
	case Place:
	default:
		return fmt.Errorf("%w: kind %q is not known to this version", ErrCommand, c.Kind)
	}
	for p, names := range c.Placement {
		if p < 0 || p >= len(f.Placement) {
			return fmt.Errorf("%w: there is no partition %d", ErrCommand, p)
		}
		f.Placement[p] = slices.Clone(names)
	}
	return nil
}

// check makes sure that every partition is on members that may hold it.
func (f *Facts) check() error {
	for p, names := range f.Placement {
		if len(names) == 0 {
			return fmt.Errorf("%w: partition %d would have no replica", ErrCommand, p)
		}
		for i, name := range names {
			m, known := f.Nodes[name]
			switch {
			case !known:
				return fmt.Errorf("%w: partition %d would be on %q, which is not a member", ErrCommand, p, name)
			case m.Standby:
				return fmt.Errorf("%w: partition %d would have a vote on %q, which is a standby", ErrCommand, p, name)
			case slices.Contains(names[:i], name):
				return fmt.Errorf("%w: partition %d would be on %q twice", ErrCommand, p, name)
			}
		}
	}
	return nil
}
