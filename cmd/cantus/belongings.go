package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cantuslog/cantus/internal/backup"
	"github.com/cantuslog/cantus/subjects"
)

// belongings are the namespaces that partitions belong to, by the cluster's
// numbers of these partitions.
//
// Clients of a namespace know its partitions by the numbers that these have
// there. So a cluster that takes the place of another one needs the same
// namespaces, of the same partitions in the same order: with another order, a
// client would go on in another log, and nothing could tell.
type belongings map[int]backup.Namespace

// belongsTo returns what a partition is in a namespace, nil if it belongs to
// none.
func belongsTo(info subjects.PartitionInfo) *backup.Namespace {
	if info.Namespace == "" {
		return nil
	}
	n := &backup.Namespace{Name: info.Namespace, Number: info.Number}
	if info.Limits != nil {
		n.Limits = info.Limits.NamespaceLimits
	}
	return n
}

// belongings asks which namespaces partitions belong to, again if an answer is
// lost.
func (l *natsConn) belongings(ctx context.Context, partitions []int) (belongings, error) {
	all, source := belongings{}, newBackupSource(l)
	for _, n := range partitions {
		var info subjects.PartitionInfo
		if err := source.ask(ctx, n, l.names.PartitionInfo(n), nil, &info); err != nil {
			return nil, err
		}
		if in := belongsTo(info); in != nil {
			all[n] = *in
		}
	}
	return all, nil
}

// belongingsIn returns what a backup notes.
func belongingsIn(m *backup.Manifest) belongings {
	all := belongings{}
	for _, log := range m.Partitions {
		if log.Namespace != nil {
			all[log.Partition] = *log.Namespace
		}
	}
	return all
}

// namespaces returns the namespaces in the order of their names. The partitions
// of one are nil if they are not known as a whole.
func (b belongings) namespaces() (all []subjects.NamespaceStatus) {
	parts := map[string]map[int]int{}
	limits := map[string]subjects.NamespaceLimits{}
	for p, in := range b {
		if parts[in.Name] == nil {
			parts[in.Name] = map[int]int{}
		}
		parts[in.Name][in.Number], limits[in.Name] = p, in.Limits
	}
	for _, name := range slices.Sorted(maps.Keys(parts)) {
		n := subjects.NamespaceStatus{Name: name, Limits: limits[name]}
		numbers := slices.Sorted(maps.Keys(parts[name]))
		if numbers[len(numbers)-1] == len(numbers)-1 {
			for _, number := range numbers {
				n.Partitions = append(n.Partitions, parts[name][number])
			}
		}
		all = append(all, n)
	}
	return all
}

// compareNamespaces compares the namespaces that partitions had in another
// cluster with those of this one, which takes its place. It notes which are not
// here. One that is here must have the same partitions in the same order.
func compareNamespaces(p *program, other string, had belongings, partitions []int, has belongings) error {
	for _, n := range had.namespaces() {
		same, here := true, false
		for _, partition := range partitions {
			was, is := had[partition], has[partition]
			here = here || is.Name == n.Name
			if was.Name == n.Name || is.Name == n.Name {
				same = same && was.Name == is.Name && was.Number == is.Number
			}
		}
		how := "make it of the same partitions in the same order"
		if n.Partitions != nil {
			how = fmt.Sprintf("make it by \"%s\"", commandToMake(n))
		}
		switch {
		case same:
		case here:
			return usagef("the namespace %s has other partitions here than in %s, or another order of them: its clients would go on in other logs. Nothing was changed: "+
				"remove the namespace here, and %s", n.Name, other, how)
		default:
			p.note("the namespace %s of %s is not here, and its clients find nothing: %s", n.Name, other, how)
		}
	}
	return nil
}

// commandToMake returns the command that makes a namespace as it is.
func commandToMake(n subjects.NamespaceStatus) string {
	text := fmt.Sprintf("cantus namespace set %s --partitions %s", n.Name, partitionList(n.Partitions))
	if n.Limits.Transactions > 0 {
		text += fmt.Sprint(" --rate ", n.Limits.Transactions)
	}
	if n.Limits.Bytes > 0 {
		text += " --byte-rate " + sizeText(int64(n.Limits.Bytes))
	}
	if n.Limits.Kept > 0 {
		text += " --keep " + sizeText(int64(n.Limits.Kept))
	}
	return text
}

// partitionList returns partitions as a flag takes them.
func partitionList(partitions []int) string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(partitions), " ", ","), "[]")
}
