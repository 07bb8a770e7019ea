package cluster

import (
	"fmt"
	"maps"
	"slices"
)

// Namespace is a part of the cluster for one service. Clients see its
// partitions under a prefix of their own, numbered from 0.
type Namespace struct {
	// Partitions are the namespace's partitions, by the cluster's numbers: the
	// first is its partition 0. They never change.
	Partitions []int `json:"partitions"`
	// Limits hold for each of the partitions.
	Limits Limits `json:"limits,omitzero"`
}

// Limits bound what clients append to a partition. 0 is no limit.
type Limits struct {
	// Transactions and Bytes are rates, a second.
	Transactions uint64 `json:"transactions,omitempty"`
	Bytes        uint64 `json:"bytes,omitempty"`
	// Kept is the size of the log.
	Kept uint64 `json:"kept,omitempty"`
}

// Part is what a partition is in a namespace.
type Part struct {
	Namespace string // "" for a partition that belongs to none
	Number    int    // in the namespace
	Of        int    // how many partitions the namespace has
}

// PartOf returns what a partition is in a namespace, and the limits that hold
// for it.
func (f Facts) PartOf(partition int) (Part, Limits) {
	for name, n := range f.Namespaces {
		if i := slices.Index(n.Partitions, partition); i >= 0 {
			return Part{name, i, len(n.Partitions)}, n.Limits
		}
	}
	return Part{}, Limits{}
}

// SetNamespace returns the command that makes a namespace of partitions, or
// sets the limits of the one that has these partitions. Without partitions the
// namespace must exist.
func (f Facts) SetNamespace(name string, partitions []int, limits Limits) (Command, error) {
	has, exists := f.Namespaces[name]
	switch {
	case !exists && len(partitions) == 0:
		return Command{}, fmt.Errorf("%w: there is no namespace %s: name its partitions to make it", ErrCommand, name)
	case exists && len(partitions) > 0 && !slices.Equal(partitions, has.Partitions):
		return Command{}, fmt.Errorf("%w: the namespace %s has the partitions %v, and they can't change", ErrCommand, name, has.Partitions)
	case exists:
		partitions = has.Partitions
	}
	for _, p := range partitions {
		if has, _ := f.PartOf(p); has.Namespace != "" && has.Namespace != name {
			return Command{}, fmt.Errorf("%w: partition %d belongs to the namespace %s", ErrCommand, p, has.Namespace)
		}
	}
	n := Namespace{Partitions: slices.Clone(partitions), Limits: limits}
	next := f.Clone()
	next.putNamespace(name, &n)
	return Command{Kind: SetNamespace, Version: f.Version, Name: name, Namespace: &n}, next.checkNamespaces()
}

// RemoveNamespace returns the command that removes a namespace. Its partitions
// stay, under the cluster's names.
func (f Facts) RemoveNamespace(name string) (Command, error) {
	if _, exists := f.Namespaces[name]; !exists {
		return Command{}, fmt.Errorf("%w: there is no namespace %s", ErrCommand, name)
	}
	return Command{Kind: SetNamespace, Version: f.Version, Name: name}, nil
}

// putNamespace applies the command of SetNamespace or RemoveNamespace. The
// facts are a copy.
func (f *Facts) putNamespace(name string, n *Namespace) {
	f.Namespaces = maps.Clone(f.Namespaces)
	if n == nil {
		if delete(f.Namespaces, name); len(f.Namespaces) == 0 {
			f.Namespaces = nil
		}
		return
	}
	if f.Namespaces == nil {
		f.Namespaces = map[string]Namespace{}
	}
	f.Namespaces[name] = Namespace{Partitions: slices.Clone(n.Partitions), Limits: n.Limits}
}

// checkNamespaces returns an error if a partition does not exist or belongs to
// two namespaces.
func (f *Facts) checkNamespaces() error {
	owner := map[int]string{}
	for _, name := range slices.Sorted(maps.Keys(f.Namespaces)) {
		n := f.Namespaces[name]
		if name == "" || len(n.Partitions) == 0 {
			return fmt.Errorf("%w: a namespace has a name and at least one partition", ErrCommand)
		}
		for _, p := range n.Partitions {
			if p < 0 || p >= len(f.Placement) {
				return fmt.Errorf("%w: there is no partition %d", ErrCommand, p)
			}
			if other, taken := owner[p]; taken {
				if other == name {
					return fmt.Errorf("%w: the namespace %s would have partition %d twice", ErrCommand, name, p)
				}
				return fmt.Errorf("%w: partition %d belongs to the namespace %s", ErrCommand, p, other)
			}
			owner[p] = name
		}
	}
	return nil
}
