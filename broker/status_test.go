package broker_test

import (
	"slices"
	"testing"
	"time"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

// The status says which replicas a leader counts on, and since when there is no
// leader.
func TestTheStatusSaysWhichReplicasHaveCaughtUp(t *testing.T) {
	c := newNodes(t, 3, broker.Options{Partitions: 2})
	c.start(c.names...)
	c.awaitPlaced("n1")
	caughtUp := func(s subjects.ClusterStatus) (names []string) {
		for _, replicas := range [][]subjects.ReplicaStatus{s.MetaReplicas, s.Partitions[0].Replicas, s.Partitions[1].Replicas} {
			for _, r := range replicas {
				if r.CaughtUp {
					names = append(names, r.Name)
				}
			}
		}
		return names
	}
	eventually(t, "all replicas have caught up", func() bool {
		return slices.Equal(caughtUp(c.status("n1")), []string{"n1", "n2", "n3", "n1", "n2", "n3", "n1", "n2", "n3"})
	})
	c.stop("n3")
	eventually(t, "n3 does not count", func() bool {
		return slices.Equal(caughtUp(c.status("n1")), []string{"n1", "n2", "n1", "n2", "n1", "n2"})
	})
	var led time.Time // a node is heard of for 2.5 s: both partitions were led less than that before
	eventually(t, "n3 is away", func() bool {
		s := c.status("n1")
		led = s.Time.Add(-2500 * time.Millisecond)
		return s.Partitions[0].Leader != "" && s.Partitions[1].Leader != "" && !s.Nodes[2].Alive
	})
	c.stop("n2")
	eventually(t, "there is no leader", func() bool {
		s := c.status("n1")
		for _, p := range s.Partitions {
			since := p.LeaderlessSince
			if p.Leader != "" && !since.IsZero() || p.Leader == "" && (since.Before(led) || since.After(s.Time)) {
				t.Errorf("partition %d: led by %q, without a leader since %v, it was led at %v", p.Partition, p.Leader, since, led)
			}
			if p.Leader != "" {
				return false
			}
		}
		return len(caughtUp(s)) == 0
	})
}
