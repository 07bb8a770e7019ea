package broker

import (
	"context"
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
	id := *o.founded
	s := subjects.ClusterStatus{
		Cluster: id.Cluster, ID: id.ID, AnsweredBy: o.opts.Name, Facts: facts.Version,
		MetaLeader: o.meta.group.Status().Leader, Replicas: facts.Replicas,
	}
	said := map[string]announcement{o.opts.Name: o.status()}
	for _, q := range o.peers.all(now) {
		said[q.Name] = q.announcement
	}
	for p := range facts.Placement {
		s.Partitions = append(s.Partitions, partitionStatus(p, facts, said))
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

// namesOf returns the names of nodes, in order.
func namesOf(said map[string]announcement) []string {
	var names []string
	for name := range said {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
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
	var leader groupReport
	reports := map[string]groupReport{}
	for _, name := range namesOf(said) {
		for _, r := range said[name].Groups {
			if r.Partition != partition {
				continue
			}
			reports[name] = r
			if r.leads() && r.Term >= s.Term {
				s.Leader, s.Term, leader = name, r.Term, r
			}
		}
	}
	s.StorageFull = leader.Full
	members := map[string]bool{}
	for name := range reports {
		members[name] = leader.Voters[name]
	}
	for name, voter := range leader.Voters {
		members[name] = voter
	}
	for _, name := range names(members) {
		r, has := reports[name]
		if !has {
			r.State = "away"
		}
		s.Replicas = append(s.Replicas, subjects.ReplicaStatus{
			Name: name, State: r.State, Voter: members[name], HighWaterMark: r.Txid, FirstTxid: r.First, Fenced: r.Fenced, Rebuilds: r.Rebuilds,
		})
	}
	return s
}
