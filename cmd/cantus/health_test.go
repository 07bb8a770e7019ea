package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/cantuslog/cantus/subjects"
)

// TestHealthScripts runs testdata/health/*.txt; -rewrite writes what is
// printed into the files. A block begins with "scene", or "scene" and a node
// that is to be restarted. Each further line up to ---- describes a part of the
// cluster:
//
//	nodes NAME…          the members, all up and ready
//	away NAME TIME       a member is away since TIME of 3 November
//	waiting NAME         a node waits to be added
//	unready NAME [WHY]   a node is not ready
//	full, damaged NAME
//	facts REPLICA…       the replicas of the facts
//	partition REPLICA…   those of the next partition
//	leaderless [TIME]    the last partition has no leader, since TIME
//	silent, refuses, restoring, mirror
//	                     how its leader answers
//	heard NAME           its leader hears a node that is away for the others
//	moved                the node that answers has another leader for it
//	unknown WHY          no node answers for the cluster
//
// A REPLICA is a node's name. It leads if * follows, has not caught up if -
// follows, is fenced if ! follows, and has no vote if it is in brackets: in
// square ones it is to have none. The node n1 answers on 3 November at 02:20.
func TestHealthScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/health", func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			s := scene{t: t, now: time.Date(2026, 11, 3, 2, 20, 0, 0, time.UTC)}
			s.status.AnsweredBy, s.status.Time = "n1", s.now
			s.status.Replicas = 3
			for line := range strings.SplitSeq(d.Input, "\n") {
				words := strings.Fields(line)
				s.add(words[0], words[1:])
			}
			node := ""
			if len(d.CmdArgs) > 0 {
				node = d.CmdArgs[0].Key
			}
			return s.print(node)
		})
	})
}

type scene struct {
	t      *testing.T
	now    time.Time
	survey survey
	status subjects.ClusterStatus
}

func (s *scene) add(what string, words []string) {
	p := len(s.status.Partitions) - 1
	switch what {
	case "nodes":
		for i, name := range words {
			s.status.Nodes = append(s.status.Nodes, subjects.NodeStatus{Name: name, State: "member", Alive: true, Ready: true, Since: s.now.Add(-time.Duration(i) * time.Hour)})
		}
	case "waiting":
		s.status.Nodes = append(s.status.Nodes, subjects.NodeStatus{Name: words[0], State: "waiting", Alive: true})
	case "away":
		n := s.node(words[0])
		n.Alive, n.Ready, n.Away = false, false, s.clock(words[1:])
	case "unready":
		n := s.node(words[0])
		n.Ready, n.Unready = false, cmp.Or(strings.Join(words[1:], " "), "partition 0 is catching up")
	case "full":
		s.node(words[0]).StorageFull = true
	case "damaged":
		s.node(words[0]).Damaged = "a file"
	case "facts":
		s.status.MetaReplicas, s.status.MetaLeader = s.replicas(words)
	case "partition":
		one := subjects.PartitionStatus{Partition: p + 1, Term: 7}
		one.Replicas, one.Leader = s.replicas(words)
		info := &subjects.PartitionInfo{Partition: p + 1, Term: 7, Leader: one.Leader}
		for _, r := range one.Replicas {
			if !slices.Contains(words, "["+r.Name+"]") {
				one.Placement = append(one.Placement, r.Name)
			}
			info.Replicas = append(info.Replicas, subjects.ReplicaInfo{Name: r.Name, Voter: r.Voter, State: r.State})
		}
		s.status.Partitions = append(s.status.Partitions, one)
		s.survey.partitions = append(s.survey.partitions, partitionAnswer{info: info})
	case "leaderless":
		s.survey.partitions[p].info = nil
		s.status.Partitions[p].Leader, s.status.Partitions[p].LeaderlessSince = "", s.clock(words)
	case "silent":
		s.survey.partitions[p] = partitionAnswer{silent: "no answer within 5s"}
	case "refuses":
		s.survey.partitions[p].info.StorageFull = "the disk of node n1 is full"
	case "restoring":
		s.survey.partitions[p].info.Restoring = true
	case "mirror":
		s.survey.partitions[p].info.MirrorOf = "5e2c"
	case "heard":
		for i := range s.survey.partitions[p].info.Replicas {
			if r := &s.survey.partitions[p].info.Replicas[i]; r.Name == words[0] {
				r.State = "follower"
			}
		}
	case "moved":
		s.status.Partitions[p].Term--
	case "unknown":
		s.survey.unknown = strings.Join(words, " ")
	default:
		s.t.Fatalf("there is no directive %q", what)
	}
}

func (s *scene) node(name string) *subjects.NodeStatus {
	i := slices.IndexFunc(s.status.Nodes, func(n subjects.NodeStatus) bool { return n.Name == name })
	return &s.status.Nodes[i]
}

func (s *scene) clock(words []string) (at time.Time) {
	if len(words) == 0 {
		return at
	}
	at, err := time.Parse(time.DateTime, "2026-11-"+strings.Join(append([]string{"03"}, words...)[len(words)-1:], " "))
	if err != nil {
		s.t.Fatal(err)
	}
	return at
}

func (s *scene) replicas(words []string) (all []subjects.ReplicaStatus, leader string) {
	for _, word := range words {
		name := strings.Trim(word, "()[]*-!")
		r := subjects.ReplicaStatus{Name: name, State: "follower", Voter: !strings.ContainsAny(word, "(["), CaughtUp: !strings.ContainsAny(word, "-([")}
		i := slices.IndexFunc(s.status.Nodes, func(n subjects.NodeStatus) bool { return n.Name == name })
		switch {
		case strings.Contains(word, "*"):
			leader, r.State = name, "leader"
		case i >= 0 && !s.status.Nodes[i].Alive:
			r.State, r.CaughtUp = "away", false
		}
		if strings.Contains(word, "!") {
			r.Fenced = "its log differs"
		}
		all = append(all, r)
	}
	return all, leader
}

// print prints the assessment, and whether a node may be restarted.
func (s *scene) print(node string) string {
	if s.survey.unknown == "" {
		s.survey.status = &s.status
	}
	v := assess(s.survey)
	var b strings.Builder
	fmt.Fprintln(&b, v.Text)
	for _, l := range v.Losses {
		fmt.Fprintf(&b, "- if node %s fails: %s\n", l.Node, l.text(v.total))
	}
	switch {
	case v.Safe != (v.MayFail != nil):
		s.t.Errorf("safe is %t, and it is said how many nodes may fail: %t", v.Safe, v.MayFail != nil)
	case v.Safe:
		fmt.Fprintf(&b, "safe, %d may fail\n", *v.MayFail)
	}
	r := mayRestart(s.survey, node)
	if err := r.err(s.survey, node); err != nil {
		fmt.Fprintf(&b, "exit %d: %v\n", exitStatus(err), err)
	} else {
		fmt.Fprintln(&b, r.text(node))
	}
	return b.String()
}
