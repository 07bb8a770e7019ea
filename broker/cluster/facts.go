package cluster

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Facts are what the nodes of a cluster agree on: the members, and where each
// partition's replicas belong.
type Facts struct {
	// Version counts the commands that took effect.
	Version uint64 `json:"version"`
	// Replicas is how many voters each partition is to have, if there are as
	// many nodes.
	Replicas int `json:"replicas"`
	// Nodes are the members, by name.
	Nodes map[string]Member `json:"nodes"`
	// Placement lists the voters of each partition. The first is to lead it.
	Placement [][]string `json:"placement"`
	// Starts are the last starts of members, by the ids of their data
	// directories.
	Starts map[string]Start `json:"starts,omitempty"`
	// Retention has the policies by which partitions are trimmed: by number,
	// and under "*" that of all others.
	Retention map[string]Retention `json:"retention,omitempty"`
	// Namespaces are parts of the cluster for a service each, by name.
	Namespaces map[string]Namespace `json:"namespaces,omitempty"`
	// PastNames are the names that the cluster had before it was recovered,
	// however often. Nodes that were lost still have them.
	PastNames []string `json:"past_names,omitempty"`
}

// Start is one start of a node on its data directory. If an older copy of the
// directory is started, it uses the same number again, with another nonce.
type Start struct {
	Number uint64 `json:"number"`
	Nonce  string `json:"nonce"`
}

// Member is a node of the cluster.
type Member struct {
	// ID is the id of the node's data directory. A node that has lost its
	// directory comes back as another member.
	ID string `json:"id"`
	// Key is the fingerprint of the key that the node showed when it was added.
	// The cluster's secret is wrapped for that key when the node joins. It is
	// empty for a founder, and for a node that has the secret from a token.
	Key string `json:"key,omitempty"`
	// Standby says that the node follows every partition without a vote.
	Standby bool `json:"standby,omitempty"`
	// Draining says that the node is to hold and lead as little as possible.
	Draining bool `json:"draining,omitempty"`
	// Leaving says that the node is removed once it has no replicas.
	Leaving bool `json:"leaving,omitempty"`
}

// Bootstrap returns the facts of a new cluster. founders maps names of nodes to
// the ids of their data directories.
func Bootstrap(founders map[string]string, partitions, replicas int) Facts {
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

// Clone returns a deep copy.
func (f Facts) Clone() Facts {
	f.Nodes = maps.Clone(f.Nodes)
	f.Starts = maps.Clone(f.Starts)
	f.Retention = maps.Clone(f.Retention)
	f.Namespaces = maps.Clone(f.Namespaces)
	f.Placement = slices.Clone(f.Placement)
	for p := range f.Placement {
		f.Placement[p] = slices.Clone(f.Placement[p])
	}
	return f
}

// Voters returns the nodes that are to have a voting replica of a partition;
// the first is to lead. The caller must not change the slice.
func (f Facts) Voters(partition int) []string { return f.Placement[partition] }

// Followers returns the nodes that are to have a replica of a partition without
// a vote, in order.
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

// MetaVoters returns the members that vote on the facts themselves, five at
// most. They are the first names in order of the members that may hold
// replicas, or of the standbys if there are no others.
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
	if len(able) == 0 {
		able = other
	}
	n := min(most, len(able))
	if n%2 == 0 && n == most-1 { // four tolerate no more failures than three, and are slower
		n--
	}
	return able[:n]
}

// Names returns the members' names, in order.
func (f Facts) Names() []string { return slices.Sorted(maps.Keys(f.Nodes)) }

// The kinds of commands.
const (
	AddNode    = "add"
	RemoveNode = "remove"
	SetNode    = "set"
	Place      = "place"
	NoteStart  = "start"
	// Recover makes a node the only member: the others are lost.
	Recover = "recover"

	SetRetention = "retention"
	SetNamespace = "namespace"
)

// Command is a change to the facts.
type Command struct {
	Kind string `json:"kind"`
	// Version is the version of the facts that the command was computed from.
	// The command takes effect only on that version.
	Version uint64 `json:"version"`
	// Node and Member are the member that is added, removed or set.
	Node   string `json:"node,omitempty"`
	Member Member `json:"member,omitzero"`
	// Start is the start of the member with the id Member.ID.
	Start Start `json:"start,omitzero"`
	// Placement, with any kind, has the new voters of the partitions that
	// change.
	Placement map[int][]string `json:"placement,omitempty"`
	// Partition is a key of Facts.Retention, and Retention the policy there,
	// nil if it is removed.
	Partition string     `json:"partition,omitempty"`
	Retention *Retention `json:"retention,omitempty"`
	// Name is that of a namespace, and Namespace what it is, nil if it is
	// removed.
	Name      string     `json:"name,omitempty"`
	Namespace *Namespace `json:"namespace,omitempty"`
	// PastNames, with Recover, are those of the facts from then on.
	PastNames []string `json:"past_names,omitempty"`
}

// ErrStale is returned for a command that was computed from an older version of
// the facts. Compute it again.
var ErrStale = errors.New("cluster: the facts have changed")

// ErrCommand is returned for a command that is not possible with these facts.
var ErrCommand = errors.New("cluster: bad command")

// Apply changes the facts by a command. If it returns an error, they are
// unchanged.
func (f *Facts) Apply(c Command) error {
	switch c.Kind {
	case NoteStart:
		return f.noteStart(c)
	case Recover:
		return f.recover(c)
	}
	if c.Version != f.Version {
		return fmt.Errorf("%w: at version %d, the command is for %d", ErrStale, f.Version, c.Version)
	}
	next := f.Clone()
	if err := next.apply(c); err != nil {
		return err
	}
	if err := next.Check(); err != nil {
		return err
	}
	next.Version++
	*f = next
	return nil
}

// noteStart records a newer start of a member. No other command depends on
// starts, so the version stays.
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

// recover makes a node the only member, with every partition, whatever the
// facts were.
func (f *Facts) recover(c Command) error {
	next := f.Clone()
	next.Nodes, next.Starts = map[string]Member{c.Node: {ID: c.Member.ID}}, nil
	next.PastNames = c.PastNames
	for p := range next.Placement {
		next.Placement[p] = []string{c.Node}
	}
	if err := next.Check(); err != nil {
		return err
	}
	next.Version++
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
	case SetRetention:
		if err := f.setRetention(c); err != nil {
			return err
		}
	case SetNamespace:
		f.putNamespace(c.Name, c.Namespace)
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

// Check returns an error if there are no members, or if a partition is on a
// node that may not hold it.
func (f *Facts) Check() error {
	if f.Nodes == nil {
		return fmt.Errorf("%w: there would be no members", ErrCommand)
	}
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
	return f.checkNamespaces()
}
