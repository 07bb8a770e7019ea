package broker

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/subjects"
)

// onStatus describes the cluster as this node sees it.
func (o *operations) onStatus(_ context.Context, m *natslink.Message) (any, error) {
	if err := noBody(m.Payload); err != nil {
		return nil, err
	}
	facts, _ := o.meta.current()
	now := time.Now()
	o.absences.look(now)
	id := *o.founded
	s := subjects.ClusterStatus{
		Cluster: id.Cluster, ID: id.ID, AnsweredBy: o.opts.Name, Time: now.UTC(), Facts: facts.Version,
		MetaLeader: o.meta.group.Status().Leader, Replicas: facts.Replicas,
	}
	said := map[string]announcement{o.opts.Name: o.status()}
	for _, q := range o.peers.all(now) {
		said[q.Name] = q.announcement
	}
	s.MetaReplicas = metaStatus(said)
	for p := range facts.Placement {
		one := partitionStatus(p, facts, said)
		if one.Leader == "" {
			one.LeaderlessSince = o.absences.leaderlessSince(p)
		}
		s.Partitions = append(s.Partitions, one)
	}
	for _, name := range slices.Sorted(maps.Keys(facts.Namespaces)) {
		n := facts.Namespaces[name]
		s.Namespaces = append(s.Namespaces, subjects.NamespaceStatus{Name: name, Partitions: n.Partitions, Limits: shownLimits(n.Limits)})
	}
	for _, name := range facts.Names() {
		one := nodeStatus(name, facts, said)
		if !one.Alive {
			one.Away = o.absences.since(name)
		}
		s.Nodes = append(s.Nodes, one)
	}
	for _, q := range o.peers.candidates.alive(now) {
		if _, member := facts.Nodes[q.Name]; !member && q.ClusterID == "" {
			one := nodeStatus(q.Name, facts, map[string]announcement{q.Name: q.announcement})
			one.Key = fingerprint(q.Key)
			s.Nodes = append(s.Nodes, one)
		}
	}
	return s, nil
}

func nodeStatus(name string, facts cluster.Facts, said map[string]announcement) subjects.NodeStatus {
	m, member := facts.Nodes[name]
	a, alive := said[name]
	s := subjects.NodeStatus{Name: name, State: "member", Alive: alive, Ready: a.Ready, Unready: a.Unready, Version: a.Version, Raft: a.Raft, Since: a.Started, StorageFull: a.Full, Damaged: a.Damaged}
	switch {
	case !member:
		s.State = "waiting"
	case m.Leaving:
		s.State = "leaving"
	case m.Draining:
		s.State = "draining"
	case m.Standby:
		s.State = "standby"
	}
	for _, names := range facts.Placement {
		if slices.Contains(names, name) {
			s.Replicas++
		}
		if names[0] == name {
			s.Leads++
		}
	}
	for _, r := range a.Groups {
		if r.leads() {
			s.Leading++
		}
	}
	return s
}

func partitionStatus(partition int, facts cluster.Facts, said map[string]announcement) subjects.PartitionStatus {
	s := subjects.PartitionStatus{Partition: partition, Placement: facts.Placement[partition]}
	reports := map[string]groupReport{}
	for name, a := range said {
		if r, has := a.group(partition); has {
			reports[name] = r
		}
	}
	var leader groupReport
	s.Leader, leader = leaderOf(reports)
	s.Term, s.StorageFull, s.Limited = leader.Term, leader.Full, leader.Limited
	s.Replicas = replicaStatuses(reports, leader, said)
	return s
}

// metaStatus returns the replicas of the facts.
func metaStatus(said map[string]announcement) []subjects.ReplicaStatus {
	reports := map[string]groupReport{}
	for name, a := range said {
		if a.Meta != nil {
			reports[name] = *a.Meta
		}
	}
	_, leader := leaderOf(reports)
	return replicaStatuses(reports, leader, said)
}

// leaderOf returns the node that leads a group, and its report. Of several that
// report that they lead, it is the one with the highest term.
func leaderOf(reports map[string]groupReport) (name string, leader groupReport) {
	for _, one := range slices.Sorted(maps.Keys(reports)) {
		if r := reports[one]; r.leads() && r.Term >= leader.Term {
			name, leader = one, r
		}
	}
	return name, leader
}

// replicaStatuses describes the replicas of a group: those that nodes report,
// and those that its leader knows. A node that stops, or is away, does not
// count as caught up, whatever the leader said.
func replicaStatuses(reports map[string]groupReport, leader groupReport, said map[string]announcement) (all []subjects.ReplicaStatus) {
	members := map[string]bool{}
	for name := range reports {
		members[name] = leader.Voters[name]
	}
	maps.Copy(members, leader.Voters)
	for _, name := range names(members) {
		r, has := reports[name]
		if !has {
			r.State = "away"
		}
		all = append(all, subjects.ReplicaStatus{
			Name: name, State: r.State, Voter: members[name], HighWaterMark: r.Txid, FirstTxid: r.First, Fenced: r.Fenced, Rebuilds: r.Rebuilds,
			CaughtUp: has && !said[name].Leaving && slices.Contains(leader.CaughtUp, name),
		})
	}
	return all
}
